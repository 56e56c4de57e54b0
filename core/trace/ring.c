/* SPDX-License-Identifier: Apache-2.0
 * Writing and reading of records; marks; lines of text. See ring.h. */
#include "core/trace/ring.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <brigade/ext/backend.h>

#include "core/base/alloc.h"
#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"

_Static_assert(sizeof(brg_trace_record) == 8 * BRG__RECORD_WORDS,
               "a record is 64 bytes");

_Static_assert(sizeof(brg__record_place) == BRG_PLACE_NBYTES,
               "what backends give");

#define MAX_RECORDS ((size_t)1 << 26)

_Atomic bool brg__record_is_on = true;

static _Alignas(64) brg__record_slot built_in[BRG__RECORD_BUILT_IN];
static char built_in_text[BRG__RECORD_TEXT];

static brg__record_ring process = {.slots = built_in,
                                   .mask = BRG__RECORD_BUILT_IN - 1,
                                   .lock = PTHREAD_MUTEX_INITIALIZER,
                                   .text = built_in_text,
                                   .text_size = sizeof built_in_text,
                                   .rank = -1};

static _Thread_local brg__record_ring *adopted;

/* ---- Rings ------------------------------------------------------------------ */

static void read_environment(void)
{
    int64_t n = brg__env_int(BRG__ENV_TRACE_RECORDS);
    atomic_store(&brg__record_is_on, brg__env_int(BRG__ENV_TRACE) != 0);
    if (n > 0 && brg_trace_set_size((size_t)n) != BRG_OK) {
        brg__log(BRG_LOG_WARN, "trace", "%s", brg_error_message());
        brg_error_clear();
    }
    brg__record_init_files();
}

static pthread_once_t is_read = PTHREAD_ONCE_INIT;

brg__record_ring *brg__record_process(void)
{
    pthread_once(&is_read, read_environment);
    return &process;
}

brg__record_ring *brg__record_mine(void)
{
    return adopted ? adopted : brg__record_process();
}

void brg__record_adopt(brg__record_ring *ring)
{
    adopted = ring;
}

brg_status brg__record_ring_create(brg__record_ring **out, size_t n,
                                   size_t text_size)
{
    size_t nbytes = sizeof(brg__record_ring) + BRG_CACHE_LINE +
                    n * sizeof(brg__record_slot) + text_size;
    *out = NULL;
    char *memory = brg__block_alloc(nbytes, BRG_CACHE_LINE, "a trace");
    if (!memory)
        return BRG_ERR_NOMEM;
    memset(memory, 0, nbytes);
    brg__record_ring *ring = (void *)memory;
    size_t at = brg__round_up(sizeof *ring, BRG_CACHE_LINE);
    *ring =
        (brg__record_ring){.slots = (void *)(memory + at),
                           .mask = n - 1,
                           .text = memory + at + n * sizeof(brg__record_slot),
                           .text_size = text_size,
                           .rank = -1};
    pthread_mutex_init(&ring->lock, NULL);
    *out = ring;
    return BRG_OK;
}

void brg__record_ring_destroy(brg__record_ring *ring)
{
    if (!ring)
        return;
    pthread_mutex_destroy(&ring->lock);
    brg__block_free(ring,
                    sizeof *ring + BRG_CACHE_LINE +
                        (ring->mask + 1) * sizeof(brg__record_slot) +
                        ring->text_size,
                    BRG_CACHE_LINE);
}

static void use_slots(brg__record_slot *slots, size_t n)
{
    if (process.slots != built_in)
        brg__block_free(process.slots,
                        (process.mask + 1) * sizeof(brg__record_slot),
                        BRG_CACHE_LINE);
    memset(slots, 0, n * sizeof *slots);
    process.slots = slots;
    process.mask = n - 1;
    atomic_store(&process.n, 0);
}

brg_status brg_trace_set_size(size_t n_records)
{
    BRG_CHECK_ARG(n_records <= MAX_RECORDS,
                  "brg_trace_set_size: %zu records, expected at most %zu",
                  n_records, MAX_RECORDS);
    size_t n = 1;
    while (n < n_records)
        n *= 2;
    n = n_records == 0 ? BRG__RECORD_BUILT_IN : n;
    brg__record_slot *slots = built_in;
    if (n > BRG__RECORD_BUILT_IN)
        slots = brg__block_alloc(n * sizeof *slots, BRG_CACHE_LINE, "a trace");
    if (!slots)
        return BRG_ERR_NOMEM;
    use_slots(slots, n);
    return BRG_OK;
}

void brg_trace_set_enabled(bool is_enabled)
{
    (void)brg__record_process(); /* the environment comes first */
    atomic_store(&brg__record_is_on, is_enabled);
}

bool brg_trace_is_enabled(void)
{
    (void)brg__record_process();
    return atomic_load(&brg__record_is_on);
}

/* ---- Records ---------------------------------------------------------------- */

