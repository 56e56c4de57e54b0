# Test discovery. A new file tests/<layer>/test_<unit>.c is a test:
#
#   test_<unit>.c       built with the static library (so that it may look
#                       inside) and run once; label unit
#   test_<unit>_mpi.c   built with brigade::mpi too, where there is one, and
#                       run under mpirun at 1, 2, 3 and 4 ranks; label mpi.
#                       The same holds for every test in tests/mpi.
#
#   cuda/test_<unit>.c  only with brigade::cuda, which it loads; label gpu
#   cuda/test_<unit>_mpi.c  with brigade::nccl too; at 1 and 2 ranks
#   nccl/test_<unit>.c  where brigade::nccl is built: its sources on made-up
#                       GPUs; label unit
#
# Targets tests_<layer> and unit_tests build those programs and no others.
#
# A line "brg-test: slow" in the file adds the label slow and a longer timeout;
# "brg-test: ranks 1 2 6" names other numbers of ranks; "brg-test: shrinks" has
# mpirun let ranks live when others die, where the MPI can.
set(BRG_TEST_ENV
  OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
  OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_vader_single_copy_mechanism=none
  LSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/support/lsan.supp:print_suppressions=0
  TSAN_OPTIONS=suppressions=${PROJECT_SOURCE_DIR}/tests/support/tsan.supp:halt_on_error=1)
if(EXISTS ${PROJECT_SOURCE_DIR}/scripts/mpirun.sh)
  if(MPIEXEC_EXECUTABLE)
    list(APPEND BRG_TEST_ENV MPIRUN=${MPIEXEC_EXECUTABLE})
  endif()
  set(BRG_MPIRUN ${PROJECT_SOURCE_DIR}/scripts/mpirun.sh -n)
else()
  set(BRG_MPIRUN ${MPIEXEC_EXECUTABLE} ${MPIEXEC_NUMPROC_FLAG})
endif()

# brg_set_test(<name> <label> <timeout in s>): what every test has in common.
# Sanitizers make everything slower.
function(brg_set_test name label timeout)
  if(BRG_SANITIZE)
    math(EXPR timeout "${timeout} * 4")
  endif()
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${timeout} LABELS "${label}" ENVIRONMENT "${BRG_TEST_ENV}")
endfunction()

# brg_long_test(<name> <s>): takes so long; the longest begin first, so that none
# is left to run alone at the end.
function(brg_long_test name seconds)
  set_tests_properties(${name} PROPERTIES COST ${seconds})
endfunction()

# brg_mpi_test(<name> <ranks> <command>...): a command under mpirun.
function(brg_mpi_test name ranks)
  add_test(NAME ${name} COMMAND ${BRG_MPIRUN} ${ranks} ${ARGN})
  set(_timeout 180)
  if(BRG_MPI STREQUAL "mpich" AND ranks GREATER 2)
    set(_timeout 600) # its waits do not give their core away
  endif()
  brg_set_test(${name} mpi ${_timeout})
  # Open MPI unloads its parts at the end, so no suppression knows their leaks.
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT ASAN_OPTIONS=detect_leaks=0)
  set_tests_properties(${name} PROPERTIES PROCESSORS ${ranks})
endfunction()

# brg_shrink_test(<name>): a test whose ranks die; of those that are left, the
# last one says so. Open MPI from 5 on.
function(brg_shrink_test name)
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT
    BRG_TEST_SHRINKS=1 "MPIRUN_OPTIONS=--with-ft ulfm")
  set_tests_properties(${name} PROPERTIES
    PASS_REGULAR_EXPRESSION "went on alone"
    FAIL_REGULAR_EXPRESSION "Failure!;Sanitizer")
endfunction()

# brg_gpu_test(<name> <target> <variable=value>...): settings of a test that is
# there already and needs a GPU: without one it says that it tested nothing,
# which counts as skipped.
function(brg_gpu_test name target)
  brg_set_test(${name} gpu 300)
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77)
  set_property(TEST ${name} APPEND PROPERTY ENVIRONMENT
    BRG_BACKEND_PATH=${PROJECT_BINARY_DIR} ${ARGN})
  add_dependencies(${target} brigade_cuda_shared)
endfunction()

