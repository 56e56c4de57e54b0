# Debian packages: cmake --build build && (cd build && cpack -G DEB); configure
# with CMAKE_INSTALL_PREFIX=/usr, so that libraries lie where Debian has them.
# brigade has libraries, headers and the program; each component, which is
# loaded by name, is a package of its own, with what it needs.
set(CPACK_PACKAGE_NAME brigade)
set(CPACK_PACKAGE_VENDOR "Brigade")
set(CPACK_PACKAGE_CONTACT "the authors of Brigade <brigade@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_GENERATOR DEB)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_COMPONENTS_ALL brigade ${_components})
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
# What programs need that were built against the libraries, and what these need
# themselves: CPack takes two programs for that.
find_program(BRG_SHLIBDEPS dpkg-shlibdeps)
find_program(BRG_FILE file)
mark_as_advanced(BRG_SHLIBDEPS BRG_FILE)
set(_has_shlibdeps OFF)
if(BRG_SHLIBDEPS AND BRG_FILE)
  set(_has_shlibdeps ON)
endif()
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ${_has_shlibdeps})
file(WRITE ${PROJECT_BINARY_DIR}/debian/triggers "activate-noawait ldconfig\n")
set(CPACK_PRE_BUILD_SCRIPTS ${PROJECT_SOURCE_DIR}/cmake/BrgDebianFiles.cmake)

set(CPACK_DEBIAN_BRIGADE_PACKAGE_NAME brigade)
set(CPACK_COMPONENT_BRIGADE_DESCRIPTION
"An autograd engine, a reducer that sends gradients while the backward runs,
and compiled backwards: C libraries, their headers and the program brigade.
What moves data between processes is in packages of its own, as brigade-mpi.")
# Static programs link these themselves.
set(CPACK_DEBIAN_BRIGADE_PACKAGE_SUGGESTS "libopenblas-dev, zlib1g-dev, \
libcjson-dev, libxxhash-dev, libxsmm-dev")
set(_mpi_recommends "openmpi-bin, libopenmpi-dev")
if("${MPI_C_LIBRARIES}" MATCHES mpich)
  set(_mpi_recommends "mpich, libmpich-dev")
endif()
set(CPACK_DEBIAN_MPI_PACKAGE_RECOMMENDS "${_mpi_recommends}")
foreach(_name ${_components})
  string(TOUPPER ${_name} _upper)
  set(CPACK_DEBIAN_${_upper}_PACKAGE_NAME brigade-${_name})
  set(CPACK_DEBIAN_${_upper}_PACKAGE_DEPENDS "brigade (= ${PROJECT_VERSION})")
  set(CPACK_COMPONENT_${_upper}_DESCRIPTION
    "The component brigade::${_name}, which programs link or load by name.")
endforeach()
# What the libraries need, from the packages that they come from: not those of
# NVIDIA, which are none of Debian's.
foreach(_upper BRIGADE MPI)
  set(CPACK_DEBIAN_${_upper}_PACKAGE_SHLIBDEPS ${_has_shlibdeps})
  set(CPACK_DEBIAN_${_upper}_PACKAGE_CONTROL_EXTRA
    ${PROJECT_BINARY_DIR}/debian/triggers)
endforeach()
if(NOT _has_shlibdeps)
  set(CPACK_DEBIAN_BRIGADE_PACKAGE_DEPENDS
    "libc6, libopenblas0 | libopenblas0-pthread, zlib1g, libcjson1")
endif()
include(CPack)
