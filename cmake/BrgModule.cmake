# brg_room(<name>): an object library that the rooms below it add sources to.
# brg_library(): libbrigade, shared and static, from all rooms.
function(brg_room name)
  add_library(${name} OBJECT)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON)
  target_link_libraries(${name} PRIVATE brg_flags PkgConfig::OPENBLAS ZLIB::ZLIB)
  set_property(GLOBAL APPEND PROPERTY BRG_ROOMS ${name})
endfunction()

function(brg_library)
  configure_file(${PROJECT_SOURCE_DIR}/include/brigade/version.h.in
                 ${PROJECT_BINARY_DIR}/include/brigade/version.h @ONLY)
  get_property(_rooms GLOBAL PROPERTY BRG_ROOMS)
  set(_objects "")
  foreach(_room ${_rooms})
    list(APPEND _objects $<TARGET_OBJECTS:${_room}>)
  endforeach()
  foreach(_kind SHARED STATIC)
    string(TOLOWER ${_kind} _suffix)
    add_library(brigade_${_suffix} ${_kind} ${_objects})
    set_target_properties(brigade_${_suffix} PROPERTIES OUTPUT_NAME brigade)
    target_include_directories(brigade_${_suffix} PUBLIC
      $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
      $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
      $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
    target_link_libraries(brigade_${_suffix} PRIVATE
      $<BUILD_INTERFACE:brg_flags> PkgConfig::OPENBLAS ZLIB::ZLIB Threads::Threads m ${CMAKE_DL_LIBS})
  endforeach()
  set_target_properties(brigade_shared PROPERTIES
    VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
  add_library(brigade::brigade ALIAS brigade_shared)
endfunction()
