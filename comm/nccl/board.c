/* SPDX-License-Identifier: Apache-2.0
 * The board: who is on this machine, memory for them, lines. See board.h. */
#include "comm/nccl/group.h"

#include <stdio.h>
#include <sys/mman.h>

#include "core/base/process.h"

/* ---- Who is where ------------------------------------------------------------- */

/* What each rank tells all others when the group is made. */
typedef struct card {
    char machine[96];
    char gpu[32];
    int32_t pid;
    int32_t number; /* of this process's groups */
    int32_t status;
    uint64_t born;
} card;

/* Processes that see each other's numbers and memory. */
static void name_machine(char *text, size_t size)
{
    char boot[48] = "", space[40] = "";
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file && !fgets(boot, sizeof boot, file))
        boot[0] = '\0';
    if (file)
        (void)fclose(file);
    boot[strcspn(boot, "\n")] = '\0';
    ssize_t n = readlink("/proc/self/ns/pid", space, sizeof space - 1);
    space[n > 0 ? n : 0] = '\0';
    snprintf(text, size, "%s %s", boot, space);
}

bool brg__nccl_desk_died(const brg__nccl_desk *desk)
{
    return brg__process_has_died(desk->pid, desk->born) &&
           atomic_load(&desk->gone) == 0;
}

static brg_status fill_card(brg__nccl_group *g, card *c)
{
    static _Atomic int32_t n_groups;
    name_machine(c->machine, sizeof c->machine);
    c->pid = (int32_t)getpid();
    c->number = atomic_fetch_add(&n_groups, 1);
    (void)brg__process_born(c->pid, &c->born);
    return brg__nccl_check_cuda(
        g, cudaDeviceGetPCIBusId(c->gpu, sizeof c->gpu, g->device), "the GPU");
}

/* NCCL would refuse it without saying who. */
static brg_status check_gpus(const brg__nccl_group *g, const card *cards)
{
    for (int a = 0; a < g->n_ranks; a++)
        for (int b = a + 1; b < g->n_ranks; b++)
            if (strcmp(cards[a].machine, cards[b].machine) == 0 &&
                strcmp(cards[a].gpu, cards[b].gpu) == 0)
                return g->host->fail(
                    BRG_ERR_ARG, __FILE__, __LINE__,
                    "rank %d: nccl: ranks %d and %d are both on the GPU %s; "
                    "expected one GPU for each rank",
                    g->rank, a, b, cards[a].gpu);
    return BRG_OK;
}

/* The ranks of this machine, in order; the first one makes the memory. */
static brg_status find_neighbours(brg__nccl_group *g, const card *cards)
{
    brg__nccl_board *b = &g->board;
    b->ranks = g->host->alloc((size_t)g->n_ranks * sizeof *b->ranks, "ranks");
    if (!b->ranks)
        return BRG_ERR_NOMEM;
    for (int r = 0; r < g->n_ranks; r++) {
        if (strcmp(cards[r].machine, cards[g->rank].machine) != 0)
            continue;
        if (r == g->rank)
            b->mine = b->n;
        b->ranks[b->n++] = r;
    }
    return BRG_OK;
}

/* ---- Memory --------------------------------------------------------------------- */

size_t brg__nccl_board_nbytes(const brg__nccl_board *b)
{
    return (size_t)b->n * sizeof(brg__nccl_desk);
}

