/* SPDX-License-Identifier: Apache-2.0
 * Saved-tensor offload: a pair of pack hooks and where the bytes go.
 *
 * A stretch between begin and end has one store, kept by the hooks until its
 * last piece is gone. A disk store is one file, deleted as soon as it is open,
 * so that nothing is left whatever ends the process; pieces are appended, one
 * that is freed becomes a hole, and when none is left the file starts again
 * from nothing. Pieces may be read and freed by any thread. */
#include <brigade/offload.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/autograd/node.h"
#include "core/base/alloc.h"
#include "core/base/error.h"
#include "core/base/options.h"
#include "core/base/tracer.h"
#include "core/ops/convert.h"
#include "core/ops/op.h"
#include "core/tensor/shape.h"

typedef struct store {
    brg_offload_kind kind;
    size_t min_bytes;
    char *folder;
    int fd; /* -1: none */
    pthread_mutex_t lock;
    off_t end; /* of what has been written or is being */
    size_t n_live;
} store;

/* What stands for a saved tensor. */
typedef struct piece {
    brg_tensor *tensor; /* retained: the copy, or the tensor that stayed */
    bool stays;
    uint32_t version;   /* of one that stayed */
    brg__layout layout; /* on the CPU */
    brg_device device;  /* where the tensor was */
    size_t nbytes;
    off_t at; /* in the file */
} piece;

/* ---- The file -------------------------------------------------------------- */

static brg_status fail_io(const store *s, const char *what, int error)
{
    return BRG_FAIL(BRG_ERR_IO, "brg_offload: %s in folder %s: %s", what,
                    s->folder, strerror(error));
}

/* A file that no name leads to. */
static brg_status open_file(store *s)
{
#ifdef O_TMPFILE
    s->fd = open(s->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (s->fd >= 0)
        return BRG_OK;
#endif
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/brg_offload_XXXXXX", s->folder);
    if (n < 0 || (size_t)n >= sizeof path)
        return fail_io(s, "cannot make a file", ENAMETOOLONG);
    s->fd = mkostemp(path, O_CLOEXEC);
    if (s->fd < 0)
        return fail_io(s, "cannot make a file", errno);
    (void)unlink(path);
    return BRG_OK;
}

/* The place of n more bytes. */
static off_t take_place(store *s, size_t n)
{
    pthread_mutex_lock(&s->lock);
    off_t at = s->end;
    s->end += (off_t)n;
    s->n_live++;
    pthread_mutex_unlock(&s->lock);
    return at;
}

/* Its space on the disk is free at once where the file system knows holes,
 * otherwise with the last piece. */
static void give_place_back(store *s, size_t n, off_t at)
{
#ifdef FALLOC_FL_PUNCH_HOLE
    (void)!fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at,
                     (off_t)n);
#else
    (void)n;
    (void)at;
#endif
    pthread_mutex_lock(&s->lock);
    if (--s->n_live == 0) {
        s->end = 0;
        (void)!ftruncate(s->fd, 0);
    }
    pthread_mutex_unlock(&s->lock);
}

static brg_status write_all(const store *s, const char *from, size_t n,
                            off_t at)
{
    while (n > 0) {
        ssize_t done = pwrite(s->fd, from, n, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail_io(s, "cannot write a saved tensor",
                           done < 0 ? errno : ENOSPC);
        from += done;
        at += done;
        n -= (size_t)done;
    }
    return BRG_OK;
}

static brg_status read_all(const store *s, char *to, size_t n, off_t at)
{
    while (n > 0) {
        ssize_t done = pread(s->fd, to, n, at);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return fail_io(s, "cannot read a saved tensor", errno);
        if (done == 0)
            return BRG_FAIL(BRG_ERR_IO,
                            "brg_offload: the file in folder %s ends %zu "
                            "bytes before a saved tensor does",
                            s->folder, n);
        to += done;
        at += done;
        n -= (size_t)done;
    }
    return BRG_OK;
}

/* ---- Stores ------------------------------------------------------------------ */

static void store_destroy(void *user)
{
    store *s = user;
    if (s->fd >= 0)
        (void)close(s->fd);
    pthread_mutex_destroy(&s->lock);
    brg__mem_free(s->folder);
    brg__mem_free(s);
}

static brg_status store_new(store **out, const brg_offload_options *options)
{
    const char *folder = options->folder ? options->folder : getenv("TMPDIR");
    store *s = BRG__NEW(store);
    *out = s;
    if (!s)
        return BRG_ERR_NOMEM;
    s->fd = -1;
    s->kind = options->kind;
    s->min_bytes = options->min_bytes;
    (void)pthread_mutex_init(&s->lock, NULL);
    s->folder = brg__mem_strdup(folder && *folder ? folder : "/tmp");
    brg_status status = s->folder ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK && s->kind == BRG_OFFLOAD_DISK)
        status = open_file(s);
    if (status != BRG_OK)
        store_destroy(s);
    return status;
}

/* ---- The hooks ----------------------------------------------------------------- */

static void piece_free(void *packed, void *user)
{
    piece *p = packed;
    if (!p->tensor)
        give_place_back(user, p->nbytes, p->at);
    brg_release(p->tensor);
    brg__obj_free(p, sizeof *p);
}

static brg_status to_memory(piece *p, const brg_tensor *t)
{
    BRG_TRY(brg__tensor_new(&p->tensor, &p->layout));
    return brg__copy_now(p->tensor, t);
}

