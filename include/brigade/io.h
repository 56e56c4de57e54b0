/* SPDX-License-Identifier: Apache-2.0
 * Files: data sets, tensors, checkpoints; and which sample comes when. */
#ifndef BRG_IO_H
#define BRG_IO_H

#include <brigade/optim.h>
#include <brigade/params.h>
#include <brigade/tensor.h>

BRG_BEGIN_DECLS

/* Errors of this header: BRG_ERR_IO if the system refuses (no such file, disk
 * full), BRG_ERR_FORMAT if the contents are wrong; both name the file, what
 * was expected and what was found. Objects: one thread at a time, unless said
 * otherwise. */

/* ---- IDX: the format of MNIST ------------------------------------------------ */

/* A whole IDX file, plain or compressed by gzip. *out: owned. Unsigned bytes
 * become u8, signed bytes and 16-bit integers i32, the others their own
 * dtype. */
BRG_API BRG_NODISCARD brg_status brg_idx_load(brg_tensor **out,
                                              const char *path);

/* Row i of `filled` becomes table[rows[i]] * scale + shift, converted to the
 * dtype of `filled`: how a batch is taken from a data set that is kept as
 * bytes. filled has n_rows rows of the shape of the table's; both row-major
 * and on the CPU; u8, i32, i64, f32 or f64. */
BRG_API BRG_NODISCARD brg_status brg_rows_read(brg_tensor *filled,
                                               const brg_tensor *table,
                                               const int64_t *rows,
                                               size_t n_rows, double scale,
                                               double shift);

/* ---- Text --------------------------------------------------------------------- */

/* A file of tokens, 1 or 2 bytes each (little-endian), mapped into memory.
 * Immutable: any thread may read. */
typedef struct brg_text brg_text;

/* *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_text_open(brg_text **out, const char *path,
                                               int bytes_per_token);
BRG_API void brg_text_close(brg_text *text);
/* In tokens. */
BRG_API int64_t brg_text_length(const brg_text *text);

/* Row b of `inputs` (B, T) becomes the T tokens from positions[b] on, row b of
 * `targets` those one later; either may be NULL. i64 or i32, or u8 for 1-byte
 * tokens; row-major, on the CPU. Each window must lie inside the text. */
BRG_API BRG_NODISCARD brg_status brg_text_read(const brg_text *text,
                                               brg_tensor *inputs,
                                               brg_tensor *targets,
                                               const int64_t *positions);

/* ---- Safetensors ---------------------------------------------------------------
 * One file of named tensors: 8 bytes with the length of the header, the header
 * in JSON, the data without gaps. */

/* A string of the file's __metadata__; borrowed. */
typedef struct brg_key_value {
    const char *key;
    const char *value;
} brg_key_value;

typedef struct brg_safetensors_info {
    const char *name;
    brg_dtype dtype;
    int ndim;
    int64_t shape[BRG_MAX_DIMS];
    size_t nbytes;
} brg_safetensors_info;

/* An open file, checked completely: header, shapes, offsets. */
typedef struct brg_safetensors brg_safetensors;

/* *out: owned. */
BRG_API BRG_NODISCARD brg_status brg_safetensors_open(brg_safetensors **out,
                                                      const char *path);
BRG_API void brg_safetensors_close(brg_safetensors *file);

BRG_API size_t brg_safetensors_count(const brg_safetensors *file);
/* The i-th tensor in the order of names; NULL past the last. Borrowed. */
BRG_API const brg_safetensors_info *
brg_safetensors_at(const brg_safetensors *file, size_t i);
/* By name; NULL if there is none. */
BRG_API const brg_safetensors_info *
brg_safetensors_find(const brg_safetensors *file, const char *name);

/* The i-th pair of __metadata__, NULL past the last; the value of one key,
 * NULL if there is none. Borrowed. */
BRG_API const brg_key_value *
brg_safetensors_metadata_at(const brg_safetensors *file, size_t i);
BRG_API const char *brg_safetensors_metadata(const brg_safetensors *file,
                                             const char *key);

/* One tensor into a new one (*out: owned), or into one of the same shape and
 * dtype. */
BRG_API BRG_NODISCARD brg_status brg_safetensors_load(
    brg_tensor **out, const brg_safetensors *file, const char *name);
BRG_API BRG_NODISCARD brg_status brg_safetensors_read(
    const brg_safetensors *file, const char *name, brg_tensor *filled);

/* Writes a file: under another name in the same folder, flushed to the disk,
 * then renamed, so that a reader sees the old file or the new one. */
BRG_API BRG_NODISCARD brg_status brg_safetensors_save(
    const char *path, const brg_named_tensor *tensors, size_t n_tensors,
    const brg_key_value *metadata, size_t n_metadata);

/* ---- Parameters ------------------------------------------------------------------ */