static void map(brg__nccl_board *b, const char *name, int flags)
{
    int fd = shm_open(name, flags | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (!(flags & O_CREAT) ||
        ftruncate(fd, (off_t)brg__nccl_board_nbytes(b)) == 0) {
        void *at = mmap(NULL, brg__nccl_board_nbytes(b), PROT_READ | PROT_WRITE,
                        MAP_SHARED, fd, 0);
        b->desks = at == MAP_FAILED ? NULL : at;
    }
    (void)close(fd);
}

static void unmap(brg__nccl_board *b)
{
    if (b->desks)
        (void)munmap(b->desks, brg__nccl_board_nbytes(b));
    b->desks = NULL;
}

static void sit_down(brg__nccl_board *b, const card *mine)
{
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(b);
    if (!desk)
        return;
    desk->pid = mine->pid;
    desk->born = mine->born;
}

/* Where a rank cannot see the others' processes, there is no board. */
static bool sees_all(const brg__nccl_board *b)
{
    bool all = b->desks != NULL;
    for (int i = 0; all && i < b->n; i++)
        all = brg__process_is_alive(b->desks[i].pid, b->desks[i].born);
    return all;
}

/* Whether all ranks of this machine say yes. Collective. */
static brg_status agree(brg__nccl_group *g, const brg_nccl_options *o,
                        uint8_t *answers, bool *yes)
{
    uint8_t mine = *yes;
    BRG__NCCL_TRY(o->all_gather(o->user, answers, &mine, 1));
    for (int i = 0; i < g->board.n; i++)
        *yes &= answers[g->board.ranks[i]];
    return BRG_OK;
}

static brg_status share(brg__nccl_group *g, const brg_nccl_options *o,
                        const card *cards, uint8_t *answers)
{
    brg__nccl_board *b = &g->board;
    const card *first = &cards[b->ranks[0]];
    char name[64];
    bool yes = true;
    snprintf(name, sizeof name, "/brg-nccl-%d-%llx-%d", (int)first->pid,
             (unsigned long long)first->born, (int)first->number);
    if (b->mine == 0)
        map(b, name, O_CREAT | O_EXCL);
    brg_status status = agree(g, o, answers, &yes); /* it is made */
    if (status == BRG_OK && b->mine > 0)
        map(b, name, 0);
    sit_down(b, &cards[g->rank]);
    yes = b->desks != NULL;
    if (status == BRG_OK)
        status = agree(g, o, answers, &yes); /* it is open, and written */
    if (b->mine == 0)
        (void)shm_unlink(name);
    yes = status == BRG_OK && yes && sees_all(b);
    if (status == BRG_OK)
        status = agree(g, o, answers, &yes);
    if (!yes)
        unmap(b);
    return status;
}

brg_status brg__nccl_board_open(brg__nccl_group *g, const brg_nccl_options *o)
{
    if (!o->all_gather)
        return BRG_OK;
    const size_t n = (size_t)g->n_ranks;
    card mine = {.status = BRG_OK};
    card *cards = g->host->alloc(n * (sizeof *cards + 1), "a board");
    if (!cards)
        return BRG_ERR_NOMEM;
    mine.status = (int32_t)fill_card(g, &mine);
    brg_status status = o->all_gather(o->user, cards, &mine, sizeof mine);
    if (status == BRG_OK)
        status = (brg_status)mine.status;
    for (int r = 0; status == BRG_OK && r < g->n_ranks; r++)
        if (cards[r].status != BRG_OK)
            status = g->host->fail(BRG_ERR_PEER, __FILE__, __LINE__,
                                   "rank %d: nccl: rank %d has no usable GPU",
                                   g->rank, r);
    if (status == BRG_OK)
        status = check_gpus(g, cards);
    if (status == BRG_OK)
        status = find_neighbours(g, cards);
    if (status == BRG_OK)
        status = share(g, o, cards, (uint8_t *)(cards + n));
    g->host->free(cards);
    if (status == BRG_OK && !g->board.desks && g->n_ranks > 1)
        g->host->log(BRG_LOG_WARN, "nccl",
                     "rank %d: no memory shared with the other ranks of this "
                     "machine: errors will not name the rank that is gone",
                     g->rank);
    return status;
}

void brg__nccl_board_close(brg__nccl_group *g)
{
    unmap(&g->board);
    g->host->free(g->board.ranks);
    g->board.ranks = NULL;
}

/* ---- Lines ------------------------------------------------------------------------ */

void brg__nccl_board_write(brg__nccl_board *b, const brg__nccl_said *mine)
{
    brg__nccl_desk *desk = brg__nccl_desk_of_mine(b);
    if (!desk)
        return;
    brg__nccl_line *line = &desk->lines[mine->call.seq % BRG__NCCL_LINES];
    uint64_t words[BRG__NCCL_WORDS] = {0};
    memcpy(words, &mine->call, sizeof mine->call);
    atomic_store(&line->stamp, 0);
    for (size_t k = 0; k < BRG__NCCL_WORDS; k++)
        atomic_store_explicit(&line->signature[k], words[k],
                              memory_order_release);
    atomic_store_explicit(&line->place, mine->place, memory_order_release);
    atomic_store(&line->stamp, mine->call.seq + 1);
    atomic_store(&desk->started, mine->call.seq + 1);
}

bool brg__nccl_board_read(const brg__nccl_board *b, int desk, uint64_t seq,
                          brg__nccl_said *filled)
{
    brg__nccl_line *line = &b->desks[desk].lines[seq % BRG__NCCL_LINES];
    uint64_t words[BRG__NCCL_WORDS];
    if (atomic_load(&line->stamp) != seq + 1)
        return false;
    for (size_t k = 0; k < BRG__NCCL_WORDS; k++)
        words[k] =
            atomic_load_explicit(&line->signature[k], memory_order_acquire);
    memcpy(&filled->call, words, sizeof filled->call);
    filled->place = atomic_load_explicit(&line->place, memory_order_acquire);
    return atomic_load(&line->stamp) == seq + 1;
}

/* Whether some rank says something else than `one`, which is of a desk. */
static bool differs(const brg__nccl_group *g, int desk,
                    const brg__nccl_said *one, brg__nccl_said *other)
{
    const brg__nccl_board *b = &g->board;
    for (int i = 0; b->desks && i < b->n; i++)
        if (i != desk && brg__nccl_board_read(b, i, one->call.seq, other) &&
            (one->place != other->place ||
             !g->host->signatures_match(&one->call, &other->call)))
            return true;
    return false;
}

bool brg__nccl_board_differs(const brg__nccl_group *g,
                             const brg__nccl_said *mine, brg__nccl_said *theirs)
{
    return differs(g, g->board.mine, mine, theirs);
}

static bool find_at(const brg__nccl_group *g, int desk, brg__nccl_said *one,
                    brg__nccl_said *other)
{
    const brg__nccl_board *b = &g->board;
    const uint64_t n = atomic_load(&b->desks[desk].started);
    for (uint64_t k = n > BRG__NCCL_LINES ? n - BRG__NCCL_LINES : 0; k < n; k++)
        if (brg__nccl_board_read(b, desk, k, one) &&
            differs(g, desk, one, other))
            return true;
    return false;
}

bool brg__nccl_board_find(const brg__nccl_group *g, brg__nccl_said *mine,
                          brg__nccl_said *theirs)
{
    const brg__nccl_board *b = &g->board;
    if (!b->desks)
        return false;
    bool found = find_at(g, b->mine, mine, theirs);
    for (int i = 0; i < b->n && !found; i++)
        found = atomic_load(&b->desks[i].gone) == BRG_ERR_MISMATCH &&
                find_at(g, i, mine, theirs);
    return found;
}
