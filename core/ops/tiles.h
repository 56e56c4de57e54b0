/* SPDX-License-Identifier: Apache-2.0
 * Walking several tensors together, tile by tile.
 *
 * The operands are broadcast to one shape; dims that all of them step through
 * alike are merged. The walk goes in row-major order over tiles of at most
 * BRG__TILE_BYTES of compute elements. A tile is either a piece of one row
 * (the last merged dim), or several whole rows when rows are short. For each
 * tile an operand is a plain array of compute elements: its own memory where
 * that is what lies there, else a tile buffer that is gathered and converted.
 *
 *     brg__tiles t;
 *     brg__tiles_init(&t, ndim, shape, type);
 *     brg__tiles_add(&t, a); brg__tiles_add(&t, out);    operands 0, 1
 *     for (brg__tiles_begin(&t); t.n > 0; brg__tiles_next(&t)) {
 *         const float *x = brg__tiles_read(&t, 0, buffer_0);
 *         float *y = brg__tiles_target(&t, 1, buffer_1);
 *         ... t.n elements ...
 *         brg__tiles_write(&t, 1, y);
 *     }
 *
 * Used by the pointwise ops and by the interpreter of fused groups, which
 * prepares a walk once and starts it often, on other memory of the same
 * layouts. */
#ifndef BRG_CORE_OPS_TILES_H
#define BRG_CORE_OPS_TILES_H

#include "core/ops/convert.h"

#define BRG__TILE_BYTES 4096
#define BRG__TILES_MAX 24 /* operands */

/* A tile buffer: one per operand that may need it. */
typedef union brg__tile_buffer {
    _Alignas(64) char bytes[BRG__TILE_BYTES];
} brg__tile_buffer;

typedef struct brg__tile_operand {
    char *at;                /* first element of the tile's first row */
    char *start;             /* of the tile itself */
    const void *filled_from; /* what the buffer repeats, if it does */
    size_t n_filled;
    int64_t stride[BRG_MAX_DIMS]; /* in elements; 0 where broadcast */
    brg__load_fn load;
    brg__store_fn store;
    uint8_t item;
    bool is_native;
    bool is_linear; /* row-major over the merged shape */
    bool is_scalar; /* one element */
} brg__tile_operand;

typedef struct brg__tiles {
    size_t n; /* elements of the tile; 0: the walk is over */
    int ndim; /* merged, >= 1 */
    int n_operands;
    brg__ctype type;
    bool has_short_rows;
    size_t max_n;
    int64_t shape[BRG_MAX_DIMS];
    int64_t index[BRG_MAX_DIMS]; /* of the tile's first row */
    int64_t column;              /* where in its row the tile starts */
    int64_t rows;                /* in all */
    int64_t rows_left;           /* from the tile's first row on */
    const brg__convert_kernels *convert;
    brg__tile_operand operand[BRG__TILES_MAX];
} brg__tiles;

void brg__tiles_init(brg__tiles *t, int ndim, const int64_t *shape,
                     brg__ctype type);
/* The tensor, whose shape must broadcast to that of init. */
void brg__tiles_add(brg__tiles *t, const brg_tensor *tensor);
void brg__tiles_begin(brg__tiles *t);
void brg__tiles_next(brg__tiles *t);

/* begin in two parts: prepare once, and start each time, before which operand
 * k may be moved to another tensor of the same layout. */
void brg__tiles_prepare(brg__tiles *t);
void brg__tiles_start(brg__tiles *t);
void brg__tiles_move(brg__tiles *t, int k, const brg_tensor *tensor);
/* After prepare: the operand is one array of compute elements in row-major
 * order. */
bool brg__tiles_is_direct(const brg__tiles *t, int k);

/* `buffer` has room for a tile. */
const void *brg__tiles_read(brg__tiles *t, int k, void *buffer);
void *brg__tiles_target(brg__tiles *t, int k, void *buffer);
void brg__tiles_write(brg__tiles *t, int k, const void *values);

#endif
