/* SPDX-License-Identifier: Apache-2.0
 * The IDX format (Y. LeCun, C. Cortes, C. Burges, "The MNIST database", file
 * formats): two zero bytes, a type, the number of dims, the sizes as 32-bit
 * big-endian numbers, then the elements, big-endian, row-major. */
#include <brigade/io.h>

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/tensor/shape.h"
#include "core/tensor/tensor.h"

/* Deflate cannot shrink more than this, so a header that promises more than
 * the file can hold is found before memory is asked for. */
#define MAX_DEFLATE_RATIO 1032
#define GZIP_BUFFER (128u << 10)

typedef struct idx_type {
    unsigned char code;
    unsigned char nbytes; /* in the file */
    brg_dtype dtype;
} idx_type;

static const idx_type types[] = {
    {0x08, 1, BRG_DTYPE_U8},  {0x09, 1, BRG_DTYPE_I32},
    {0x0B, 2, BRG_DTYPE_I32}, {0x0C, 4, BRG_DTYPE_I32},
    {0x0D, 4, BRG_DTYPE_F32}, {0x0E, 8, BRG_DTYPE_F64},
};

typedef struct reader {
    const char *path;
    gzFile file;
    uint64_t file_nbytes;
} reader;

static brg_status reader_open(reader *r, const char *path)
{
    *r = (reader){.path = path};
    BRG_CHECK_ARG(path && path[0], "brg_idx_load: the path is empty");
    struct stat info;
    errno = 0;
    if (stat(path, &info) != 0)
        return BRG_FAIL(BRG_ERR_IO, "brg_idx_load: cannot open %s: %s", path,
                        strerror(errno));
    if (!S_ISREG(info.st_mode))
        return BRG_FAIL(BRG_ERR_IO, "brg_idx_load: %s is not a regular file",
                        path);
    r->file_nbytes = (uint64_t)info.st_size;
    r->file = gzopen(path, "rb");
    if (!r->file)
        return BRG_FAIL(errno == 0 || errno == ENOMEM ? BRG_ERR_NOMEM
                                                      : BRG_ERR_IO,
                        "brg_idx_load: cannot open %s: %s", path,
                        errno ? strerror(errno) : "out of memory");
    gzbuffer(r->file, GZIP_BUFFER);
    return BRG_OK;
}

/* Exactly nbytes; `what` is what they are. */
static brg_status reader_get(reader *r, void *filled, size_t nbytes,
                             const char *what)
{
    size_t got = 0;
    while (got < nbytes) {
        size_t left = nbytes - got;
        unsigned ask = left < INT_MAX ? (unsigned)left : INT_MAX;
        int n = gzread(r->file, (char *)filled + got, ask);
        if (n <= 0)
            break;
        got += (size_t)n;
    }
    if (got == nbytes)
        return BRG_OK;
    int code;
    const char *text = gzerror(r->file, &code);
    if (code == Z_MEM_ERROR)
        return BRG_FAIL_NOMEM("decompression", GZIP_BUFFER);
    if (code != Z_OK && code != Z_BUF_ERROR)
        return BRG_FAIL(BRG_ERR_FORMAT, "brg_idx_load: %s is corrupt: %s",
                        r->path, text);
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "brg_idx_load: %s is truncated: expected %zu bytes of %s, "
                    "found %zu",
                    r->path, nbytes, what, got);
}

static uint64_t get_big_endian(const unsigned char *bytes, size_t n)
{
    uint64_t value = 0;
    for (size_t i = 0; i < n; i++)
        value = value << 8 | bytes[i];
    return value;
}

static const idx_type *find_type(unsigned char code)
{
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].code == code)
            return &types[i];
    return NULL;
}

