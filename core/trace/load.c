/* SPDX-License-Identifier: Apache-2.0
 * Files of records, read back; nothing in them is trusted. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/array.h"
#include "core/trace/ring.h"

/* 73 years, so that differences and sums of a few times fit. */
#define MAX_TIME ((uint64_t)1 << 61)

typedef struct name {
    uint64_t key; /* group, reducer, parameter */
    const char *text;
} name;

struct brg_trace {
    brg_trace_header header;
    brg_trace_record *records;
    size_t n;
    char *text; /* lines, each ended by a zero */
    const char *error;
    BRG__ARRAY(name) names; /* by key; of equal ones the last counts */
};

static uint64_t key_of(unsigned group, unsigned reducer, unsigned param)
{
    return (uint64_t)(group & 255u) << 40 | (uint64_t)(reducer & 255u) << 32 |
           param;
}

/* ---- Reading --------------------------------------------------------------------- */

static brg_status check_header(const brg_trace_header *h, uint64_t n_bytes,
                               const char *path)
{
    if (memcmp(h->magic, "BRGTRACE", 8) != 0)
        return BRG_FAIL(BRG_ERR_FORMAT, "%s: not a trace of Brigade", path);
    if (h->version != BRG_TRACE_VERSION ||
        h->record_size != sizeof(brg_trace_record))
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "%s: version %u with records of %u bytes, expected %d "
                        "with %zu",
                        path, h->version, h->record_size, BRG_TRACE_VERSION,
                        sizeof(brg_trace_record));
    if (h->time_ns > MAX_TIME || h->wall_ns < 0 ||
        (uint64_t)h->wall_ns > MAX_TIME)
        return BRG_FAIL(BRG_ERR_FORMAT, "%s: its time is %llu", path,
                        (unsigned long long)h->time_ns);
    uint64_t left = n_bytes - sizeof *h;
    if (h->n_records > left / sizeof(brg_trace_record) ||
        h->n_text != left - h->n_records * sizeof(brg_trace_record))
        return BRG_FAIL(BRG_ERR_FORMAT,
                        "%s: %llu bytes, but the header tells of %llu records "
                        "and %llu bytes of text",
                        path, (unsigned long long)n_bytes,
                        (unsigned long long)h->n_records,
                        (unsigned long long)h->n_text);
    return BRG_OK;
}

static brg_status read_bytes(FILE *file, void *filled, size_t n,
                             const char *path)
{
    if (n == 0 || fread(filled, n, 1, file) == 1)
        return BRG_OK;
    return BRG_FAIL(BRG_ERR_FORMAT, "%s: ends too early", path);
}

static brg_status read_file(brg_trace *t, FILE *file, const char *path)
{
    struct stat info;
    if (fstat(fileno(file), &info) != 0 || !S_ISREG(info.st_mode))
        return BRG_FAIL(BRG_ERR_IO, "%s: not a file", path);
    BRG_TRY(read_bytes(file, &t->header, sizeof t->header, path));
    BRG_TRY(check_header(&t->header, (uint64_t)info.st_size, path));
    size_t n = (size_t)t->header.n_records;
    size_t n_text = (size_t)t->header.n_text;
    t->records =
        brg__mem_alloc_array(n + 1, sizeof *t->records, "records of a trace");
    t->text = brg__mem_alloc(n_text + 1, "the text of a trace");
    if (!t->records || !t->text)
        return BRG_ERR_NOMEM;
    BRG_TRY(read_bytes(file, t->records, n * sizeof *t->records, path));
    return read_bytes(file, t->text, n_text, path);
}

/* Those that were not being written; marks end in a zero. */
static brg_status keep_valid(brg_trace *t, const char *path)
{
    for (size_t i = 0; i < t->header.n_records; i++) {
        brg_trace_record *r = &t->records[i];
        if (r->number == 0)
            continue;
        if (r->time_ns > MAX_TIME)
            return BRG_FAIL(BRG_ERR_FORMAT, "%s: record %zu: its time is %llu",
                            path, i, (unsigned long long)r->time_ns);
        if (r->kind >= BRG_TRACE_BEGIN && r->kind <= BRG_TRACE_MARK)
            r->u.text[BRG_TRACE_TEXT_MAX - 1] = '\0';
        t->records[t->n++] = *r;
    }
    return BRG_OK;
}

static int compare_names(const void *a, const void *b)
{
    const name *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return x->text < y->text ? -1 : x->text > y->text;
}

static brg_status take_line(brg_trace *t, const char *line)
{
    unsigned group, reducer, param;
    int at = 0;
    if (strncmp(line, "error\t", 6) == 0)
        t->error = line + 6;
    if (sscanf(line, "param\t%u\t%u\t%u\t%n", &group, &reducer, &param, &at) !=
            3 ||
        at == 0)
        return BRG_OK;
    name entry = {key_of(group, reducer, param), line + at};
    return brg__array_push(&t->names, entry);
}

static brg_status read_lines(brg_trace *t)
{
    size_t n = (size_t)t->header.n_text;
    for (size_t at = 0; at < n;) {
        char *end = memchr(t->text + at, '\n', n - at);
        if (end)
            *end = '\0';
        size_t length = strlen(t->text + at);
        BRG_TRY(take_line(t, t->text + at));
        at = end ? (size_t)(end - t->text) + 1 : at + length + 1;
    }
    if (t->names.n)
        qsort(t->names.at, t->names.n, sizeof(name), compare_names);
    return BRG_OK;
}

brg_status brg_trace_load(brg_trace **out, const char *path)
{
    BRG_CHECK_ARG(out, "brg_trace_load: out is NULL");
    *out = NULL;
    BRG_CHECK_ARG(path, "brg_trace_load: the path is NULL");
    FILE *file = fopen(path, "rb");
    if (!file)
        return BRG_FAIL(BRG_ERR_IO, "%s: %s", path, strerror(errno));
    brg_status status = BRG_ERR_NOMEM;
    brg_trace *t = BRG__NEW(brg_trace);
    if (t)
        status = read_file(t, file, path);
    (void)fclose(file);
    if (status == BRG_OK)
        status = keep_valid(t, path);
    if (status == BRG_OK)
        status = read_lines(t);
    if (status != BRG_OK) {
        brg_trace_free(t);
        return status;
    }
    *out = t;
    return BRG_OK;
}

void brg_trace_free(brg_trace *t)
{
    if (!t)
        return;
    brg__mem_free(t->records);
    brg__mem_free(t->text);
    brg__array_deinit(&t->names);
    brg__mem_free(t);
}

/* ---- Queries ---------------------------------------------------------------------- */

const brg_trace_header *brg_trace_get_header(const brg_trace *t)
{
    return t ? &t->header : NULL;
}

const brg_trace_record *brg_trace_records(const brg_trace *t, size_t *n)
{
    *n = t ? t->n : 0;
    return t ? t->records : NULL;
}

const char *brg_trace_error(const brg_trace *t)
{
    return t ? t->error : NULL;
}

const char *brg_trace_param_name(const brg_trace *t, int group, int reducer,
                                 int param)
{
    if (!t || param < 0)
        return NULL;
    uint64_t key = key_of((unsigned)group, (unsigned)reducer, (unsigned)param);
    size_t low = 0, high = t->names.n; /* the first that is larger */
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (t->names.at[middle].key <= key)
            low = middle + 1;
        else
            high = middle;
    }
    bool is_there = low > 0 && t->names.at[low - 1].key == key;
    return is_there ? t->names.at[low - 1].text : NULL;
}
