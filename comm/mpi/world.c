/* SPDX-License-Identifier: Apache-2.0
 * MPI itself, who is where, and memory shared within the node. */
#include "comm/mpi/group.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/process.h"

#define DESTROY_WAIT_NS 5000000000u

brg_status brg__mpi_fail(const mpi_group *g, int rc, const char *what,
                         const char *file, int line)
{
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int n;
    (void)MPI_Error_string(rc, text, &n);
    size_t name = strcspn(what, "(");
    return g->host->fail(BRG_ERR_COMM, file, line, "rank %d: %.*s: %s", g->rank,
                         (int)name, what, text);
}

/* ---- Starting and ending MPI ------------------------------------------------------- */

static atomic_bool is_somebody_lost;

void brg__mpi_lose(mpi_group *g, int32_t lost)
{
    if (lost == 0)
        return;
    g->lost = lost;
    atomic_store(&is_somebody_lost, true);
}

static void finalize_at_exit(void)
{
    int is_over = 0;
    (void)MPI_Finalized(&is_over);
    if (!is_over && !atomic_load(&is_somebody_lost))
        (void)MPI_Finalize();
}

/* Below SERIALIZED, MPI may be called by one thread of the program alone. */
static brg_status check_thread(const mpi_group *g)
{
    int level, is_main;
    MPI_CHECK(g, MPI_Query_thread(&level));
    MPI_CHECK(g, MPI_Is_thread_main(&is_main));
    if (level < MPI_THREAD_SERIALIZED && !is_main)
        return MPI_FAIL(g, BRG_ERR_STATE,
                        "brg_pg_create: MPI was initialised for its main "
                        "thread only (MPI_THREAD_%s); this is another thread",
                        level < MPI_THREAD_FUNNELED ? "SINGLE" : "FUNNELED");
    return BRG_OK;
}

static brg_status init_mpi(const mpi_group *g)
{
    int is_running = 0, is_over = 0, level;
    MPI_CHECK(g, MPI_Finalized(&is_over));
    if (is_over)
        return MPI_FAIL(g, BRG_ERR_STATE, "MPI is finalised already");
    MPI_CHECK(g, MPI_Initialized(&is_running));
    if (is_running)
        return check_thread(g);
    MPI_CHECK(g, MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level));
    if (atexit(finalize_at_exit) != 0)
        return MPI_FAIL(g, BRG_ERR_NOMEM, "no room for an exit function");
    return BRG_OK;
}

/* ---- Ends ----------------------------------------------------------------------------- */

const char *brg__mpi_gone_words(int32_t how)
{
    if (how == LEFT)
        return "has left the group";
    if (how == DIED)
        return "has died";
    return how == ENDED ? "has ended" : "has failed in this group";
}

void brg__mpi_say_gone(mpi_group *g, int32_t how)
{
    header verdict = {.verdict = how, .culprit = g->rank, .lost = g->lost};
    if (how < 0 && g->lost > 0) { /* another one has the blame */
        verdict.verdict = DIED;
        verdict.culprit = g->lost - 1;
    }
    if (g->shared && g->shared[g->local]) {
        atomic_store_explicit(&g->shared[g->local]->lost, g->lost,
                              memory_order_relaxed);
        atomic_store_explicit(&g->shared[g->local]->gone, how,
                              memory_order_release);
    }
    if (g->n_nodes > 1 && g->lanes[0].in)
        brg__mpi_send_verdict(g, &verdict);
}

/* MPI_Finalize deletes the attributes of MPI_COMM_SELF first: a group that was
 * not destroyed learns there that its process ends. */
static int on_finalize(MPI_Comm comm, int key, void *value, void *state)
{
    mpi_group *g = value;
    (void)comm;
    (void)key;
    (void)state;
    if (g->exit_key != MPI_KEYVAL_INVALID && !g->is_dead)
        brg__mpi_say_gone(g, ENDED);
    return MPI_SUCCESS;
}

static brg_status watch_finalize(mpi_group *g)
{
    MPI_CHECK(g, MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, on_finalize,
                                        &g->exit_key, NULL));
    int rc = MPI_Comm_set_attr(MPI_COMM_SELF, g->exit_key, g);
    if (rc == MPI_SUCCESS)
        return BRG_OK;
    (void)MPI_Comm_free_keyval(&g->exit_key);
    return brg__mpi_fail(g, rc, "MPI_Comm_set_attr", __FILE__, __LINE__);
}

