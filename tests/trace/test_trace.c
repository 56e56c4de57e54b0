/* SPDX-License-Identifier: Apache-2.0
 * The ring of records: order, wrapping, threads, marks; files of it, asked for
 * and by a signal; that it takes no memory. */
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <brigade/trace.h>

#include "core/trace/ring.h"
#include "tests/support/brg_test.h"
#include "tests/support/ranks.h"
#include "tests/support/temp_dir.h"

static int set_up(void **state)
{
    (void)state;
    brg_trace_set_enabled(true);
    return brg_trace_set_size(0) == BRG_OK &&
                   brg_trace_set_folder(NULL) == BRG_OK
               ? 0
               : -1;
}

/* ---- The ring ---------------------------------------------------------------- */

static void test_trace__keeps_the_newest(void **state)
{
    (void)state;
    brg_trace_record records[64];
    char name[16];
    assert_brg_ok(brg_trace_set_size(13)); /* 16 */
    for (int i = 1; i <= 50; i++) {
        snprintf(name, sizeof name, "mark %d", i);
        brg_trace_mark(name);
    }
    assert_int_equal(brg_trace_copy(records, 64), 16);
    for (int i = 0; i < 16; i++) {
        snprintf(name, sizeof name, "mark %d", 35 + i);
        assert_int_equal(records[i].kind, BRG_TRACE_MARK);
        assert_string_equal(records[i].u.text, name);
        assert_int_equal(records[i].number, 35 + i);
        assert_true(i == 0 || records[i].time_ns >= records[i - 1].time_ns);
    }
    assert_int_equal(brg_trace_copy(records, 3), 3);
    assert_string_equal(records[2].u.text, "mark 50");
    assert_brg_fails(brg_trace_set_size((size_t)1 << 40), BRG_ERR_ARG);
}

static void test_trace__can_be_larger_and_off(void **state)
{
    (void)state;
    brg_memory_stats before, during, after;
    brg_trace_record record;
    brg_memory_get_stats(&before);
    assert_brg_ok(brg_trace_set_size(1 << 16));
    brg_memory_get_stats(&during);
    assert_int_equal(during.in_use - before.in_use, 64 << 16);
    for (int i = 0; i < 1 << 15; i++)
        brg_trace_mark("x");
    assert_int_equal(brg_trace_copy(&record, 1), 1);
    assert_int_equal(record.number, 1 << 15);
    assert_brg_ok(brg_trace_set_size(0));
    brg_memory_get_stats(&after);
    assert_int_equal(after.in_use, before.in_use);
    brg_trace_set_enabled(false);
    assert_false(brg_trace_is_enabled());
    brg_trace_mark("unseen");
    brg_trace_begin(NULL);
    assert_int_equal(brg_trace_copy(&record, 1), 0);
}

static void test_trace__takes_no_memory(void **state)
{
    (void)state;
    brg_trace_mark("first");
    uint64_t n = ranks_n_mallocs();
    for (int i = 0; i < 40000; i++) {
        brg_trace_begin("forward");
        brg_trace_end("forward");
    }
    assert_int_equal(ranks_n_mallocs(), n);
}

static void test_trace__long_names_are_cut(void **state)
{
    (void)state;
    brg_trace_record record;
    brg_trace_mark("a name that is much too long to be kept in one record");
    assert_int_equal(brg_trace_copy(&record, 1), 1);
    assert_int_equal(strlen(record.u.text), BRG_TRACE_TEXT_MAX - 1);
}

enum { N_THREADS = 4, N_MARKS = 20000 };

static void *mark_many(void *user)
{
    for (int i = 0; i < N_MARKS; i++)
        brg_trace_mark(user);
    return NULL;
}

/* A record is whole or not there: its text is one thread's, its number that of
 * its place. */