function(brg_add_test_file file)
  get_filename_component(_unit ${file} NAME_WE)
  get_filename_component(_layer ${file} DIRECTORY)
  get_filename_component(_layer ${_layer} NAME)
  set(_target ${_layer}_${_unit})
  if(_layer STREQUAL "cuda" AND NOT BRG_HAVE_CUDA)
    return()
  endif()
  if(_layer STREQUAL "cuda" AND _unit MATCHES "_mpi$" AND NOT BRG_HAVE_NCCL)
    return()
  endif()
  if(_layer STREQUAL "nccl" AND NOT BRG_HAVE_NCCL)
    return()
  endif()
  if(_layer STREQUAL "bench" AND NOT TARGET CUDA::cupti)
    return()
  endif()
  set(_is_mpi FALSE)
  if(_unit MATCHES "_mpi$" OR _layer STREQUAL "mpi")
    set(_is_mpi TRUE)
    if(NOT TARGET brigade_mpi_static)
      return()
    endif()
  endif()
  add_executable(${_target} ${file})
  target_link_libraries(${_target} PRIVATE brg_test_support)
  if(NOT TARGET tests_${_layer})
    add_custom_target(tests_${_layer})
  endif()
  add_dependencies(tests_${_layer} ${_target})
  if(NOT _is_mpi AND NOT _layer STREQUAL "cuda")
    add_dependencies(unit_tests ${_target})
  endif()
  if(_layer STREQUAL "nccl")
    target_link_libraries(${_target} PRIVATE brg_nccl_fake)
  elseif(_layer STREQUAL "bench")
    target_sources(${_target} PRIVATE
      ${PROJECT_SOURCE_DIR}/bench/gpu/kernel_times.c
      ${PROJECT_SOURCE_DIR}/bench/gpu/kernel_report.c)
    target_include_directories(${_target} SYSTEM PRIVATE
      $<TARGET_PROPERTY:CUDA::cupti,INTERFACE_INCLUDE_DIRECTORIES>)
  elseif(_layer STREQUAL "cuda")
    target_include_directories(${_target} SYSTEM PRIVATE
      ${CUDAToolkit_INCLUDE_DIRS})
    if(TARGET CUDA::cupti)
      target_include_directories(${_target} SYSTEM PRIVATE
        $<TARGET_PROPERTY:CUDA::cupti,INTERFACE_INCLUDE_DIRECTORIES>)
      target_compile_definitions(${_target} PRIVATE
        BRG_TEST_CUPTI="$<TARGET_FILE:CUDA::cupti>")
    endif()
  endif()
  if(_is_mpi)
    target_link_libraries(${_target} PRIVATE brigade_mpi_static MPI::MPI_C)
    if(_layer STREQUAL "cuda")
      foreach(_ranks 1 2)
        brg_mpi_test(${_layer}/${_unit}_${_ranks} ${_ranks} $<TARGET_FILE:${_target}>)
        brg_gpu_test(${_layer}/${_unit}_${_ranks} ${_target})
      endforeach()
      add_dependencies(${_target} brigade_nccl_shared)
      return()
    endif()
    set(_worlds 1 2 3 4)
    file(STRINGS ${file} _line REGEX "brg-test: ranks [0-9 ]+")
    if(_line MATCHES "ranks ([0-9 ]+)")
      string(STRIP "${CMAKE_MATCH_1}" _worlds)
      separate_arguments(_worlds)
    endif()
    file(STRINGS ${file} _slow REGEX "brg-test: slow")
    file(STRINGS ${file} _shrinks REGEX "brg-test: shrinks")
    foreach(_ranks ${_worlds})
      brg_mpi_test(${_layer}/${_unit}_${_ranks} ${_ranks} $<TARGET_FILE:${_target}>)
      if(_slow)
        set_property(TEST ${_layer}/${_unit}_${_ranks} APPEND PROPERTY LABELS slow)
      endif()
      if(_shrinks AND BRG_MPI_ULFM_IN_mpi_ext)
        brg_shrink_test(${_layer}/${_unit}_${_ranks})
      endif()
    endforeach()
    return()
  endif()
  add_test(NAME ${_layer}/${_unit} COMMAND ${_target})
  if(_layer STREQUAL "cuda")
    brg_gpu_test(${_layer}/${_unit} ${_target})
    return()
  endif()
  file(STRINGS ${file} _slow REGEX "brg-test: slow")
  if(_slow)
    brg_set_test(${_layer}/${_unit} "unit;slow" 600)
  else()
    brg_set_test(${_layer}/${_unit} unit 120)
  endif()
endfunction()
