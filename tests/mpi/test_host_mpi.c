/* SPDX-License-Identifier: Apache-2.0
 * A program with an MPI of its own: whatever thread level it asked for, groups
 * work on its communicators, leave its error handlers and its MPI_Finalize to
 * it, and turn MPI's errors into ours. The level follows from the number of
 * ranks, so that a run at 1 to 4 ranks has had all.
 *
 * Calls of MPI that a group makes go through here first (MPI's profiling
 * interface), so that each can be made to fail. */
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/support/backend_suite.h"
#include "tests/support/mpi_ranks.h"

static int rank, n_ranks, level;

/* ---- Calls that fail ---------------------------------------------------------- */

static int fault_at = -1; /* -1: none; else the call, counted from 0 */
static int n_calls;
static int n_finalized;

static bool is_faulty(void)
{
    return fault_at >= 0 && n_calls++ == fault_at;
}

#define FAULTY(name, params, args)                                             \
    int MPI_##name params                                                      \
    {                                                                          \
        return is_faulty() ? MPI_ERR_INTERN : PMPI_##name args;                \
    }

FAULTY(Query_thread, (int *provided), (provided))
FAULTY(Is_thread_main, (int *flag), (flag))
FAULTY(Comm_test_inter, (MPI_Comm comm, int *flag), (comm, flag))
FAULTY(Comm_dup, (MPI_Comm comm, MPI_Comm *made), (comm, made))
FAULTY(Comm_set_errhandler, (MPI_Comm comm, MPI_Errhandler handler),
       (comm, handler))
FAULTY(Comm_rank, (MPI_Comm comm, int *found), (comm, found))
FAULTY(Comm_size, (MPI_Comm comm, int *found), (comm, found))
FAULTY(Comm_split_type,
       (MPI_Comm comm, int type, int key, MPI_Info info, MPI_Comm *made),
       (comm, type, key, info, made))
FAULTY(Bcast, (void *data, int n, MPI_Datatype type, int root, MPI_Comm comm),
       (data, n, type, root, comm))
FAULTY(Allgather,
       (const void *send, int n_send, MPI_Datatype send_type, void *recv,
        int n_recv, MPI_Datatype recv_type, MPI_Comm comm),
       (send, n_send, send_type, recv, n_recv, recv_type, comm))
FAULTY(Ibcast,
       (void *data, int n, MPI_Datatype type, int root, MPI_Comm comm,
        MPI_Request *request),
       (data, n, type, root, comm, request))
FAULTY(Iallreduce,
       (const void *send, void *recv, int n, MPI_Datatype type, MPI_Op op,
        MPI_Comm comm, MPI_Request *request),
       (send, recv, n, type, op, comm, request))
FAULTY(Barrier, (MPI_Comm comm), (comm))
FAULTY(Comm_create_keyval,
       (MPI_Comm_copy_attr_function * copy,
        MPI_Comm_delete_attr_function *forget, int *key, void *state),
       (copy, forget, key, state))
FAULTY(Comm_set_attr, (MPI_Comm comm, int key, void *value), (comm, key, value))
FAULTY(Iallgather,
       (const void *send, int n_send, MPI_Datatype send_type, void *recv,
        int n_recv, MPI_Datatype recv_type, MPI_Comm comm,
        MPI_Request *request),
       (send, n_send, send_type, recv, n_recv, recv_type, comm, request))
FAULTY(Irecv,
       (void *data, int n, MPI_Datatype type, int from, int tag, MPI_Comm comm,
        MPI_Request *request),
       (data, n, type, from, tag, comm, request))
FAULTY(Isend,
       (const void *data, int n, MPI_Datatype type, int to, int tag,
        MPI_Comm comm, MPI_Request *request),
       (data, n, type, to, tag, comm, request))
FAULTY(Testall,
       (int n, MPI_Request requests[], int *flag, MPI_Status statuses[]),
       (n, requests, flag, statuses))

int MPI_Finalize(void)
{
    n_finalized++;
    return PMPI_Finalize();
}

static void fail_from_now(int call)
{
    n_calls = 0;
    fault_at = call;
}

/* ---- The program's own MPI ------------------------------------------------------ */

static MPI_Errhandler handler; /* of MPI_COMM_WORLD */
static int n_handled;