static void unwatch_finalize(mpi_group *g)
{
    int key = g->exit_key;
    if (key == MPI_KEYVAL_INVALID)
        return;
    g->exit_key = MPI_KEYVAL_INVALID;
    (void)MPI_Comm_delete_attr(MPI_COMM_SELF, key);
    (void)MPI_Comm_free_keyval(&key);
}

/* ---- Topology -------------------------------------------------------------------------- */

/* Nodes of at most BRG_MPI_NODE_SIZE ranks, if that is set. */
static brg_status split_node(mpi_group *g)
{
    MPI_CHECK(g, MPI_Comm_split_type(g->world, MPI_COMM_TYPE_SHARED, g->rank,
                                     MPI_INFO_NULL, &g->node));
    int limit = atoi(g->host->env("BRG_MPI_NODE_SIZE"));
    if (limit <= 0)
        return BRG_OK;
    MPI_Comm part;
    int place;
    MPI_CHECK(g, MPI_Comm_rank(g->node, &place));
    MPI_CHECK(g, MPI_Comm_split(g->node, place / limit, g->rank, &part));
    MPI_CHECK(g, MPI_Comm_free(&g->node));
    g->node = part;
    g->is_split = true;
    return BRG_OK;
}

/* firsts[r]: the first rank of r's node. Nodes in the order of those. */
static void fill_nodes(mpi_group *g, const int *firsts)
{
    int n = 0;
    g->n_places = g->n_ranks;
    for (int r = 0; r < g->n_ranks; r++) {
        if (firsts[r] != r)
            continue;
        int begin = n;
        for (int member = r; member < g->n_ranks; member++)
            if (firsts[member] == r)
                g->rank_at[n++] = member;
        if (r == firsts[g->rank])
            g->my_node = g->n_nodes;
        g->node_begin[g->n_nodes++] = begin;
        g->n_places = n - begin < g->n_places ? n - begin : g->n_places;
        g->max_local = n - begin > g->max_local ? n - begin : g->max_local;
    }
    g->node_begin[g->n_nodes] = n;
}

static brg_status number_nodes(mpi_group *g)
{
    int first = g->rank;
    size_t n = (size_t)g->n_ranks;
    MPI_CHECK(g, MPI_Comm_rank(g->node, &g->local));
    MPI_CHECK(g, MPI_Comm_size(g->node, &g->n_local));
    MPI_CHECK(g, MPI_Bcast(&first, 1, MPI_INT, 0, g->node));
    int *firsts = g->host->alloc(n * sizeof(int), "ranks");
    g->rank_at = g->host->alloc(n * sizeof(int), "ranks");
    g->node_begin = g->host->alloc((n + 1) * sizeof(int), "nodes");
    int rc = MPI_ERR_OTHER;
    if (firsts && g->rank_at && g->node_begin)
        rc = MPI_Allgather(&first, 1, MPI_INT, firsts, 1, MPI_INT, g->world);
    if (rc == MPI_SUCCESS)
        fill_nodes(g, firsts);
    g->host->free(firsts);
    if (!firsts || !g->rank_at || !g->node_begin)
        return BRG_ERR_NOMEM;
    return rc == MPI_SUCCESS
               ? BRG_OK
               : brg__mpi_fail(g, rc, "MPI_Allgather", __FILE__, __LINE__);
}

static bool is_crowded(const mpi_group *g)
{
    cpu_set_t cpus;
    int n = 1;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0)
        n = CPU_COUNT(&cpus);
    /* A rank bound to its own processors does not share them. */
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return n >= online && g->n_local > n;
}

static brg_status check_comm(const mpi_group *g, MPI_Comm comm)
{
    int is_inter;
    if (comm == MPI_COMM_NULL)
        return MPI_FAIL(g, BRG_ERR_ARG,
                        "brg_pg_create: the communicator is MPI_COMM_NULL");
    MPI_CHECK(g, MPI_Comm_test_inter(comm, &is_inter));
    if (is_inter)
        return MPI_FAIL(g, BRG_ERR_ARG,
                        "brg_pg_create: the communicator is an "
                        "intercommunicator; merge it first "
                        "(MPI_Intercomm_merge)");
    return BRG_OK;
}

