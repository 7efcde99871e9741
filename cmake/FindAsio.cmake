#[[
Finds standalone Asio (header-only) and defines the target Asio::asio.

ASIO_INCLUDE_DIR  the directory that holds asio.hpp; searched for when not set, under Asio_ROOT and
                  CMAKE_PREFIX_PATH among others
Asio_VERSION      its version, as in 1.22.1
#]]
include(FindPackageHandleStandardArgs)

find_path(ASIO_INCLUDE_DIR asio.hpp)
mark_as_advanced(ASIO_INCLUDE_DIR)

unset(Asio_VERSION)
set(Asio_version_header "${ASIO_INCLUDE_DIR}/asio/version.hpp")
if(EXISTS "${Asio_version_header}")
    file(STRINGS "${Asio_version_header}" Asio_version_line REGEX "^#define ASIO_VERSION [0-9]+")
    if(Asio_version_line MATCHES "([0-9]+)")
        math(EXPR Asio_major "${CMAKE_MATCH_1} / 100000")
        math(EXPR Asio_minor "${CMAKE_MATCH_1} / 100 % 1000")
        math(EXPR Asio_patch "${CMAKE_MATCH_1} % 100")
        set(Asio_VERSION "${Asio_major}.${Asio_minor}.${Asio_patch}")
    endif()
endif()

find_package_handle_standard_args(Asio
    REQUIRED_VARS ASIO_INCLUDE_DIR Asio_VERSION
    VERSION_VAR Asio_VERSION
    REASON_FAILURE_MESSAGE "Install standalone Asio (Debian and Ubuntu: libasio-dev, Fedora: asio-devel, Homebrew: \
asio), or set ASIO_INCLUDE_DIR to the directory that holds asio.hpp.")

if(Asio_FOUND AND NOT TARGET Asio::asio)
    add_library(Asio::asio INTERFACE IMPORTED)
    target_include_directories(Asio::asio INTERFACE "${ASIO_INCLUDE_DIR}")
    target_compile_definitions(Asio::asio INTERFACE ASIO_STANDALONE)
    # Asio decides this by what was included before it; a program must decide it once.
    target_compile_definitions(Asio::asio INTERFACE "$<$<PLATFORM_ID:Linux,Darwin,FreeBSD>:ASIO_HAS_STD_ALIGNED_ALLOC=1>")
    if(WIN32)
        target_link_libraries(Asio::asio INTERFACE ws2_32 mswsock)
    endif()
    # Before 1.26 Asio looks for <experimental/coroutine> under clang and does not see <coroutine>.
    if(Asio_VERSION VERSION_LESS 1.26)
        target_compile_definitions(Asio::asio INTERFACE
            "$<$<CXX_COMPILER_ID:Clang,AppleClang>:ASIO_HAS_CO_AWAIT;ASIO_HAS_STD_COROUTINE>")
    endif()
endif()