static brg_status to_disk(piece *p, store *s, brg_tensor *t)
{
    brg_tensor *flat = brg__contiguous_now(t), *own = NULL;
    if (!flat)
        return brg_error_code();
    if (t->device.type != BRG_DEVICE_CPU) {
        BRG_TRY(brg__tensor_new(&own, &p->layout));
        flat = own;
    }
    brg_status status = own ? brg__copy_now(own, t) : BRG_OK;
    if (status != BRG_OK) {
        brg_release(own);
        return status;
    }
    p->at = take_place(s, p->nbytes);
    status = write_all(s, brg__tensor_ptr(flat), p->nbytes, p->at);
    brg_release(own);
    if (status != BRG_OK)
        give_place_back(s, p->nbytes, p->at);
    return status;
}

static brg_status piece_pack(brg_tensor *t, void **packed, void *user)
{
    store *s = user;
    piece *p = brg__obj_alloc(sizeof *p, "an offloaded tensor");
    if (!p)
        return BRG_ERR_NOMEM;
    p->layout = brg__layout_row_major(t);
    p->layout.device = BRG_CPU;
    p->device = t->device;
    p->nbytes = brg_tensor_nbytes(t);
    p->stays = !t->storage || p->nbytes == 0 || p->nbytes < s->min_bytes ||
               brg__pack_source_is_leaf();
    brg_status status = BRG_OK;
    if (p->stays) {
        p->tensor = brg_retain(t);
        p->version = brg_tensor_version(t);
    } else if (s->kind == BRG_OFFLOAD_HOST_MEMORY) {
        status = to_memory(p, t);
    } else {
        status = to_disk(p, s, t);
    }
    if (status == BRG_OK) {
        *packed = p;
        return BRG_OK;
    }
    brg_release(p->tensor);
    brg__obj_free(p, sizeof *p);
    return status;
}

static brg_status check_unchanged(const piece *p)
{
    uint32_t now = brg_tensor_version(p->tensor);
    if (!p->stays || now == p->version)
        return BRG_OK;
    char text[BRG_TENSOR_TEXT_MAX];
    return BRG_FAIL(BRG_ERR_MODIFIED,
                    "a saved tensor (%s), needed for the gradient, has been "
                    "modified by an inplace operation: it is at version %u; "
                    "expected version %u instead",
                    brg__tensor_text(p->tensor, text), now, p->version);
}

/* From the CPU to the device that it was on. */
static brg_status bring_back(const piece *p, const brg_tensor *from,
                             brg_tensor **out)
{
    brg__layout layout = p->layout;
    brg_tensor *t;
    layout.device = p->device;
    BRG_TRY(brg__tensor_new(&t, &layout));
    brg_status status = brg__copy_now(t, from);
    if (status != BRG_OK) {
        brg_release(t);
        return status;
    }
    *out = brg__scope_adopt(t);
    return *out ? BRG_OK : brg_error_code();
}

static brg_status piece_unpack(void *packed, brg_tensor **out, void *user)
{
    const piece *p = packed;
    if (p->stays || (p->tensor && p->device.type == BRG_DEVICE_CPU)) {
        *out = p->tensor; /* lives as long as the piece */
        return check_unchanged(p);
    }
    if (p->tensor)
        return bring_back(p, p->tensor, out);
    brg_tensor *t;
    BRG_TRY(brg__tensor_new(&t, &p->layout));
    brg_status status = read_all(user, brg__tensor_ptr(t), p->nbytes, p->at);
    if (status != BRG_OK) {
        brg_release(t);
        return status;
    }
    if (p->device.type != BRG_DEVICE_CPU) {
        status = bring_back(p, t, out);
        brg_release(t);
        return status;
    }
    *out = brg__scope_adopt(t);
    return *out ? BRG_OK : brg_error_code();
}

/* ---- Public ---------------------------------------------------------------------- */

brg_status brg_offload_begin(const brg_offload_options *options)
{
    brg_offload_options o = BRG_OFFLOAD_OPTIONS_INIT;
    BRG_TRY(BRG_TAKE_OPTIONS(&o, options, "brg_offload_begin",
                             BRG_OFFLOAD_OPTIONS_INIT));
    BRG_CHECK_ARG(o.kind == BRG_OFFLOAD_HOST_MEMORY ||
                      o.kind == BRG_OFFLOAD_DISK,
                  "brg_offload_begin: kind is %d, expected "
                  "BRG_OFFLOAD_HOST_MEMORY or BRG_OFFLOAD_DISK",
                  (int)o.kind);
    /* Symbols have no memory that could be moved. */
    BRG_TRY(brg__tracer_outside("brg_offload_begin"));
    store *s;
    BRG_TRY(store_new(&s, &o));
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = piece_pack;
    hooks.unpack = piece_unpack;
    hooks.free = piece_free;
    hooks.destroy = store_destroy;
    hooks.user = s;
    if (o.kind == BRG_OFFLOAD_DISK)
        hooks.split = BRG_PACK_SPLIT_EACH;
    brg_status status = brg_pack_hooks_push(&hooks);
    if (status != BRG_OK)
        store_destroy(s);
    return status;
}

brg_status brg_offload_end(void)
{
    const brg_pack_hooks *hooks = brg__pack_hooks_innermost();
    if (!hooks || hooks->pack != piece_pack)
        return BRG_FAIL(BRG_ERR_STATE, "brg_offload_end: %s",
                        hooks ? "other pack hooks were pushed since its begin "
                                "and are still in force"
                              : "no offload has begun on this thread");
    return brg_pack_hooks_pop();
}