/* Errors of MPI come back as codes on what is made here, and on that alone:
 * the program's communicators keep their handlers. */
static brg_status init_topology(mpi_group *g, MPI_Comm comm)
{
    BRG_TRY(check_comm(g, comm));
    MPI_CHECK(g, MPI_Comm_dup(comm, &g->world));
    MPI_CHECK(g, MPI_Comm_set_errhandler(g->world, MPI_ERRORS_RETURN));
    MPI_CHECK(g, MPI_Comm_rank(g->world, &g->rank));
    MPI_CHECK(g, MPI_Comm_size(g->world, &g->n_ranks));
    BRG_TRY(split_node(g));
    MPI_CHECK(g, MPI_Comm_set_errhandler(g->node, MPI_ERRORS_RETURN));
    BRG_TRY(number_nodes(g));
    g->is_crowded = is_crowded(g);
    return BRG_OK;
}

/* ---- Shared memory ------------------------------------------------------------------------ */

static brg_status init_control(mpi_group *g)
{
    size_t n = (size_t)g->n_local;
    g->shared = g->host->alloc(n * sizeof *g->shared, "control blocks");
    g->seen = g->host->alloc(n * sizeof *g->seen, "control blocks");
    g->talk = g->host->alloc(
        sizeof *g->talk + (size_t)g->n_ranks * sizeof(wish), "wishes");
    if (!g->shared || !g->seen || !g->talk)
        return BRG_ERR_NOMEM;
    BRG_TRY(brg__mpi_shm_make(g, sizeof(shared_rank), "brg_pg_create",
                              &g->control, (unsigned char **)g->shared));
    g->shared[g->local]->pid = (int32_t)getpid();
    (void)brg__process_born((int32_t)getpid(), &g->shared[g->local]->born);
    MPI_CHECK(g, MPI_Barrier(g->node));
    brg__mpi_watch(g);
    return BRG_OK;
}

/* ---- Regions -------------------------------------------------------------------------------- */

static int64_t find_free(const mpi_group *g, size_t nbytes)
{
    for (uint32_t i = 0; i < g->n_regions; i++)
        if (g->regions[i].is_free && g->regions[i].nbytes >= nbytes &&
            g->regions[i].nbytes / 2 <= nbytes)
            return i;
    return -1;
}

/* Time is up, or a rank of the node is no more. */
static brg_status check_waiting(mpi_group *g, uint64_t start, const char *what)
{
    uint64_t now = g->host->clock_ns();
    if (now - start > g->timeout_ns) {
        brg__mpi_lose(g, LOST);
        return MPI_FAIL(g, BRG_ERR_TIMEOUT,
                        "rank %d: %s timed out: not all ranks called it",
                        g->rank, what);
    }
    if (now < g->next_check_ns)
        return BRG_OK;
    g->next_check_ns = now + CHECK_NS;
    brg__mpi_find_dead(g);
    if (g->lost <= 0)
        return BRG_OK;
    return MPI_FAIL(g, BRG_ERR_PEER, "rank %d: %s waits for rank %d, which %s",
                    g->rank, what, (int)g->lost - 1, brg__mpi_gone_words(DIED));
}

brg_status brg__mpi_wait_moving(mpi_group *g, MPI_Request *request,
                                const char *what)
{
    uint64_t start = g->host->clock_ns();
    g->talk->is_open = true;
    for (int flag = 0;;) {
        MPI_CHECK(g, MPI_Test(request, &flag, MPI_STATUS_IGNORE));
        g->talk->is_open = !flag;
        if (flag)
            return BRG_OK;
        BRG_TRY(brg__mpi_node_progress(g));
        BRG_TRY(brg__mpi_p2p_progress(g));
        sched_yield();
        BRG_TRY(check_waiting(g, start, what));
    }
}

static brg_status fail_sizes(const mpi_group *g, uint64_t nbytes, int r)
{
    return MPI_FAIL(g, BRG_ERR_MISMATCH,
                    "ranks disagree: brg_pg_alloc of %llu bytes on rank %d, of "
                    "%llu on rank %d",
                    (unsigned long long)nbytes, g->rank,
                    (unsigned long long)g->talk->wishes[r].nbytes, r);
}