static void handle(MPI_Comm *comm, int *code, ...)
{
    (void)comm;
    (void)code;
    n_handled++;
}

static void check_host(void)
{
    MPI_Errhandler found;
    int x = 1, sum, found_level, is_over;
    MPI_Comm_get_errhandler(MPI_COMM_WORLD, &found);
    assert_true(found == handler);
    MPI_Errhandler_free(&found);
    assert_int_equal(n_handled, 0);
    PMPI_Query_thread(&found_level);
    assert_int_equal(found_level, level);
    MPI_Finalized(&is_over);
    assert_false(is_over);
    MPI_Allreduce(&x, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    assert_int_equal(sum, n_ranks);
}

static brg_status sum_up(brg_pg *pg)
{
    static float x[5000];
    brg_work *work;
    for (int i = 0; i < 5000; i++)
        x[i] = (float)(brg_pg_rank(pg) + i);
    BRG_TRY(brg_all_reduce(pg, &work, x, 5000, BRG_DTYPE_F32, BRG_REDUCE_SUM));
    BRG_TRY(brg_work_wait(work));
    int n = brg_pg_world_size(pg);
    for (int i = 0; i < 5000; i++)
        if (x[i] != (float)(n * (n - 1) / 2 + n * i))
            return brg_error_set(BRG_ERR_INTERNAL, __FILE__, __LINE__,
                                 "element %d is wrong", i);
    return BRG_OK;
}

static void test_host__keeps_its_mpi(void **state)
{
    (void)state;
    mpi_on_shapes(sum_up);
    check_host();
}

/* ---- Communicators -------------------------------------------------------------- */

static brg_status create_on(brg_pg **pg, MPI_Comm comm)
{
    brg_mpi_options mpi = BRG_MPI_OPTIONS_INIT;
    brg_pg_options options = BRG_PG_OPTIONS_INIT;
    mpi.comm = &comm;
    options.backend_data = &mpi;
    return brg_pg_create(pg, "mpi", &options);
}

/* The last rank stays away. */
static void test_host__some_ranks_make_a_group(void **state)
{
    (void)state;
    MPI_Comm some;
    brg_pg *pg;
    bool is_in = n_ranks == 1 || rank < n_ranks - 1;
    MPI_Comm_split(MPI_COMM_WORLD, is_in ? 0 : MPI_UNDEFINED, 0, &some);
    if (is_in) {
        assert_brg_ok(create_on(&pg, some));
        assert_int_equal(brg_pg_world_size(pg), n_ranks > 1 ? n_ranks - 1 : 1);
        MPI_Comm_free(&some); /* the group has its own */
        assert_brg_ok(sum_up(pg));
        brg_pg_destroy(pg);
    }
    check_host();
}

static void test_host__intercommunicators_are_refused(void **state)
{
    (void)state;
    MPI_Comm half, inter;
    brg_pg *pg;
    assert_brg_fails_with(create_on(&pg, MPI_COMM_NULL), BRG_ERR_ARG,
                          "MPI_COMM_NULL");
    if (n_ranks == 1)
        return;
    int is_first = rank < n_ranks / 2;
    MPI_Comm_split(MPI_COMM_WORLD, is_first, rank, &half);
    MPI_Intercomm_create(half, 0, MPI_COMM_WORLD, is_first ? n_ranks / 2 : 0, 7,
                         &inter);
    assert_brg_fails_with(create_on(&pg, inter), BRG_ERR_ARG,
                          "intercommunicator");
    MPI_Comm_free(&inter);
    MPI_Comm_free(&half);
    check_host();
}

/* ---- Threads ---------------------------------------------------------------------- */

static brg_status in_thread;
static char words[200];

static void *run_thread(void *unused)
{
    brg_pg *pg;
    (void)unused;
    in_thread = create_on(&pg, MPI_COMM_WORLD);
    if (in_thread == BRG_OK) {
        in_thread = sum_up(pg);
        brg_pg_destroy(pg);
    }
    snprintf(words, sizeof words, "%s", brg_error_message());
    return NULL;
}

static void test_host__threads_by_the_level(void **state)
{
    (void)state;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_thread, NULL), 0);
    pthread_join(thread, NULL);
    if (level >= MPI_THREAD_SERIALIZED) {
        assert_int_equal(in_thread, BRG_OK);
    } else {
        assert_int_equal(in_thread, BRG_ERR_STATE);
        assert_non_null(strstr(words, level == MPI_THREAD_SINGLE
                                          ? "MPI_THREAD_SINGLE"
                                          : "MPI_THREAD_FUNNELED"));
    }
    check_host();
}

