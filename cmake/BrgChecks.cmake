# Tests with label check: what the repository and the built libraries must look
# like, and a program outside that uses an installed copy.
set(_scripts ${PROJECT_SOURCE_DIR}/scripts)
find_package(Python3 QUIET COMPONENTS Interpreter)

function(brg_check name)
  add_test(NAME check/${name} COMMAND ${ARGN}
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  brg_set_test(check/${name} check 120)
  set_tests_properties(check/${name} PROPERTIES SKIP_RETURN_CODE 77)
endfunction()

brg_check(format ${_scripts}/format.sh --check)
if(Python3_FOUND)
  brg_check(includes ${Python3_EXECUTABLE} ${_scripts}/check_includes.py)
  brg_check(sizes ${Python3_EXECUTABLE} ${_scripts}/check_sizes.py)
  brg_check(rows ${Python3_EXECUTABLE} ${_scripts}/check_rows.py ${CMAKE_CURRENT_BINARY_DIR})
  brg_check(features ${Python3_EXECUTABLE} ${_scripts}/check_features.py)
  if(NOT BRG_SANITIZE)
    add_test(NAME clang/warnings COMMAND
      ${Python3_EXECUTABLE} ${_scripts}/check_clang.py ${PROJECT_BINARY_DIR})
    brg_set_test(clang/warnings check 300)
    set_tests_properties(clang/warnings PROPERTIES
      PROCESSORS 2 SKIP_RETURN_CODE 77)
  endif()
  brg_check(docs ${Python3_EXECUTABLE} ${_scripts}/gen_docs.py --check)
  brg_check(gpu_run ${Python3_EXECUTABLE}
    ${PROJECT_SOURCE_DIR}/tests/bench/check_run.py)
endif()

brg_check(api_docs ${_scripts}/api_docs.sh ${CMAKE_CURRENT_BINARY_DIR}/api)

file(GLOB_RECURSE _headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/brigade/*.h)
set(_check_headers ${CMAKE_CURRENT_SOURCE_DIR}/headers/check_headers.sh
  ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include)
brg_check(headers_c ${_check_headers} c11 ${CMAKE_C_COMPILER} ${_headers})
find_program(BRG_CXX_FOR_HEADERS NAMES c++ g++ clang++)
mark_as_advanced(BRG_CXX_FOR_HEADERS)
if(BRG_CXX_FOR_HEADERS)
  file(GLOB _cxx_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/brigade/*.hpp)
  brg_check(headers_cxx ${_check_headers} c++17 ${BRG_CXX_FOR_HEADERS}
    ${_headers} ${_cxx_headers})
endif()

# The libraries as they are shipped; sanitizers would change all of it.
if(NOT BRG_SANITIZE)
  set(_libraries $<TARGET_FILE:brigade_shared>)
  set(_with_headers "")
  get_property(_components GLOBAL PROPERTY BRG_COMPONENTS)
  foreach(_name ${_components})
    list(APPEND _libraries $<TARGET_FILE:brigade_${_name}_shared>)
    get_property(_header GLOBAL PROPERTY BRG_COMPONENT_HEADER_${_name})
    if(_header)
      list(APPEND _with_headers ${_header} $<TARGET_FILE:brigade_${_name}_shared>)
    endif()
  endforeach()
  brg_check(symbols ${_scripts}/check_symbols.sh
    $<TARGET_FILE:brigade_static> ${_libraries})
  if(Python3_FOUND)
    brg_check(api ${Python3_EXECUTABLE} ${_scripts}/check_api.py
      $<TARGET_FILE:brigade_shared> ${_with_headers})
  endif()
  brg_check(library ${_scripts}/check_library.sh $<CONFIG> ${_libraries})
  brg_check(install ${CMAKE_CURRENT_SOURCE_DIR}/install/run.sh
    ${PROJECT_BINARY_DIR} ${CMAKE_COMMAND} ${CMAKE_C_COMPILER} ${_components})
  set_tests_properties(check/install PROPERTIES
    PROCESSORS 2 TIMEOUT 300
    ENVIRONMENT "${BRG_TEST_ENV};CMAKE_GENERATOR=${CMAKE_GENERATOR}")
  if(TARGET brigade_tool)
    brg_check(package ${CMAKE_CURRENT_SOURCE_DIR}/install/package.sh
      ${PROJECT_BINARY_DIR})
  endif()
endif()