uint64_t brg__record_now(const brg__record_ring *ring)
{
    return ring && ring->clock ? *ring->clock : brg__clock_quick_ns();
}

#define AHEAD 4 /* slots, whose memory is fetched by the time it is needed */

static uint16_t this_thread(void)
{
    static _Atomic uint16_t n_threads;
    /* 1 +; the model spares each record a call of the linker's. */
    static _Thread_local uint32_t number
        __attribute__((tls_model("initial-exec")));
    if (number == 0)
        number = 1u + atomic_fetch_add(&n_threads, 1);
    return (uint16_t)(number - 1);
}

/* A record as words. Its narrow fields have just been written: read together
 * they would have to wait for the memory, so they are put together here. */
static inline void pack(uint64_t *words, const brg_trace_record *r)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    words[0] = r->time_ns;
    words[1] = r->number;
    words[2] = (uint64_t)r->kind | (uint64_t)r->coll << 8 |
               (uint64_t)r->group << 16 | (uint64_t)r->reducer << 24 |
               (uint64_t)(uint16_t)r->bucket << 32 | (uint64_t)r->thread << 48;
    words[3] = r->u.call.seq;
    words[4] = r->u.call.nbytes;
    words[5] = r->u.call.span_ns;
    words[6] = (uint32_t)r->u.call.param | (uint64_t)(uint32_t)r->u.call.peer
                                               << 32;
    words[7] = (uint64_t)r->u.call.value;
#else
    memcpy(words, r, sizeof *r);
#endif
}

static inline void store(brg__record_slot slot, const uint64_t *words)
{
    atomic_store_explicit(&slot[1], 0, memory_order_relaxed);
    atomic_store_explicit(&slot[0], words[0], memory_order_release);
#pragma GCC unroll 8
    for (int i = 2; i < BRG__RECORD_WORDS; i++)
        atomic_store_explicit(&slot[i], words[i], memory_order_release);
    atomic_store_explicit(&slot[1], words[1], memory_order_release);
}

/* Where other ranks find the last record of its kind. */
static brg__record_slot *part_of(brg__record_place *place, uint8_t kind)
{
    if (kind <= BRG_TRACE_COPY)
        return &place->gradient;
    bool is_mark = kind == BRG_TRACE_BEGIN || kind == BRG_TRACE_END ||
                   kind == BRG_TRACE_MARK;
    return is_mark ? &place->mark : &place->last;
}

/* Locked, as the group whose memory that is may go on another thread. */
static void store_in_ring(brg__record_ring *ring, uint8_t kind,
                          const uint64_t *words)
{
    if (!atomic_load_explicit(&ring->place, memory_order_relaxed) ||
        kind == BRG_TRACE_MARK)
        return;
    pthread_mutex_lock(&ring->lock);
    brg__record_place *place = atomic_load(&ring->place);
    if (place)
        store(*part_of(place, kind), words);
    pthread_mutex_unlock(&ring->lock);
}

/* A function of its own to each caller: what that knows of the record then
 * needs no memory. */
static inline __attribute__((always_inline)) void
put(brg__record_ring *ring, brg__record_place *place, brg_trace_record *record)
{
    if (!atomic_load_explicit(&brg__record_is_on, memory_order_relaxed))
        return;
    uint64_t at = atomic_fetch_add_explicit(&ring->n, 1, memory_order_relaxed);
    record->number = at + 1;
    if (record->time_ns == 0)
        record->time_ns = brg__record_now(ring);
    record->thread = this_thread();
    uint64_t words[BRG__RECORD_WORDS];
    pack(words, record);
    __builtin_prefetch(ring->slots[(at + AHEAD) & ring->mask], 1);
    store(ring->slots[at & ring->mask], words);
    if (place)
        store(*part_of(place, record->kind), words);
    else
        store_in_ring(ring, record->kind, words);
}

void brg__record_put(brg__record_ring *ring, brg__record_place *place,
                     brg_trace_record *record)
{
    put(ring, place, record);
}

void brg__record_put_gradient(brg__record_ring *ring, brg__record_place *place,
                              brg_trace_kind kind,
                              const brg__record_gradient *gradient)
{
    brg_trace_record record = {.kind = (uint8_t)kind,
                               .coll = UINT8_MAX,
                               .group = gradient->group,
                               .reducer = gradient->reducer,
                               .bucket = gradient->bucket};
    record.u.call.nbytes = gradient->nbytes;
    record.u.call.value = gradient->value;
    record.u.call.param = (int32_t)gradient->param;
    record.u.call.peer = -1;
    put(ring, place, &record);
}

bool brg__record_read(brg__record_slot *slot, brg_trace_record *filled)
{
    uint64_t words[BRG__RECORD_WORDS];
    words[1] = atomic_load_explicit(&(*slot)[1], memory_order_acquire);
    if (words[1] == 0)
        return false;
    words[0] = atomic_load_explicit(&(*slot)[0], memory_order_acquire);
    for (int i = 2; i < BRG__RECORD_WORDS; i++)
        words[i] = atomic_load_explicit(&(*slot)[i], memory_order_acquire);
    if (atomic_load_explicit(&(*slot)[1], memory_order_relaxed) != words[1])
        return false;
    memcpy(filled, words, sizeof words);
    return true;
}

