# Installation: libraries, headers, the CMake package and pkg-config files.
# Each target set is exported in a file of its own, so that a program which
# links the shared library needs none of the library's own dependencies.
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/brigade)
set(_pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# A .pc file that finds its prefix from its own place, so that the tree may be
# moved or installed with cmake --install --prefix.
file(RELATIVE_PATH _up /prefix/${_pc_dir} /prefix)
string(REGEX REPLACE "/$" "" BRG_PC_PREFIX "\${pcfiledir}/${_up}")

function(_brg_export target export package)
  install(TARGETS ${target} EXPORT ${export}
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${package}
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT ${package})
  install(EXPORT ${export} NAMESPACE brigade:: DESTINATION ${_package_dir}
    COMPONENT ${package})
endfunction()

function(_brg_pkgconfig template name package)
  configure_file(cmake/${template} ${name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${name}.pc DESTINATION ${_pc_dir}
    COMPONENT ${package})
endfunction()

get_property(_components GLOBAL PROPERTY BRG_COMPONENTS)
set(_component_headers "")
foreach(_name ${_components})
  get_property(_header GLOBAL PROPERTY BRG_COMPONENT_HEADER_${_name})
  list(APPEND _component_headers ${_header})
endforeach()

if(TARGET brigade_watch) # a debug build's, which the shared library brings
  install(TARGETS brigade_watch EXPORT brigade-shared-targets
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT brigade)
endif()
_brg_export(brigade_shared brigade-shared-targets brigade)
_brg_export(brigade_static brigade-static-targets brigade)
# Headers of components that are not built here stay out of the tree.
install(DIRECTORY include/brigade DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp"
  PATTERN mpi.h EXCLUDE PATTERN nccl.h EXCLUDE PATTERN cuda.h EXCLUDE)
install(FILES ${PROJECT_BINARY_DIR}/include/brigade/version.h
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/brigade)
# The interface for Fortran is a source file: module files fit one compiler.
install(FILES examples/bring_your_own/brigade.f90
  DESTINATION ${CMAKE_INSTALL_DATADIR}/brigade)
_brg_pkgconfig(brigade.pc.in brigade brigade)
_brg_pkgconfig(brigade-static.pc.in brigade-static brigade)

foreach(BRG_PC_NAME ${_components})
  foreach(_kind shared static)
    _brg_export(brigade_${BRG_PC_NAME}_${_kind}
      brigade-${BRG_PC_NAME}-${_kind}-targets ${BRG_PC_NAME})
  endforeach()
  get_property(_header GLOBAL PROPERTY BRG_COMPONENT_HEADER_${BRG_PC_NAME})
  if(_header)
    install(FILES include/brigade/${_header}
      DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/brigade COMPONENT ${BRG_PC_NAME})
  endif()
  get_property(BRG_PC_LIBS GLOBAL PROPERTY BRG_COMPONENT_PC_LIBS_${BRG_PC_NAME})
  _brg_pkgconfig(brigade-component.pc.in brigade-${BRG_PC_NAME} ${BRG_PC_NAME})
  _brg_pkgconfig(brigade-component-static.pc.in brigade-${BRG_PC_NAME}-static
    ${BRG_PC_NAME})
endforeach()

configure_package_config_file(cmake/brigade-config.cmake.in
  ${PROJECT_BINARY_DIR}/brigade-config.cmake
  INSTALL_DESTINATION ${_package_dir})
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/brigade-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/brigade-config.cmake
  ${PROJECT_BINARY_DIR}/brigade-config-version.cmake
  DESTINATION ${_package_dir})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
