# Interface target with the language level, warnings and sanitizers that all
# of the project's own code is compiled with.
add_library(brg_flags INTERFACE)
target_compile_features(brg_flags INTERFACE c_std_11)
# A compiler cache may hand the compiler paths relative to the build folder.
file(RELATIVE_PATH up ${PROJECT_BINARY_DIR} ${PROJECT_SOURCE_DIR}/)
target_compile_definitions(brg_flags INTERFACE _GNU_SOURCE BRG_DEBUG=${BRG_DEBUG})
# For C alone: nvcc has words of its own.
foreach(_flag
    $<$<AND:$<CONFIG:Release>,$<NOT:$<BOOL:$<TARGET_PROPERTY:BRG_ISA_LEVEL>>>>:-O2>
    # Nobody unwinds through C; the tables are a tenth of the library.
    $<$<CONFIG:Release>:-fno-asynchronous-unwind-tables>
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes
    -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast
    -fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=
    -fmacro-prefix-map=${up}= # __FILE__ as in the repository
    $<$<BOOL:${BRG_WERROR}>:-Werror>
    # clang: a loop that it could not vectorise as asked is no error.
    $<$<C_COMPILER_ID:Clang>:-Wno-pass-failed>)
  target_compile_options(brg_flags INTERFACE $<$<COMPILE_LANGUAGE:C>:${_flag}>)
endforeach()
if(BRG_DEBUG GREATER 0) # asserts stay, in Release builds too
  target_compile_options(brg_flags INTERFACE -UNDEBUG)
endif()
target_include_directories(brg_flags INTERFACE
  ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/include ${PROJECT_BINARY_DIR}/include)
if(BRG_SANITIZE)
  list(JOIN BRG_SANITIZE "," _sanitizers)
  target_compile_options(brg_flags INTERFACE
    -fsanitize=${_sanitizers} -fno-omit-frame-pointer -fno-sanitize-recover=all -g)
  target_link_options(brg_flags INTERFACE -fsanitize=${_sanitizers})
endif()