static brg_status read_header(reader *r, const idx_type **type, int *ndim,
                              int64_t *shape)
{
    unsigned char magic[4], sizes[4 * BRG_MAX_DIMS];
    BRG_TRY(reader_get(r, magic, sizeof magic, "IDX header"));
    *type = find_type(magic[2]);
    if (magic[0] != 0 || magic[1] != 0 || !*type)
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "brg_idx_load: %s is not an IDX file: it starts with "
                        "%02x %02x %02x, expected 00 00 and a type of 08, 09 "
                        "or 0b to 0e",
                        r->path, magic[0], magic[1], magic[2]);
    *ndim = magic[3];
    if (*ndim > BRG_MAX_DIMS)
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "brg_idx_load: %s has %d dims, at most %d are known",
                        r->path, *ndim, BRG_MAX_DIMS);
    BRG_TRY(reader_get(r, sizes, 4 * (size_t)*ndim, "IDX sizes"));
    for (int i = 0; i < *ndim; i++)
        shape[i] = (int64_t)get_big_endian(sizes + 4 * i, 4);
    return BRG_OK;
}

/* The number of data bytes, if the file can hold as many. */
static brg_status data_size(const reader *r, const idx_type *type, int ndim,
                            const int64_t *shape, size_t *nbytes)
{
    int64_t numel;
    bool fits = brg__shape_numel(ndim, shape, &numel) &&
                brg__mul_size((size_t)numel, type->nbytes, nbytes);
    uint64_t limit =
        gzdirect(r->file) ? r->file_nbytes : r->file_nbytes * MAX_DEFLATE_RATIO;
    if (fits && *nbytes <= limit)
        return BRG_OK;
    char text[BRG_SHAPE_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "brg_idx_load: %s is truncated or corrupt: its header "
                    "says %s of %d bytes each, a file of %llu bytes cannot "
                    "hold that",
                    r->path, brg__shape_text(ndim, shape, text), type->nbytes,
                    (unsigned long long)r->file_nbytes);
}

/* Elements as the file has them, to the machine's order and our dtype: from
 * the last to the first, since they may grow in place. */
static void decode(const idx_type *type, void *data, size_t n)
{
    if (type->code == 0x08)
        return;
    size_t width = brg_dtype_size(type->dtype);
    for (size_t i = n; i-- > 0;) {
        const unsigned char *from = (unsigned char *)data + i * type->nbytes;
        uint64_t bits = get_big_endian(from, type->nbytes);
        if (type->code == 0x09)
            bits = (uint64_t)(int64_t)(int8_t)bits;
        if (type->code == 0x0B)
            bits = (uint64_t)(int64_t)(int16_t)bits;
        uint32_t low = (uint32_t)bits;
        memcpy((char *)data + i * width, width == 4 ? (void *)&low : &bits,
               width);
    }
}

static brg_status check_end(reader *r, size_t nbytes)
{
    char extra;
    int n = gzread(r->file, &extra, 1), code;
    const char *text = gzerror(r->file, &code);
    if (n == 0 && code == Z_OK)
        return BRG_OK;
    if (n <= 0) /* the checksum is wrong or cut off */
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "brg_idx_load: %s is truncated or corrupt: %s", r->path,
                        text);
    return BRG_FAIL(BRG_ERR_FORMAT,
                    "brg_idx_load: %s goes on after the expected %zu bytes of "
                    "data",
                    r->path, nbytes);
}

static brg_status load(reader *r, brg_tensor **out)
{
    const idx_type *type = NULL;
    int ndim = 0;
    int64_t shape[BRG_MAX_DIMS];
    size_t nbytes = 0;
    brg__layout layout;
    brg_tensor *t;
    BRG_TRY(read_header(r, &type, &ndim, shape));
    BRG_TRY(data_size(r, type, ndim, shape, &nbytes));
    BRG_TRY(
        brg__layout_init(&layout, "brg_idx_load", type->dtype, ndim, shape));
    BRG_TRY(brg__tensor_new(&t, &layout));
    void *data = t->storage->data;
    brg_status status = reader_get(r, data, nbytes, "data");
    if (status == BRG_OK)
        status = check_end(r, nbytes);
    if (status != BRG_OK) {
        brg_release(t);
        return status;
    }
    decode(type, data, (size_t)t->numel);
    *out = t;
    return BRG_OK;
}

brg_status brg_idx_load(brg_tensor **out, const char *path)
{
    BRG_CHECK_ARG(out, "brg_idx_load: out is NULL");
    *out = NULL;
    reader r;
    brg_status status = reader_open(&r, path);
    if (status == BRG_OK)
        status = load(&r, out);
    if (r.file)
        gzclose_r(r.file);
    return status;
}
