include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/upgradeable_streams")

install(TARGETS upgradeable_streams EXPORT upgradeable_streams FILE_SET HEADERS)
install(EXPORT upgradeable_streams
    FILE upgradeable_streamsTargets.cmake
    NAMESPACE upgradeable_streams::
    DESTINATION "${package_dir}")

write_basic_package_version_file("${PROJECT_BINARY_DIR}/upgradeable_streamsConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion
    ARCH_INDEPENDENT)
install(FILES
    "${PROJECT_SOURCE_DIR}/cmake/FindAsio.cmake"
    "${PROJECT_SOURCE_DIR}/cmake/upgradeable_streamsConfig.cmake"
    "${PROJECT_BINARY_DIR}/upgradeable_streamsConfigVersion.cmake"
    DESTINATION "${package_dir}")

# Relative to the .pc file, so that `cmake --install --prefix` and a moved prefix both work.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
    BASE_DIRECTORY "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig"
    OUTPUT_VARIABLE pc_prefix)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR
    BASE_DIRECTORY "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig"
    OUTPUT_VARIABLE pc_includedir)
if(WIN32)
    set(pc_cflags "-Wa,-mbig-obj")
    set(pc_libs "-lws2_32 -lmswsock")
else()
    set(pc_cflags "-DASIO_HAS_STD_ALIGNED_ALLOC=1")
endif()
configure_file("${PROJECT_SOURCE_DIR}/cmake/upgradeable_streams.pc.in"
    "${PROJECT_BINARY_DIR}/upgradeable_streams.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/upgradeable_streams.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
