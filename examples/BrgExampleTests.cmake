# Tests of the programs: tests/examples/test_<file>.py, by class where a file
# takes long.
find_package(Python3 QUIET COMPONENTS Interpreter)
if(NOT Python3_FOUND)
  return()
endif()
enable_testing()
include(BrgTests)
get_property(_programs GLOBAL PROPERTY BYO_PROGRAMS)
list(TRANSFORM _programs REPLACE "(.+)" "$<TARGET_FILE:\\1>")
list(JOIN _programs " " _byo)
set(_env
  BRG_FASHION_MNIST=$<TARGET_FILE:fashion_mnist>
  BRG_GPT=$<TARGET_FILE:gpt>
  BRG_EXAMPLES=$<TARGET_FILE_DIR:01_tensor>
  BRG_TOOL=$<$<TARGET_EXISTS:brigade_tool>:$<TARGET_FILE:brigade_tool>>
  BRG_BYO_ALONE=$<TARGET_FILE:byo_alone>
  "BRG_BYO_PROGRAMS=${_byo}"
  PYTHONDONTWRITEBYTECODE=1)
if(BRG_HAVE_MPI)
  list(JOIN BRG_MPIRUN " " _mpirun)
  list(APPEND _env "BRG_MPIRUN=${_mpirun}")
  if(BRG_MPI_ULFM_IN_mpi_ext)
    list(APPEND _env BRG_SHRINKS=1)
  endif()
endif()

# brg_example_test(<file> [class]): examples/<file>[_<class>]
function(brg_example_test file)
  string(TOLOWER "examples/${file}_${ARGN}" _name)
  string(REGEX REPLACE "_$" "" _name ${_name})
  add_test(NAME ${_name} COMMAND ${Python3_EXECUTABLE}
    ${PROJECT_SOURCE_DIR}/tests/examples/test_${file}.py ${ARGN})
  brg_set_test(${_name} mpi 180)
  set_tests_properties(${_name} PROPERTIES
    ENVIRONMENT "${BRG_TEST_ENV};${_env}" PROCESSORS 2)
endfunction()

add_test(NAME examples/plugin_op
  COMMAND plugin_op $<TARGET_FILE:plugin_hypot>)
brg_set_test(examples/plugin_op unit 120)
brg_example_test(small)
brg_example_test(bring_your_own)
if(TARGET brigade_tool)
  brg_example_test(tools)
  brg_example_test(trace)
endif()
foreach(_class Training Resuming Failing Real)
  brg_example_test(fashion_mnist ${_class})
endforeach()
brg_example_test(gpt)
if(BRG_HAVE_NCCL)
  brg_example_test(gpu)
  set_tests_properties(examples/gpu PROPERTIES
    LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77)
  set_property(TEST examples/gpu APPEND PROPERTY ENVIRONMENT
    BRG_BYO_CUDA=$<TARGET_FILE:byo_ranks_cuda>
    BRG_CUDA_FUNCTION=$<TARGET_FILE:cuda_function>)
endif()
if(BRG_HAVE_MPI)
  brg_example_test(kills)
  add_test(NAME examples/kills_50 COMMAND ${Python3_EXECUTABLE}
    ${PROJECT_SOURCE_DIR}/tests/examples/test_kills.py)
  brg_set_test(examples/kills_50 "mpi;slow" 900)
  set_tests_properties(examples/kills_50 PROPERTIES
    ENVIRONMENT "${BRG_TEST_ENV};${_env};BRG_KILLS=50")
  brg_long_test(examples/kills_50 180)
  set(_plugin pmix)
  if(BRG_MPI STREQUAL "mpich")
    set(_plugin pmi2)
  endif()
  add_test(NAME examples/slurm COMMAND
    ${PROJECT_SOURCE_DIR}/tests/slurm/run.sh ${PROJECT_BINARY_DIR} ${_plugin})
  brg_set_test(examples/slurm mpi 180)
  set_tests_properties(examples/slurm PROPERTIES SKIP_RETURN_CODE 77)
  set_property(TEST examples/slurm APPEND PROPERTY ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
endif()