/* *reuse: the free region that all have, or -1. */
static brg_status agree(mpi_group *g, int64_t *reuse)
{
    const wish *mine = &g->talk->wish, *all = g->talk->wishes;
    MPI_Request request;
    int failed = -1;
    MPI_CHECK(g, MPI_Iallgather(mine, sizeof *mine, MPI_BYTE, g->talk->wishes,
                                sizeof *mine, MPI_BYTE, g->world, &request));
    BRG_TRY(brg__mpi_wait_moving(g, &request, "brg_pg_alloc"));
    *reuse = mine->reuse;
    for (int r = 0; r < g->n_ranks; r++) {
        if (all[r].nbytes != mine->nbytes)
            return fail_sizes(g, mine->nbytes, r);
        if (all[r].reuse != mine->reuse)
            *reuse = -1;
        if (all[r].error && failed < 0)
            failed = r;
    }
    return failed < 0 ? BRG_OK
                      : brg__mpi_fail_memory(g, "brg_pg_alloc", mine->nbytes,
                                             failed, (int)all[failed].error);
}

/* The place of a region that may have to be made. */
static int reserve_region(mpi_group *g)
{
    if (g->n_regions == MAX_REGIONS)
        return 0; /* alike on all ranks: see add_region */
    shm_region *region = &g->regions[g->n_regions];
    if (!region->base)
        region->base =
            g->host->alloc((size_t)g->n_local * sizeof(void *), "a region");
    return region->base ? 0 : ENOMEM;
}

static brg_status add_region(mpi_group *g, size_t nbytes, void **out)
{
    if (g->n_regions == MAX_REGIONS)
        return MPI_FAIL(g, BRG_ERR_STATE,
                        "rank %d: brg_pg_alloc: %d blocks are in use", g->rank,
                        MAX_REGIONS);
    shm_region *region = &g->regions[g->n_regions];
    BRG_TRY(brg__mpi_shm_make(g, nbytes ? nbytes : 1, "brg_pg_alloc",
                              &region->map, region->base));
    region->nbytes = nbytes;
    region->mine = region->base[g->local];
    g->n_regions++;
    *out = region->mine;
    return BRG_OK;
}

brg_status brg__mpi_region_alloc(void *group, void **out, size_t nbytes)
{
    mpi_group *g = group;
    int64_t reuse = -1;
    g->talk->wish =
        (wish){nbytes, find_free(g, nbytes), out ? reserve_region(g) : ENOMEM};
    BRG_TRY(agree(g, &reuse));
    if (reuse < 0)
        return add_region(g, nbytes, out);
    shm_region *region = &g->regions[reuse];
    region->is_free = false;
    memset(region->mine, 0, nbytes);
    *out = region->mine;
    return BRG_OK;
}

/* Others may still read it: it is given back with the group. */
void brg__mpi_region_free(void *group, void *ptr)
{
    mpi_group *g = group;
    for (uint32_t i = 0; i < g->n_regions; i++)
        if (g->regions[i].mine == ptr)
            g->regions[i].is_free = true;
}

void brg__mpi_region_find(const mpi_group *g, const void *ptr, size_t nbytes,
                          shared_line *line)
{
    for (uint32_t i = 0; i < g->n_regions; i++) {
        const shm_region *region = &g->regions[i];
        size_t offset = (size_t)((uintptr_t)ptr - (uintptr_t)region->mine);
        if (offset >= region->nbytes || nbytes > region->nbytes - offset)
            continue;
        line->region = i + 1;
        line->offset = offset;
        return;
    }
}

/* ---- Lifecycle ------------------------------------------------------------------------------- */

brg_status brg__mpi_world_init(mpi_group *g, const void *comm)
{
    g->world = g->node = MPI_COMM_NULL;
    g->exit_key = MPI_KEYVAL_INVALID;
    BRG_TRY(init_mpi(g));
    BRG_TRY(init_topology(g, comm ? *(const MPI_Comm *)comm : MPI_COMM_WORLD));
    BRG_TRY(init_control(g));
    return watch_finalize(g);
}

/* Processes that will not come to destroy the group. */
static bool some_ended(mpi_group *g)
{
    for (int r = 0; g->shared && r < g->n_local; r++)
        if (g->shared[r] && atomic_load(&g->shared[r]->gone) == ENDED)
            return true;
    uint64_t now = g->host->clock_ns();
    if (now < g->next_check_ns)
        return g->lost > 0;
    g->next_check_ns = now + CHECK_NS;
    brg__mpi_find_dead(g);
    return g->lost > 0;
}

