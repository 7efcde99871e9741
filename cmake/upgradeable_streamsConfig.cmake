include(CMakeFindDependencyMacro)

list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}")
find_dependency(Asio 1.22.1 MODULE)
list(POP_FRONT CMAKE_MODULE_PATH)
find_dependency(OpenSSL 3.0)
find_dependency(Threads)

include("${CMAKE_CURRENT_LIST_DIR}/upgradeable_streamsTargets.cmake")
