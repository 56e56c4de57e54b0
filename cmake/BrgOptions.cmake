# Options of the build. AUTO parts are used when found.
option(BRG_BUILD_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(BRG_BUILD_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(BRG_BUILD_EXAMPLES "Build the examples" ${PROJECT_IS_TOP_LEVEL})
option(BRG_WERROR "Treat warnings as errors" OFF)
set(BRG_WITH_MPI AUTO CACHE STRING "Build brigade::mpi: AUTO, ON or OFF")
set(BRG_SANITIZE "" CACHE STRING "Sanitizers, for example address;undefined")
set(BRG_DEBUG 0 CACHE STRING "Level of internal checks, 0 to 3")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()

find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(OPENBLAS REQUIRED IMPORTED_TARGET openblas)
find_package(ZLIB REQUIRED)