/* ---- Errors of MPI ---------------------------------------------------------------- */

/* Each call in turn, on all ranks alike. */
static void test_host__a_failing_call_fails_the_creation(void **state)
{
    (void)state;
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    setenv("BRG_MPI_NODE_SIZE", "0", 1);
    int n_failed = 0;
    for (bool is_over = false; !is_over; n_failed++) {
        brg_pg *pg;
        fail_from_now(n_failed);
        brg_status status = brg_pg_create(&pg, "mpi", NULL);
        is_over = n_calls <= n_failed;
        fault_at = -1;
        if (is_over) {
            assert_brg_ok(status);
            brg_pg_destroy(pg);
        } else {
            assert_brg_ok(brg_suite_expect(status, BRG_ERR_COMM, ": MPI_",
                                           "a failing creation"));
        }
        brg_memory_get_stats(&after);
        assert_int_equal(after.in_use, before.in_use);
    }
    print_message("%d calls\n", n_failed);
    assert_true(n_failed > 13);
    check_host();
}

static void test_host__a_failing_call_fails_an_allocation(void **state)
{
    (void)state;
    static const char *const calls[] = {"MPI_Iallgather", "MPI_Ibcast",
                                        "MPI_Iallreduce"};
    brg_memory_stats before, after;
    brg_memory_get_stats(&before);
    for (int i = 0; i < 3; i++) {
        brg_pg *pg = mpi_group(0, 20);
        void *block;
        fail_from_now(i);
        brg_status status = brg_pg_alloc(pg, &block, 100000);
        fault_at = -1;
        assert_brg_ok(brg_suite_expect(status, BRG_ERR_COMM, calls[i],
                                       "a failing allocation"));
        brg_pg_destroy(pg);
    }
    brg_memory_get_stats(&after);
    assert_int_equal(after.in_use, before.in_use);
    check_host();
}

/* One rank has no memory, in each of the ways: none is left waiting for it, and
 * the group goes on. */
static void check_short_rank(int node_size)
{
    struct rlimit limit, less;
    void *block;
    const size_t nbytes = (size_t)64 << 20;
    brg_pg *pg = mpi_group(node_size, 20);
    getrlimit(RLIMIT_AS, &limit);
    less = limit;
    less.rlim_cur = 1 << 20; /* any mapping is too much */
    if (rank == n_ranks - 1)
        assert_int_equal(setrlimit(RLIMIT_AS, &less), 0);
    double start = MPI_Wtime();
    brg_status status = brg_pg_alloc(pg, &block, nbytes);
    assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
    char who[60];
    snprintf(who, sizeof who, "bytes on rank %d: Cannot allocate memory",
             n_ranks - 1);
    assert_brg_ok(brg_suite_expect(status, BRG_ERR_NOMEM, who, "alloc"));
    assert_true(MPI_Wtime() - start < 5);
    assert_brg_ok(brg_pg_error(pg));
    assert_brg_ok(brg_pg_alloc(pg, &block, 1000));
    assert_brg_ok(sum_up(pg));
    brg_pg_destroy(pg);
}

static void test_host__a_rank_without_memory_fails_the_allocation(void **state)
{
    (void)state;
#if defined(__SANITIZE_ADDRESS__)
    skip(); /* it has mapped all there is */
#endif
    for (int node_size = 0; node_size < mpi_n_shapes(); node_size++)
        check_short_rank(node_size);
    check_host();
}

/* Between nodes of one, each rank posts a recv and a send for each other rank,
 * then tests them. */
static void check_failing_message(int call, const char *name, bool on_all)
{
    brg_pg *pg = mpi_group(1, 20);
    bool fails = on_all || rank == 0;
    if (fails)
        fail_from_now(call);
    brg_status status = sum_up(pg);
    fault_at = -1;
    assert_brg_ok(brg_suite_expect(status, fails ? BRG_ERR_COMM : BRG_ERR_PEER,
                                   fails ? name : "rank 0 has failed",
                                   "a failing message"));
    assert_int_not_equal(brg_pg_error(pg), BRG_OK);
    brg_pg_destroy(pg);
}

