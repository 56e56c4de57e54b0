/* SPDX-License-Identifier: Apache-2.0
 * Which instruction set the kernels of brg_isa_source() files use. */
#ifndef BRG_CORE_OPS_ISA_H
#define BRG_CORE_OPS_ISA_H

typedef enum brg__isa_level {
    BRG__ISA_BASE,
    BRG__ISA_AVX2,
    BRG__ISA_AVX512
} brg__isa_level;

/* The best level that the processor and this build have, at most BRG_ISA of
 * the environment. Decided at the first call. */
brg__isa_level brg__isa(void);

/* Pastes the level's suffix: BRG__ISA_NAME(brg__kernels) is
 * brg__kernels_avx2 in the avx2 objects. */
#define BRG__ISA_PASTE2(name, isa) name##_##isa
#define BRG__ISA_PASTE(name, isa) BRG__ISA_PASTE2(name, isa)
#define BRG__ISA_NAME(name) BRG__ISA_PASTE(name, BRG_ISA)

/* The object `name` of the level in use; each level's is declared extern. */
#if defined(BRG_HAVE_ISA_AVX512) && defined(BRG_HAVE_ISA_AVX2)
#define BRG__ISA_PICK(name)                                                    \
    (brg__isa() == BRG__ISA_AVX512 ? &name##_avx512                            \
     : brg__isa() == BRG__ISA_AVX2 ? &name##_avx2                              \
                                   : &name##_base)
#else
#define BRG__ISA_PICK(name) (&name##_base)
#endif

/* Before a loop: no iteration reads what another writes (the arrays are apart
 * or the same). Other compilers find out when the loop is entered. */
#if defined(__GNUC__) && !defined(__clang__)
#define BRG__INDEPENDENT _Pragma("GCC ivdep")
#else
#define BRG__INDEPENDENT
#endif

#endif
