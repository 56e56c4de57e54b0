# brg_isa_source(<room> <source.c>...): compiles each source once per
# instruction set, as objects of their own, with
#   -DBRG_ISA=base | avx2 | avx512
# so that names can be pasted from it. All code of the project sees
# BRG_HAVE_ISA_AVX2 and BRG_HAVE_ISA_AVX512 where those objects exist (x86-64),
# so that a dispatcher knows what it may refer to. The variants are optimised
# harder than the rest of the library, except in Debug builds, and except the
# one for processors of before 2013, which shall be small.
set(BRG_ISA_LEVELS base)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(APPEND BRG_ISA_LEVELS avx2 avx512)
endif()
set(BRG_ISA_FLAGS_base "")
set(BRG_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
set(BRG_ISA_FLAGS_avx512
  -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
  -mprefer-vector-width=512)
foreach(_isa ${BRG_ISA_LEVELS})
  string(TOUPPER ${_isa} _upper)
  target_compile_definitions(brg_flags INTERFACE BRG_HAVE_ISA_${_upper}=1)
endforeach()

function(brg_isa_source room)
  foreach(_isa ${BRG_ISA_LEVELS})
    string(TOUPPER ${_isa} _upper)
    set(_effort -O3)
    if(_isa STREQUAL "base" AND NOT BRG_ISA_LEVELS STREQUAL "base")
      set(_effort -O2)
    endif()
    foreach(_source ${ARGN})
      get_filename_component(_stem ${_source} NAME_WE)
      set(_objects ${room}_${_stem}_${_isa})
      brg_room(${_objects})
      set_target_properties(${_objects} PROPERTIES BRG_ISA_LEVEL ${_isa})
      target_sources(${_objects} PRIVATE ${_source})
      target_compile_definitions(${_objects} PRIVATE
        BRG_ISA=${_isa} BRG_ISA_${_upper}=1)
      target_compile_options(${_objects} PRIVATE
        $<$<NOT:$<CONFIG:Debug>>:${_effort}> ${BRG_ISA_FLAGS_${_isa}})
    endforeach()
  endforeach()
endfunction()