/* True when all ranks have come to destroy the group. */
static bool all_came(mpi_group *g)
{
    MPI_Request request;
    int flag = 0;
    if (MPI_Ibarrier(g->world, &request) != MPI_SUCCESS)
        return false;
    uint64_t start = g->host->clock_ns();
    while (!flag && !some_ended(g) &&
           g->host->clock_ns() - start < DESTROY_WAIT_NS) {
        if (MPI_Test(&request, &flag, MPI_STATUS_IGNORE) != MPI_SUCCESS)
            return false;
        if (!flag)
            sched_yield();
    }
    return flag;
}

/* Takes what rank r has sent and nobody received, up to its farewell. */
static bool hear_out(mpi_group *g, int r, uint64_t until)
{
    MPI_Status status = {.MPI_TAG = 0};
    while (status.MPI_TAG != TAG_FAREWELL) {
        int flag = 0, n;
        if (MPI_Iprobe(r, MPI_ANY_TAG, g->world, &flag, &status) !=
                MPI_SUCCESS ||
            g->host->clock_ns() > until)
            return false;
        if (!flag) {
            status.MPI_TAG = 0;
            sched_yield();
            continue;
        }
        void *room = NULL;
        bool is_taken =
            MPI_Get_count(&status, MPI_BYTE, &n) == MPI_SUCCESS &&
            (n == 0 || (room = g->host->alloc((size_t)n, "a message"))) &&
            MPI_Recv(room, n, MPI_BYTE, r, status.MPI_TAG, g->world,
                     MPI_STATUS_IGNORE) == MPI_SUCCESS;
        g->host->free(room);
        if (!is_taken)
            return false;
    }
    return true;
}

/* MPI may give a new communicator the number of one that was freed, and what
 * was sent on that and not received would turn up there. Two ranks' messages
 * keep their order: what comes before a farewell is all there is. A rank that
 * was lost says none, so the communicators of its group are not freed. */
static bool take_leave(mpi_group *g)
{
    size_t n = (size_t)g->n_ranks;
    MPI_Request *requests = brg__mpi_alloc_requests(g, n);
    uint64_t until = g->host->clock_ns() + DESTROY_WAIT_NS;
    bool is_over = requests != NULL;
    brg__mpi_across_cancel(g);
    brg__mpi_spread_cancel(g);
    for (int r = 0; is_over && r < g->n_ranks; r++)
        if (r != g->rank)
            is_over = MPI_Isend(NULL, 0, MPI_BYTE, r, TAG_FAREWELL, g->world,
                                &requests[r]) == MPI_SUCCESS;
    for (int r = 0; is_over && r < g->n_ranks; r++)
        if (r != g->rank)
            is_over = hear_out(g, r, until);
    if (is_over)
        is_over = MPI_Waitall(g->n_ranks, requests, MPI_STATUSES_IGNORE) ==
                  MPI_SUCCESS;
    g->host->free(requests);
    return is_over;
}

static void free_comms(mpi_group *g)
{
    if (g->node != MPI_COMM_NULL)
        (void)MPI_Comm_free(&g->node);
    (void)MPI_Comm_free(&g->world);
}

void brg__mpi_world_deinit(mpi_group *g)
{
    int is_over = 0;
    (void)MPI_Finalized(&is_over);
    if (!is_over && g->world != MPI_COMM_NULL) {
        unwatch_finalize(g);
        if (all_came(g) && take_leave(g))
            free_comms(g);
        else
            g->host->log(BRG_LOG_WARN, "mpi",
                         "rank %d: not all ranks destroyed the group; its "
                         "communicators stay until the process ends",
                         g->rank);
    }
    for (uint32_t i = 0; i < MAX_REGIONS; i++) {
        brg__mpi_shm_drop(&g->regions[i].map);
        g->host->free(g->regions[i].base);
    }
    brg__mpi_shm_drop(&g->control);
    if (g->talk && !g->talk->is_open)
        g->host->free(g->talk);
    g->host->free(g->rank_at);
    g->host->free(g->node_begin);
    g->host->free(g->shared);
    g->host->free(g->seen);
}
