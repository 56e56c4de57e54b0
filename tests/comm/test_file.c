/* SPDX-License-Identifier: Apache-2.0
 * Groups that meet in a folder: the contract of backends, what earlier runs left
 * there, ranks that do not come, have one number, die. Ranks are processes. */
#include <brigade/file.h>

#include "tests/support/backend_suite.h"
#include "tests/support/forked.h"
#include "tests/support/temp_dir.h"

#include <dirent.h>
#include <sys/stat.h>

static bool forked_prepare(void)
{
    return true;
}

static brg_status forked_begin(forked_rank *me)
{
    (void)me;
    return BRG_OK;
}

static char folder[300]; /* of the test; made before the ranks are */

static void new_folder(const char *name)
{
    snprintf(folder, sizeof folder, "%s", temp_path(name));
}

static brg_status make(int rank, int n, double timeout_s, brg_pg **out)
{
    brg_file_options file = BRG_FILE_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    file.folder = folder;
    file.rank = rank;
    file.world_size = n;
    options.timeout_s = timeout_s;
    options.backend_data = &file;
    return brg_pg_create(out, "file", &options);
}

static int count_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        (void)closedir(d);
    return n;
}

static bool is_there(const char *name)
{
    char path[400];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return access(path, F_OK) == 0;
}

/* ---- The contract ------------------------------------------------------------------ */

static brg_status run_suite(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(make(me->rank, me->n, 50, &pg));
    BRG_TRY(brg_suite_run(pg, 0));
    BRG_TRY(brg_suite_leaves(pg));
    brg_pg_destroy(pg);
    return BRG_OK;
}

static void test_file__keeps_the_contract(void **state)
{
    (void)state;
    new_folder("contract");
    for (int n = 1; n <= 4; n++) {
        forked_check(n, run_suite, NULL);
        assert_int_equal(count_files(), 0);
    }
}

static brg_status run_mismatch(forked_rank *me)
{
    for (int which = 0; which < 4; which++) {
        brg_pg *pg;
        BRG_TRY(make(me->rank, me->n, 50, &pg));
        BRG_TRY(brg_suite_mismatch(pg, which, me->n - 1));
        brg_pg_destroy(pg);
    }
    return BRG_OK;
}

static void test_file__calls_that_differ(void **state)
{
    (void)state;
    new_folder("mismatch");
    for (int n = 2; n <= 3; n++)
        forked_check(n, run_mismatch, NULL);
}

/* Groups one after the other, some while others live. */
static brg_status run_several(forked_rank *me)
{
    brg_pg *groups[5];
    for (int k = 0; k < 5; k++) {
        int32_t sum = 1 << me->rank;
        brg_work *work;
        BRG_TRY(make(me->rank, me->n, 50, &groups[k]));
        BRG_TRY(brg_all_reduce(groups[k], &work, &sum, 1, BRG_DTYPE_I32,
                               BRG_REDUCE_SUM));
        BRG_TRY(brg_work_wait(work));
        RANK_CHECK(sum == (1 << me->n) - 1, "sum %d", sum);
        if (k % 2)
            brg_pg_destroy(groups[k]);
    }
    for (int k = 0; k < 5; k += 2)
        brg_pg_destroy(groups[k]);
    return BRG_OK;
}

static void test_file__several_groups_in_a_folder(void **state)
{
    (void)state;
    new_folder("several");
    for (int n = 1; n <= 4; n++)
        forked_check(n, run_several, NULL);
    assert_int_equal(count_files(), 0);
}

/* ---- What was left there ------------------------------------------------------------- */

/* The last rank does not come. */
static brg_status run_in_vain(forked_rank *me)
{
    brg_pg *pg;
    return me->rank == me->n - 1 ? BRG_OK : make(me->rank, me->n, 0.4, &pg);
}

