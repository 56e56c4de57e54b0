# A Debian package: cmake --build build && (cd build && cpack -G DEB).
# One package holds the libraries, the headers and the program; components are
# loaded by name, so that MPI is recommended and not required.
set(CPACK_PACKAGE_NAME brigade)
set(CPACK_PACKAGE_VENDOR "Brigade")
set(CPACK_PACKAGE_CONTACT "the authors of Brigade <brigade@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_GENERATOR DEB)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_DEPENDS
  "libc6, libopenblas0 | libopenblas0-pthread, zlib1g, libcjson1")
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "libopenmpi3 | libopenmpi40, openmpi-bin")
include(CPack)
