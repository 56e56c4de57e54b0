/* SPDX-License-Identifier: Apache-2.0
 * Symbol visibility and compiler attributes, the only place that names them. */
#ifndef BRG_EXPORT_H
#define BRG_EXPORT_H

#ifdef __cplusplus
#define BRG_BEGIN_DECLS extern "C" {
#define BRG_END_DECLS }
#else
#define BRG_BEGIN_DECLS
#define BRG_END_DECLS
#endif

#if defined(__GNUC__) || defined(__clang__)
#define BRG_API __attribute__((visibility("default")))
#define BRG_NODISCARD __attribute__((warn_unused_result))
#define BRG_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define BRG_API
#define BRG_NODISCARD
#define BRG_PRINTF(fmt, args)
#endif

#endif