/* Rank 0 of n alone, killed while it waits. */
static void leave_card(int n)
{
    brg_pg *pg;
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(make(0, n, 30, &pg) == BRG_OK);
    for (int i = 0; i < 1000 && !is_there("rank-0"); i++)
        forked_sleep_ms(10);
    (void)kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static void test_file__cards_of_earlier_runs(void **state)
{
    (void)state;
    forked_result results[3];
    new_folder("earlier");
    leave_card(3);
    assert_int_equal(count_files(), 1);
    forked_check(3, run_several, NULL);
    forked_run(3, run_in_vain, NULL, results); /* these have given up */
    assert_int_equal(count_files(), 2);
    forked_check(2, run_several, NULL); /* another number of ranks */
    forked_check(3, run_several, NULL);
    assert_int_equal(count_files(), 0);
}

/* Whatever it is, it is no card. */
static void test_file__other_files(void **state)
{
    (void)state;
    new_folder("other");
    assert_int_equal(mkdir(folder, 0777), 0);
    for (int r = 0; r < 2; r++) {
        char name[40];
        snprintf(name, sizeof name, "other/rank-%d", r);
        (void)temp_file(name, "something else that is long enough", 30 * r);
    }
    forked_check(2, run_several, NULL);
}

/* ---- Ranks that do not come, or twice ------------------------------------------------- */

static void test_file__a_rank_does_not_come(void **state)
{
    forked_result results[3];
    (void)state;
    new_folder("missing");
    forked_run(3, run_in_vain, NULL, results);
    for (int r = 0; r < 2; r++)
        forked_expect(&results[r],
                      results[r].status == BRG_ERR_TIMEOUT ? BRG_ERR_TIMEOUT
                                                           : BRG_ERR_PEER,
                      "timed out after 0.4 s in ");
    assert_true(strstr(results[0].text, "; rank 2 has not come") ||
                strstr(results[1].text, "; rank 2 has not come"));
    assert_null(strstr(results[0].text, "rank 0 has not come"));
}

/* Rank 0 was here in another run; now the last one alone is. */
static void test_file__only_its_old_card_is_there(void **state)
{
    brg_pg *pg;
    (void)state;
    new_folder("old");
    leave_card(2);
    assert_brg_fails_with(make(1, 2, 0.4, &pg), BRG_ERR_TIMEOUT,
                          "rank 0 has not come (its card is of an earlier run");
}

static brg_status run_twice(forked_rank *me)
{
    brg_pg *pg;
    return make(me->rank == 2 ? 1 : me->rank, 3, 20, &pg);
}

static void test_file__two_processes_of_one_number(void **state)
{
    forked_result results[3];
    (void)state;
    new_folder("twice");
    forked_run(3, run_twice, NULL, results);
    for (int r = 0; r < 3; r++)
        forked_expect(&results[r], BRG_ERR_ARG, "two processes are rank 1 (");
}

static brg_status run_sizes(forked_rank *me)
{
    brg_pg *pg;
    return make(me->rank, me->rank == 1 ? 3 : 2, 20, &pg);
}

static void test_file__numbers_of_ranks_differ(void **state)
{
    forked_result results[2];
    (void)state;
    new_folder("sizes");
    forked_run(2, run_sizes, NULL, results);
    for (int r = 0; r < 2; r++)
        forked_expect(&results[r], BRG_ERR_ARG, " ranks, this one of ");
}

/* ---- Ranks that die, leave, come late --------------------------------------------------- */

typedef enum fault { DIES, LEAVES, LATE } fault;

static brg_status run_fault(forked_rank *me)
{
    const fault f = *(const fault *)me->data;
    brg_pg *pg;
    brg_work *work;
    float x = 1;
    BRG_TRY(make(me->rank, me->n, f == LATE ? 2 : 30, &pg));
    if (me->rank == 1 && f == DIES)
        (void)raise(SIGKILL);
    if (me->rank == 1 && f == LEAVES)
        brg_pg_destroy(pg);
    if (me->rank == 1 && f == LATE)
        forked_sleep_ms(4500);
    if (me->rank == 1)
        return BRG_OK;
    BRG_TRY(brg_all_reduce(pg, &work, &x, 1, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    return brg_work_wait(work);
}

static void test_file__ranks_are_lost(void **state)
{
    static const struct {
        fault what;
        brg_status status;
        const char *text;
    } rows[] = {{DIES, BRG_ERR_PEER, "waits for rank 1, which has died"},
                {LEAVES, BRG_ERR_PEER, "waits for rank 1, which has left"},
                {LATE, BRG_ERR_TIMEOUT, "rank 1"}};
    forked_result results[3];
    (void)state;
    new_folder("lost");
    for (int i = 0; i < 3; i++) {
        forked_run(3, run_fault, &rows[i].what, results);
        for (int r = 0; r < 3; r += 2)
            if (results[r].status == rows[i].status)
                forked_expect(&results[r], rows[i].status, rows[i].text);
            else /* the other one has said it */
                forked_expect(&results[r], BRG_ERR_PEER, "which has failed");
        assert_true(results[0].status == rows[i].status ||
                    results[2].status == rows[i].status);
    }
}

/* Rank 0 receives from 1, which lives and is slow, and from 2, which dies, and
 * waits for one of them. */
static brg_status recv_from_both(forked_rank *me, brg_pg *pg)
{
    brg_work *works[2];
    float x[2];
    for (int i = 0; i < 2; i++)
        BRG_TRY(brg_recv(pg, &works[i], &x[i], 1, BRG_DTYPE_F32, 1 + i));
    const brg_status status = brg_work_wait(works[*(const int *)me->data]);
    atomic_store(&me->world->noted[0], 1);
    return status;
}

static brg_status run_slow_and_dead(forked_rank *me)
{
    brg_pg *pg;
    BRG_TRY(make(me->rank, me->n, 5, &pg));
    if (me->rank == 2)
        (void)raise(SIGKILL);
    if (me->rank == 0)
        return recv_from_both(me, pg);
    while (atomic_load(&me->world->noted[0]) == 0)
        forked_sleep_ms(10);
    return BRG_OK;
}

static void test_file__a_dead_rank_behind_a_slow_one(void **state)
{
    forked_result results[3];
    (void)state;
    new_folder("behind");
    for (int waited = 0; waited < 2; waited++) {
        forked_run(3, run_slow_and_dead, &waited, results);
        forked_expect(&results[0], BRG_ERR_PEER,
                      "waits for rank 2, which has died");
    }
}

/* Seen to live, then dead, before all have come. */
static brg_status run_dies_meeting(forked_rank *me)
{
    brg_pg *pg;
    if (me->rank == 2)
        return BRG_OK;
    if (me->rank == 0)
        return make(0, 3, 20, &pg);
    const pid_t pid = fork();
    if (pid == 0)
        _exit(make(1, 3, 20, &pg));
    forked_sleep_ms(1500);
    (void)kill(pid, SIGKILL);
    (void)waitpid(pid, NULL, 0);
    return BRG_OK;
}

static void test_file__a_rank_dies_while_all_meet(void **state)
{
    forked_result results[3];
    (void)state;
    new_folder("meeting");
    forked_run(3, run_dies_meeting, NULL, results);
    forked_expect(&results[0], BRG_ERR_PEER, "rank 1 has died");
}

/* ---- Ranks that fail when others have met them --------------------------------------- */

/* The head of a card (comm/file/meet.c); the process is its end. */
typedef struct card {
    uint64_t magic, nonce, agreed, beat;
    int32_t rank, world_size, status, unused;
    char why[320];
    char process[112];
} card;

static bool read_card(int rank, card *filled)
{
    char path[400];
    snprintf(path, sizeof path, "%s/rank-%d", folder, rank);
    FILE *file = fopen(path, "rb");
    const bool ok = file && fread(filled, sizeof *filled, 1, file) == 1;
    if (file)
        (void)fclose(file);
    return ok;
}

static void write_card(const card *c)
{
    char path[400], beside[410];
    snprintf(path, sizeof path, "%s/rank-%d", folder, (int)c->rank);
    snprintf(beside, sizeof beside, "%s.new", path);
    FILE *file = fopen(beside, "wb");
    if (!file)
        return;
    (void)fwrite(c, sizeof *c, 1, file);
    (void)fclose(file);
    (void)rename(beside, path);
}

static bool has_run(void)
{
    bool has = false;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        has |= strncmp(e->d_name, "run-", 4) == 0;
    if (d)
        (void)closedir(d);
    return has;
}

/* Agrees as a rank would, and fails once the others have gone on. */
static brg_status agree_and_fail(int rank)
{
    card theirs, mine;
    uint64_t beat = 0;
    while (!read_card(0, &theirs))
        forked_sleep_ms(2);
    mine = theirs;
    mine.rank = rank;
    mine.nonce = 12345;
    for (int k = 0; k < 2000 && !has_run(); k++) {
        if (read_card(0, &theirs))
            mine.agreed = theirs.agreed;
        mine.beat = ++beat;
        write_card(&mine);
        forked_sleep_ms(5);
    }
    RANK_CHECK(has_run(), "rank %d: the others did not meet", rank);
    mine.status = BRG_ERR_IO;
    snprintf(mine.why, sizeof mine.why, "the disk is full");
    write_card(&mine);
    return BRG_OK;
}

static brg_status run_met_and_failed(forked_rank *me)
{
    brg_pg *pg;
    return me->rank == me->n - 1 ? agree_and_fail(me->rank)
                                 : make(me->rank, me->n, 20, &pg);
}

static void test_file__a_rank_fails_when_all_have_met(void **state)
{
    forked_result results[3];
    (void)state;
    new_folder("met");
    const uint64_t start = brg__clock_ns();
    forked_run(3, run_met_and_failed, NULL, results);
    assert_true(brg__clock_ns() - start < 15000000000u);
    assert_int_equal(results[2].status, BRG_OK);
    for (int r = 0; r < 2; r++)
        forked_expect(&results[r], BRG_ERR_PEER, "has failed");
    assert_true(strstr(results[0].text, "2 has failed: the disk is full") ||
                strstr(results[1].text, "2 has failed: the disk is full"));
    assert_false(has_run());
    forked_check(3, run_several, NULL);
    assert_int_equal(count_files(), 0);
}

/* ---- Folders and options ----------------------------------------------------------------- */

static void test_file__folders_that_cannot_be(void **state)
{
    brg_pg *pg;
    (void)state;
    snprintf(folder, sizeof folder, "%s", "/dev/null/folder");
    assert_brg_fails_with(
        make(0, 1, 1, &pg), BRG_ERR_IO,
        "rank 0: file: cannot make the folder /dev/null/fold");
    snprintf(folder, sizeof folder, "%s", temp_file("file", "x", 1));
    assert_brg_fails_with(make(0, 1, 1, &pg), BRG_ERR_IO, "cannot write ");
    snprintf(folder, sizeof folder, "%s", temp_path("no/such"));
    assert_brg_fails_with(make(0, 1, 1, &pg), BRG_ERR_IO,
                          "No such file or directory");
    assert_null(pg);
}

static void test_file__bad_options(void **state)
{
    brg_pg *pg;
    (void)state;
    new_folder("options");
    assert_brg_fails_with(brg_pg_create(&pg, "file", NULL), BRG_ERR_ARG,
                          "brg_file_options");
    assert_brg_fails_with(make(2, 2, 1, &pg), BRG_ERR_ARG, "rank 2 of 2");
    assert_brg_fails_with(make(-1, 2, 1, &pg), BRG_ERR_ARG, "rank -1 of 2");
    assert_brg_fails_with(make(0, 257, 1, &pg), BRG_ERR_ARG, "of 1 to 256");
    folder[0] = '\0';
    assert_brg_fails_with(make(0, 1, 1, &pg), BRG_ERR_ARG, "with a folder");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file__keeps_the_contract),
        cmocka_unit_test(test_file__calls_that_differ),
        cmocka_unit_test(test_file__several_groups_in_a_folder),
        cmocka_unit_test(test_file__cards_of_earlier_runs),
        cmocka_unit_test(test_file__other_files),
        cmocka_unit_test(test_file__a_rank_does_not_come),
        cmocka_unit_test(test_file__only_its_old_card_is_there),
        cmocka_unit_test(test_file__two_processes_of_one_number),
        cmocka_unit_test(test_file__numbers_of_ranks_differ),
        cmocka_unit_test(test_file__ranks_are_lost),
        cmocka_unit_test(test_file__a_dead_rank_behind_a_slow_one),
        cmocka_unit_test(test_file__a_rank_dies_while_all_meet),
        cmocka_unit_test(test_file__a_rank_fails_when_all_have_met),
        cmocka_unit_test(test_file__folders_that_cannot_be),
        cmocka_unit_test(test_file__bad_options),
    };
    return cmocka_run_group_tests_name("file", tests, NULL, NULL);
}
