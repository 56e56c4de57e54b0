/* SPDX-License-Identifier: Apache-2.0
 * Memory of graphs: see graph.h. The lowest block that fits is taken, and free
 * neighbours are joined, so that a recording like the last one is given the same
 * addresses. */
#include "core/cuda/graph.h"

#define ALIGNMENT ((size_t)512)
#define CHUNK ((size_t)32 << 20)

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- Chunks ------------------------------------------------------------------ */

static void free_chunk(brg__cu_chunk *c)
{
    for (brg__cu_block *b = c->first, *next; b; b = next) {
        next = b->next;
        brg__cu_host->free(b);
    }
    if (c->at)
        (void)cudaFree(c->at);
    brg__cu_host->free(c);
}

static brg_status add_chunk(brg__cu_graph *g, size_t nbytes)
{
    brg__cu_chunk *c = brg__cu_host->alloc(sizeof *c, "memory of a graph");
    brg__cu_block *b = brg__cu_host->alloc(sizeof *b, "memory of a graph");
    brg_status status = c && b ? BRG_OK : BRG_ERR_NOMEM;
    if (status == BRG_OK)
        status = brg__cu_check(cudaMalloc((void **)&c->at, nbytes),
                               "cuda: memory of a graph");
    if (status != BRG_OK) {
        brg__cu_host->free(c);
        brg__cu_host->free(b);
        return status;
    }
    c->nbytes = nbytes;
    c->first = b;
    *b = (brg__cu_block){.at = c->at, .nbytes = nbytes};
    brg__cu_chunk **end = &g->chunks;
    while (*end)
        end = &(*end)->next;
    *end = c;
    return BRG_OK;
}

/* ---- Blocks -------------------------------------------------------------------- */

static brg__cu_block *find_free(const brg__cu_graph *g, size_t nbytes)
{
    for (brg__cu_chunk *c = g->chunks; c; c = c->next)
        for (brg__cu_block *b = c->first; b; b = b->next)
            if (!b->is_used && b->nbytes >= nbytes)
                return b;
    return NULL;
}

static brg_status cut(brg__cu_block *b, size_t nbytes)
{
    if (b->nbytes == nbytes)
        return BRG_OK;
    brg__cu_block *rest =
        brg__cu_host->alloc(sizeof *rest, "memory of a graph");
    if (!rest)
        return BRG_ERR_NOMEM;
    *rest = (brg__cu_block){
        .next = b->next, .at = b->at + nbytes, .nbytes = b->nbytes - nbytes};
    b->next = rest;
    b->nbytes = nbytes;
    return BRG_OK;
}

static brg_status take(brg__cu_graph *g, void **out, size_t nbytes)
{
    brg__cu_block *b = find_free(g, nbytes);
    if (!b) {
        BRG__CU_TRY(add_chunk(g, nbytes > CHUNK ? nbytes : CHUNK));
        b = find_free(g, nbytes);
    }
    BRG__CU_TRY(cut(b, nbytes));
    b->is_used = true;
    g->n_used++;
    *out = b->at;
    return BRG_OK;
}

brg_status brg__cu_block_alloc(brg__cu *cu, brg__cu_graph *g, void **out,
                               size_t nbytes)
{
    pthread_mutex_lock(&cu->graphs.lock);
    brg_status status = take(g, out, round_up(nbytes + !nbytes, ALIGNMENT));
    pthread_mutex_unlock(&cu->graphs.lock);
    return status;
}

static void join(brg__cu_block *b)
{
    brg__cu_block *gone = b->next;
    b->nbytes += gone->nbytes;
    b->next = gone->next;
    brg__cu_host->free(gone);
}

static bool give_back(brg__cu_graph *g, const char *ptr)
{
    brg__cu_chunk *c = g->chunks;
    while (c && !(ptr >= c->at && ptr < c->at + c->nbytes))
        c = c->next;
    if (!c)
        return false;
    brg__cu_block *before = NULL, *b = c->first;
    for (; b && b->at != ptr; b = b->next)
        before = b;
    if (!b || !b->is_used)
        return true;
    b->is_used = false;
    g->n_used--;
    if (b->next && !b->next->is_used)
        join(b);
    if (before && !before->is_used)
        join(before);
    return true;
}

/* ---- Life ------------------------------------------------------------------------ */

static void free_graph(brg__cu *cu, brg__cu_graph *g)
{
    brg__cu_graph **at = &cu->graphs.first;
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    atomic_fetch_sub(&cu->graphs.n, 1);
    for (brg__cu_chunk *c = g->chunks, *next; c; c = next) {
        next = c->next;
        free_chunk(c);
    }
    brg__cu_host->free(g);
}

void brg__cu_graph_enlist(brg__cu *cu, brg__cu_graph *g)
{
    pthread_mutex_lock(&cu->graphs.lock);
    g->next = cu->graphs.first;
    cu->graphs.first = g;
    atomic_fetch_add(&cu->graphs.n, 1);
    pthread_mutex_unlock(&cu->graphs.lock);
}

void brg__cu_graph_drop(brg__cu *cu, brg__cu_graph *g)
{
    pthread_mutex_lock(&cu->graphs.lock);
    g->is_orphan = true;
    if (g->n_used == 0)
        free_graph(cu, g);
    pthread_mutex_unlock(&cu->graphs.lock);
}

bool brg__cu_block_free(brg__cu *cu, void *ptr)
{
    bool is_found = false;
    if (atomic_load_explicit(&cu->graphs.n, memory_order_relaxed) == 0)
        return false;
    pthread_mutex_lock(&cu->graphs.lock);
    for (brg__cu_graph *g = cu->graphs.first; g && !is_found; g = g->next) {
        is_found = give_back(g, ptr);
        if (is_found && g->is_orphan && g->n_used == 0) {
            free_graph(cu, g);
            break;
        }
    }
    pthread_mutex_unlock(&cu->graphs.lock);
    return is_found;
}

size_t brg__cu_graph_bytes(brg__cu *cu)
{
    size_t n = 0;
    pthread_mutex_lock(&cu->graphs.lock);
    for (brg__cu_graph *g = cu->graphs.first; g; g = g->next)
        for (brg__cu_chunk *c = g->chunks; c; c = c->next)
            n += c->nbytes;
    pthread_mutex_unlock(&cu->graphs.lock);
    return n;
}