static void test_trace__threads_write_beside_readers(void **state)
{
    (void)state;
    static char names[N_THREADS][32];
    static brg_trace_record records[256];
    pthread_t threads[N_THREADS];
    uint64_t n_seen = 0;
    assert_brg_ok(brg_trace_set_size(256));
    for (int t = 0; t < N_THREADS; t++) {
        memset(names[t], 'a' + t, sizeof names[t] - 1);
        assert_int_equal(pthread_create(&threads[t], NULL, mark_many, names[t]),
                         0);
    }
    for (uint64_t last = 0; last < N_MARKS;) {
        size_t n = brg_trace_copy(records, 256);
        for (size_t i = 0; i < n; i++) {
            char first = records[i].u.text[0];
            assert_in_range(first, 'a', 'a' + N_THREADS - 1);
            assert_string_equal(records[i].u.text, names[first - 'a']);
            assert_true(i == 0 || records[i].number > records[i - 1].number);
            last = records[i].number;
            n_seen++;
        }
    }
    for (int t = 0; t < N_THREADS; t++)
        pthread_join(threads[t], NULL);
    assert_true(n_seen > 0);
    assert_int_equal(brg_trace_copy(records, 256), 256);
    assert_int_equal(records[255].number, N_THREADS * N_MARKS);
}

/* ---- Files --------------------------------------------------------------------- */

static const char *folder_of(const char *path)
{
    static char folder[4096];
    snprintf(folder, sizeof folder, "%s", path);
    *strrchr(folder, '/') = '\0';
    return folder;
}

static void test_trace__files_hold_what_was_recorded(void **state)
{
    (void)state;
    static brg_trace_record records[64];
    const char *path = temp_path("asked.trace");
    brg_trace *trace;
    size_t n;
    brg__record_define(brg__record_mine(), "param\t9\t1\t%d\t%s", 0, "a\nb");
    brg__record_define(brg__record_mine(), "param\t9\t1\t%d\t%s", 3, "old");
    brg__record_define(brg__record_mine(), "param\t9\t1\t%d\t%s", 3, "fc1.w");
    assert_brg_ok(brg_trace_set_size(64));
    for (int i = 0; i < 100; i++)
        brg_trace_mark("x");
    assert_int_equal(brg_trace_copy(records, 64), 64);
    assert_brg_ok(brg_trace_dump(path));
    assert_brg_ok(brg_trace_load(&trace, path));
    const brg_trace_header *header = brg_trace_get_header(trace);
    assert_int_equal(header->n_records, 64);
    assert_int_equal(header->n_lost, 36);
    assert_int_equal(header->reason, BRG_TRACE_ASKED);
    assert_int_equal(header->pid, getpid());
    assert_true(header->time_ns >= records[63].time_ns);
    assert_memory_equal(brg_trace_records(trace, &n), records, sizeof records);
    assert_int_equal(n, 64);
    assert_string_equal(brg_trace_param_name(trace, 9, 1, 0), "a b");
    assert_string_equal(brg_trace_param_name(trace, 9, 1, 3), "fc1.w");
    assert_null(brg_trace_param_name(trace, 9, 1, 1));
    assert_null(brg_trace_param_name(trace, 9, 2, 3));
    assert_null(brg_trace_param_name(trace, 9, 1, -1));
    assert_null(brg_trace_error(trace));
    brg_trace_free(trace);
    brg_trace_free(NULL);
}