size_t brg_trace_copy(brg_trace_record *filled, size_t n)
{
    brg__record_ring *ring = brg__record_mine();
    uint64_t end = atomic_load(&ring->n);
    uint64_t n_there = end <= ring->mask ? end : ring->mask + 1;
    uint64_t at = end - (n < n_there ? n : n_there);
    size_t n_filled = 0;
    for (; filled && at < end; at++)
        if (brg__record_read(&ring->slots[at & ring->mask],
                             &filled[n_filled]) &&
            filled[n_filled].number == at + 1)
            n_filled++;
    return n_filled;
}

static const char *const kind_names[] = {
#define KIND_NAME(name, value, text) [value] = text,
    BRG_TRACE_KIND_MAP(KIND_NAME)
#undef KIND_NAME
};

const char *brg_trace_kind_name(brg_trace_kind kind)
{
    size_t i = (size_t)kind;
    bool is_one = i > 0 && i < sizeof kind_names / sizeof *kind_names;
    return is_one ? kind_names[i] : "unknown";
}

/* ---- Marks ------------------------------------------------------------------- */

static void put_mark(brg_trace_kind kind, const char *name)
{
    if (!name ||
        !atomic_load_explicit(&brg__record_is_on, memory_order_relaxed))
        return;
    brg__record_ring *ring = brg__record_mine();
    brg_trace_record record = {.kind = (uint8_t)kind, .bucket = -1};
    size_t n = strnlen(name, BRG_TRACE_TEXT_MAX - 1);
    memcpy(record.u.text, name, n);
    brg__record_put(ring, NULL, &record);
}

void brg_trace_begin(const char *name)
{
    put_mark(BRG_TRACE_BEGIN, name);
}

void brg_trace_end(const char *name)
{
    put_mark(BRG_TRACE_END, name);
}

void brg_trace_mark(const char *name)
{
    put_mark(BRG_TRACE_MARK, name);
}

/* ---- Text -------------------------------------------------------------------- */

void brg__record_define(brg__record_ring *ring, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    if (n <= 0)
        return;
    size_t size = (size_t)n < sizeof line - 1 ? (size_t)n : sizeof line - 2;
    for (size_t i = 0; i < size; i++)
        if (line[i] == '\n' || line[i] == '\r')
            line[i] = ' ';
    line[size++] = '\n';
    pthread_mutex_lock(&ring->lock);
    size_t at = atomic_load(&ring->n_text);
    if (size > ring->text_size - at) {
        at = 0;
        atomic_store(&ring->n_text, 0);
    }
    if (size <= ring->text_size) {
        memcpy(ring->text + at, line, size);
        atomic_store_explicit(&ring->n_text, at + size, memory_order_release);
    }
    pthread_mutex_unlock(&ring->lock);
}

bool brg__record_find(brg__record_ring *ring, const char *begin, char *text,
                      size_t size)
{
    size_t n_begin = strlen(begin);
    bool is_found = false;
    pthread_mutex_lock(&ring->lock);
    size_t n = atomic_load(&ring->n_text);
    for (size_t at = 0; at < n;) {
        const char *line = ring->text + at;
        const char *end = memchr(line, '\n', n - at); /* each line has one */
        size_t length = end ? (size_t)(end - line) : n - at;
        if (length >= n_begin && memcmp(line, begin, n_begin) == 0) {
            snprintf(text, size, "%.*s", (int)(length - n_begin),
                     line + n_begin);
            is_found = true;
        }
        at += length + 1;
    }
    pthread_mutex_unlock(&ring->lock);
    return is_found;
}

/* ---- Groups ------------------------------------------------------------------- */

uint8_t brg__record_join(brg__record_ring *ring, const char *backend, int rank,
                         int world_size, brg__record_place *place)
{
    uint8_t number = (uint8_t)atomic_fetch_add(&ring->n_groups, 1);
    pthread_mutex_lock(&ring->lock);
    if (ring->rank < 0 || (ring->world_size == 1 && world_size > 1)) {
        ring->rank = rank;
        ring->world_size = world_size;
    }
    if (!atomic_load(&ring->place))
        atomic_store(&ring->place, place);
    pthread_mutex_unlock(&ring->lock);
    brg__record_define(ring, "group\t%u\t%s\t%d\t%d", number, backend, rank,
                       world_size);
    return number;
}

void brg__record_leave(brg__record_ring *ring, brg__record_place *place)
{
    pthread_mutex_lock(&ring->lock);
    if (atomic_load(&ring->place) == place)
        atomic_store(&ring->place, NULL);
    pthread_mutex_unlock(&ring->lock);
}