/* Writes all tensors of `params`, buffers included, under their names. */
BRG_API BRG_NODISCARD brg_status brg_params_save(const char *path,
                                                 const brg_params *params);

typedef struct brg_params_load_options {
    size_t struct_size;
    bool allow_missing;    /* a parameter that the file lacks stays */
    bool allow_unexpected; /* tensors of the file without a parameter */
} brg_params_load_options;

#define BRG_PARAMS_LOAD_OPTIONS_INIT BRG_INIT(brg_params_load_options)

/* Reads them back; also from a checkpoint, whose other tensors are passed
 * over. options may be NULL: names must match exactly. On failure nothing was
 * changed. */
BRG_API BRG_NODISCARD brg_status
brg_params_load(brg_params *params, const char *path,
                const brg_params_load_options *options);

/* ---- Sampler ----------------------------------------------------------------------
 * The samples 0..n_samples-1 in batches, each sample once an epoch. The order
 * follows from (seed, epoch) alone: batch g of an epoch holds the same samples
 * at any world size, and rank r takes its r-th slice. */
typedef struct brg_sampler brg_sampler;

typedef struct brg_sampler_options {
    size_t struct_size;
    int64_t n_samples;
    int64_t global_batch; /* samples of a batch, all ranks together */
    int rank;
    int world_size; /* 0: 1 */
    uint64_t seed;  /* of the order */
    bool shuffle;   /* false: in order */
    bool drop_last; /* leave out a last batch that is not full */
} brg_sampler_options;

#define BRG_SAMPLER_OPTIONS_INIT BRG_INIT(brg_sampler_options)

/* Where a sampler stands: the next batch. */
typedef struct brg_sampler_position {
    int64_t epoch;
    int64_t batch;
} brg_sampler_position;

/* One rank's part of a batch. Slices differ by one sample at most; when the
 * batch has fewer samples than there are ranks, n is 0 on some. */
typedef struct brg_batch {
    const int64_t *samples; /* n of them; borrowed until the next call */
    size_t n;
    size_t n_global; /* of all ranks */
    size_t first;    /* this slice's place within the global batch */
    /* n * world_size / n_global: the mean over ranks of weight * (mean loss of
     * the rank) is the mean over the samples of the global batch. */
    double weight;
    brg_sampler_position position;
} brg_batch;

/* *out: owned, standing at epoch 0, batch 0. */
BRG_API BRG_NODISCARD brg_status
brg_sampler_create(brg_sampler **out, const brg_sampler_options *options);
BRG_API void brg_sampler_destroy(brg_sampler *sampler);

/* Fills the next batch. False, once, after the last batch of an epoch: the
 * call after that gives the first batch of the next one. */
BRG_API bool brg_sampler_next(brg_sampler *sampler, brg_batch *filled);

BRG_API brg_sampler_position brg_sampler_tell(const brg_sampler *sampler);
BRG_API BRG_NODISCARD brg_status
brg_sampler_seek(brg_sampler *sampler, brg_sampler_position position);
/* Batches of an epoch; samples that a rank gets of one of them. */
BRG_API int64_t brg_sampler_n_batches(const brg_sampler *sampler);
BRG_API size_t brg_sampler_count(const brg_sampler *sampler, int64_t batch,
                                 int rank);

/* ---- Checkpoints --------------------------------------------------------------------
 * The whole state of a training run in one safetensors file; resumed from it,
 * the run goes on bit for bit. Rank 0 writes; every rank reads. */

/* A value of the user's own. */
typedef struct brg_checkpoint_item {
    const char *key;
    char value[128];
} brg_checkpoint_item;

typedef struct brg_checkpoint {
    size_t struct_size;
    brg_params *params;
    brg_optim *optim; /* may be NULL: no such state */
    int64_t step;
    brg_sampler_position position; /* in the order of the data */
    /* On load, the thread's generator keeps its seed and takes only the count
     * of draws: for ranks that have seeds of their own. */
    bool keep_seed;
    /* Written with their values; on load the keys are looked up and the values
     * filled. */
    brg_checkpoint_item *items;
    size_t n_items;
} brg_checkpoint;

#define BRG_CHECKPOINT_INIT BRG_INIT(brg_checkpoint)

/* Writes parameters, buffers, optimizer state, numbers, items and the state of
 * the random generator, as brg_safetensors_save does. */
BRG_API BRG_NODISCARD brg_status
brg_checkpoint_save(const char *path, const brg_checkpoint *checkpoint);
/* Puts all of it back: into params, optim, the generator and the struct. On
 * failure nothing was changed. */
BRG_API BRG_NODISCARD brg_status brg_checkpoint_load(brg_checkpoint *checkpoint,
                                                     const char *path);

BRG_END_DECLS

#endif
