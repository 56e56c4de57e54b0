/* SPDX-License-Identifier: Apache-2.0
 * Ends one reading of ops.def: forgets the row macros. Included again and
 * again, so it has no guard. */
#undef BRG_UNARY
#undef BRG_BINARY
#undef BRG_TERNARY
#undef BRG_KERNEL
#undef BRG_KERNEL_NOGRAD
#undef BRG_VIEW