static void test_trace__bad_files_are_refused(void **state)
{
    (void)state;
    const char *path = temp_path("good.trace");
    brg_trace *trace;
    size_t n;
    assert_brg_ok(brg_trace_set_size(4));
    brg_trace_mark("x");
    assert_brg_ok(brg_trace_dump(path));
    unsigned char *bytes = temp_read(path, &n);
    for (size_t k = 0; k < n; k++)
        assert_brg_fails(
            brg_trace_load(&trace, temp_file("cut.trace", bytes, k)),
            BRG_ERR_FORMAT);
    for (size_t k = 0; k < 40; k++) { /* magic, sizes, counts */
        if (k >= 24 && k < 32)
            continue; /* any number may be lost */
        bytes[k] ^= 0x40;
        assert_brg_fails(
            brg_trace_load(&trace, temp_file("bad.trace", bytes, n)),
            BRG_ERR_FORMAT);
        bytes[k] ^= 0x40;
    }
    assert_brg_fails(brg_trace_load(&trace, temp_path("none")), BRG_ERR_IO);
    assert_brg_fails(brg_trace_load(&trace, folder_of(path)), BRG_ERR_IO);
    assert_brg_fails_with(brg_trace_dump("/nowhere/x.trace"), BRG_ERR_IO,
                          "/nowhere/x.trace");
    assert_brg_fails_with(brg_trace_dump(NULL), BRG_ERR_STATE,
                          "BRG_TRACE_FOLDER");
    assert_brg_fails(brg_trace_set_folder("/nowhere"), BRG_ERR_IO);
    free(bytes);
}

/* Whatever is in a file: it is read or refused. */
static void test_trace__damaged_files_do_no_harm(void **state)
{
    (void)state;
    size_t n;
    uint64_t seed = brg_test_seed(3);
    brg_trace *trace;
    int64_t offset;
    const char *path = temp_path("whole.trace");
    assert_brg_ok(brg_trace_set_size(64));
    for (int i = 0; i < 100; i++)
        brg_trace_mark("x");
    brg__record_define(brg__record_mine(), "param\t0\t1\t0\tw");
    assert_brg_ok(brg_trace_dump(path));
    char *good = temp_read(path, &n), *bad = malloc(n);
    for (int i = 0; i < 300; i++) {
        memcpy(bad, good, n);
        for (int k = 0; k < 30; k++)
            bad[brg_test_random(&seed) % n] ^= (char)brg_test_random(&seed);
        brg_status status =
            brg_trace_load(&trace, temp_file("damaged.trace", bad, n));
        assert_true(status == BRG_OK || status == BRG_ERR_FORMAT);
        if (status == BRG_OK)
            assert_brg_ok(brg_trace_align(&trace, 1, &offset));
        brg_trace_free(trace);
    }
    free(good);
    free(bad);
}

static void test_trace__a_signal_writes_it(void **state)
{
    (void)state;
    brg_trace *trace;
    const char *folder = folder_of(temp_path("x"));
    const char *path = temp_path("rank0.trace");
    brg_trace_mark("before");
    assert_brg_ok(brg_trace_on_signal(SIGUSR1));
    assert_int_equal(raise(SIGUSR1), 0); /* no folder: nothing */
    assert_brg_fails(brg_trace_load(&trace, path), BRG_ERR_IO);
    assert_brg_ok(brg_trace_set_folder(folder));
    assert_int_equal(raise(SIGUSR1), 0);
    assert_brg_ok(brg_trace_load(&trace, path));
    size_t n;
    const brg_trace_record *records = brg_trace_records(trace, &n);
    assert_string_equal(records[n - 1].u.text, "before");
    assert_int_equal(brg_trace_get_header(trace)->reason, BRG_TRACE_SIGNALLED);
    brg_trace_free(trace);
    signal(SIGUSR1, SIG_DFL);
    assert_brg_fails(brg_trace_on_signal(SIGKILL), BRG_ERR_ARG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_trace__keeps_the_newest, set_up),
        cmocka_unit_test_setup(test_trace__can_be_larger_and_off, set_up),
        cmocka_unit_test_setup(test_trace__takes_no_memory, set_up),
        cmocka_unit_test_setup(test_trace__long_names_are_cut, set_up),
        cmocka_unit_test_setup(test_trace__threads_write_beside_readers,
                               set_up),
        cmocka_unit_test_setup(test_trace__files_hold_what_was_recorded,
                               set_up),
        cmocka_unit_test_setup(test_trace__bad_files_are_refused, set_up),
        cmocka_unit_test_setup(test_trace__damaged_files_do_no_harm, set_up),
        cmocka_unit_test_setup(test_trace__a_signal_writes_it, set_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
