# Before cpack makes a package: what Debian wants beside the installed files.
# Run by cpack, once for each package or for all.
find_program(GZIP gzip REQUIRED)

function(brg_deb_text path text)
  file(WRITE ${path} "${text}")
  file(CHMOD ${path} PERMISSIONS OWNER_READ OWNER_WRITE GROUP_READ WORLD_READ)
endfunction()

file(GLOB _roots LIST_DIRECTORIES true ${CPACK_TEMPORARY_DIRECTORY}/*)
foreach(_root ${_roots})
  get_filename_component(_name ${_root} NAME)
  if(NOT IS_DIRECTORY ${_root}/usr)
    continue()
  endif()
  set(_package brigade-${_name})
  if(_name STREQUAL "brigade")
    set(_package brigade)
  endif()
  set(_doc ${_root}/usr/share/doc/${_package})
  # Debian keeps one copy of the licence.
  file(REMOVE ${_root}/usr/share/doc/brigade/LICENSE)
  brg_deb_text(${_doc}/copyright
"Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: Brigade

Files: *
Copyright: 2026 the authors of Brigade
License: Apache-2.0
 The licence is in /usr/share/common-licenses/Apache-2.0.
")
  string(TIMESTAMP _date "%a, %d %b %Y %H:%M:%S +0000" UTC)
  brg_deb_text(${_doc}/changelog
"brigade (${CPACK_PACKAGE_VERSION}) unstable; urgency=medium

  * Made by cpack; see CHANGELOG.md of the sources.

 -- ${CPACK_PACKAGE_CONTACT}  ${_date}
")
  file(GLOB _pages ${_root}/usr/share/man/man1/*.1)
  execute_process(COMMAND ${GZIP} -9nf ${_doc}/changelog ${_pages}
    COMMAND_ERROR_IS_FATAL ANY)
  # Debian's MPI lies where the system looks.
  file(GLOB _libraries ${_root}/usr/lib/*/libbrigade_mpi.so.*.*
    ${_root}/usr/lib/libbrigade_mpi.so.*.*)
  foreach(_library ${_libraries})
    file(RPATH_REMOVE FILE ${_library})
  endforeach()
endforeach()