static void test_host__a_failing_message_fails_the_group(void **state)
{
    (void)state;
    if (n_ranks == 1)
        return;
    check_failing_message(0, "MPI_Irecv", true);
    check_failing_message(1, "MPI_Isend", true);
    check_failing_message(2 * (n_ranks - 1), "MPI_Testall", true);
    check_failing_message(0, "MPI_Irecv", false);
    check_host();
}

/* MPI would raise an error of its own: the message is longer than its place. */
static void test_host__its_error_handler_is_not_called(void **state)
{
    (void)state;
    float x[100] = {0};
    brg_work *work;
    brg_pg *pg = mpi_group(0, 20);
    if (n_ranks > 1 && rank == 0) {
        assert_brg_ok(brg_send(pg, &work, x, 100, BRG_DTYPE_F32, 1));
        (void)!brg_work_wait(work);
    } else if (rank == 1) {
        assert_brg_ok(brg_recv(pg, &work, x, 4, BRG_DTYPE_F32, 0));
        assert_brg_fails_with(brg_work_wait(work), BRG_ERR_MISMATCH,
                              "send #0 (100 f32");
    }
    brg_pg_destroy(pg);
    check_host();
}

/* ---- Ranks that are lost, or not ---------------------------------------------------- */

/* Whoever cannot look whether another rank is alive has not seen it die: the
 * others wait for the last one for longer than it takes until they look. */
static void test_host__short_of_descriptors_nobody_is_taken_for_dead(void **s)
{
    (void)s;
    struct rlimit limit, none;
    brg_pg *pg = mpi_group(0, 20);
    brg_work *work;
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    if (rank == n_ranks - 1)
        usleep(200000);
    brg_status status = brg_barrier(pg, &work);
    if (status == BRG_OK)
        status = brg_work_wait(work);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_brg_ok(status);
    brg_pg_destroy(pg);
    check_host();
}

/* ---- The program --------------------------------------------------------------------- */

/* After all that the library may have left for the end of the process. */
static void check_finalized_once(void)
{
    if (n_finalized != 1)
        _exit(1);
}

static int size_of_environment(void)
{
    const char *size = getenv("OMPI_COMM_WORLD_SIZE");
    size = size ? size : getenv("PMI_SIZE");
    return size ? atoi(size) : 1;
}

static bool begin(int *argc, char ***argv)
{
    static const int levels[] = {MPI_THREAD_MULTIPLE, MPI_THREAD_SINGLE,
                                 MPI_THREAD_SERIALIZED, MPI_THREAD_FUNNELED};
    int wanted = levels[(size_of_environment() - 1) % 4];
    if (atexit(check_finalized_once) != 0 ||
        MPI_Init_thread(argc, argv, wanted, &level) != MPI_SUCCESS)
        return false;
    rank = mpi_rank();
    n_ranks = mpi_n_ranks();
    MPI_Comm_create_errhandler(handle, &handler);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, handler);
    return mpi_silence(rank) && brg_backend_register(brg_comm_mpi()) == BRG_OK;
}

int main(int argc, char **argv)
{
    if (!begin(&argc, &argv))
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host__keeps_its_mpi),
        cmocka_unit_test(test_host__some_ranks_make_a_group),
        cmocka_unit_test(test_host__intercommunicators_are_refused),
        cmocka_unit_test(test_host__threads_by_the_level),
        cmocka_unit_test(test_host__a_failing_call_fails_the_creation),
        cmocka_unit_test(test_host__a_failing_call_fails_an_allocation),
        cmocka_unit_test(test_host__a_rank_without_memory_fails_the_allocation),
        cmocka_unit_test(test_host__a_failing_message_fails_the_group),
        cmocka_unit_test(test_host__its_error_handler_is_not_called),
        cmocka_unit_test(
            test_host__short_of_descriptors_nobody_is_taken_for_dead),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    MPI_Errhandler_free(&handler);
    MPI_Finalize();
    return failed;
}
