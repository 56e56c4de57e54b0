# Building blocks of the libraries.
#
# brg_room(<name>)      an object library; the folders below it add sources
# brg_library()         libbrigade, shared and static, from all rooms
# brg_component(...)    a library beside it, linked or loaded by name
include(BrgIsa)

function(brg_room name)
  add_library(${name} OBJECT)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${name} PRIVATE brg_flags ${BRG_REQUIRED_LIBS})
  set_property(GLOBAL APPEND PROPERTY BRG_ROOMS ${name})
endfunction()

# What shared libraries of the project have in common: exported names are those
# of the version script, and in strict builds (BRG_WERROR) every symbol they use
# must be known when linking.
function(_brg_shared_settings target)
  set_target_properties(${target} PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}
    LINK_DEPENDS ${PROJECT_SOURCE_DIR}/cmake/exports.map
    BUILD_RPATH "$ORIGIN" INSTALL_RPATH "$ORIGIN")
  target_link_options(${target} PRIVATE
    LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/exports.map
    LINKER:--as-needed)
  if(NOT BRG_SANITIZE) # of libxsmm.a a third is never called
    target_link_options(${target} PRIVATE LINKER:--gc-sections)
  endif()
  if(BRG_WERROR AND NOT BRG_SANITIZE)
    target_link_options(${target} PRIVATE LINKER:--no-undefined)
  endif()
endfunction()

function(brg_library)
  get_property(_rooms GLOBAL PROPERTY BRG_ROOMS)
  set(_objects "")
  foreach(_room ${_rooms})
    get_target_property(_sources ${_room} SOURCES)
    if(_sources)
      list(APPEND _objects $<TARGET_OBJECTS:${_room}>)
    endif()
  endforeach()
  foreach(_kind shared static)
    string(TOUPPER ${_kind} _upper)
    add_library(brigade_${_kind} ${_upper} ${_objects})
    set_target_properties(brigade_${_kind} PROPERTIES
      OUTPUT_NAME brigade EXPORT_NAME ${_kind})
    target_include_directories(brigade_${_kind} PUBLIC
      $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
      $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_link_libraries(brigade_${_kind} PRIVATE
      $<BUILD_INTERFACE:brg_flags> ${BRG_REQUIRED_LIBS}
      Threads::Threads ${CMAKE_DL_LIBS} m)
    add_library(brigade::${_kind} ALIAS brigade_${_kind})
  endforeach()
  _brg_shared_settings(brigade_shared)
  add_library(brigade::brigade ALIAS brigade_shared)
endfunction()

# brg_component(<name> SOURCES a.c... [LIBS Vendor::lib...] [HEADER name.h]
#               [HIDDEN_COPIES b.c...] [PC_LIBS "-lvendor"])
#
# libbrigade_<name>: targets brigade_<name>_shared (brigade::<name>) and
# brigade_<name>_static. The shared one sees of libbrigade only the public
# brg_* functions; sources of libbrigade that it needs a private copy of are
# HIDDEN_COPIES, which the static one takes from libbrigade.a instead. PC_LIBS
# is what the pkg-config file of the static one adds; for mpi it is known here.
function(brg_component name)
  cmake_parse_arguments(PARSE_ARGV 1 _arg "" "HEADER;PC_LIBS"
    "SOURCES;LIBS;HIDDEN_COPIES")
  foreach(_kind shared static)
    string(TOUPPER ${_kind} _upper)
    set(_target brigade_${name}_${_kind})
    add_library(${_target} ${_upper} ${_arg_SOURCES})
    set_target_properties(${_target} PROPERTIES
      OUTPUT_NAME brigade_${name} EXPORT_NAME ${name}_${_kind}
      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}
      ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}
      POSITION_INDEPENDENT_CODE ON)
    target_link_libraries(${_target}
      PUBLIC brigade_${_kind}
      PRIVATE $<BUILD_INTERFACE:brg_flags> ${_arg_LIBS} Threads::Threads)
    add_library(brigade::${name}_${_kind} ALIAS ${_target})
  endforeach()
  if(name STREQUAL "mpi" AND NOT _arg_PC_LIBS)
    list(JOIN MPI_C_LIBRARIES " " _arg_PC_LIBS)
  endif()
  target_sources(brigade_${name}_shared PRIVATE ${_arg_HIDDEN_COPIES})
  _brg_shared_settings(brigade_${name}_shared)
  # A vendor's library may be anywhere.
  set_target_properties(brigade_${name}_shared PROPERTIES
    INSTALL_RPATH_USE_LINK_PATH ON)
  add_library(brigade::${name} ALIAS brigade_${name}_shared)
  set_property(GLOBAL APPEND PROPERTY BRG_COMPONENTS ${name})
  set_property(GLOBAL PROPERTY BRG_COMPONENT_HEADER_${name} "${_arg_HEADER}")
  set_property(GLOBAL PROPERTY BRG_COMPONENT_PC_LIBS_${name} "${_arg_PC_LIBS}")
endfunction()
