/* SPDX-License-Identifier: Apache-2.0
 * Ranks are lost, the others go on: the loop of docs/failures.md.
 *
 *     shrink                                   four simulated ranks
 *     mpirun --with-ft ulfm -n 4 shrink 1 0    Open MPI 5: rank 1 kills itself,
 *                                              then rank 0
 * Whoever is there shares the batch, so the weights are those of one rank. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/brigade.h>

enum { MAX_LOSSES = 8, N_STEPS = 60, BATCH = 24, N_IN = 6 };

typedef struct training {
    brg_pg *pg;
    brg_pg *gone[MAX_LOSSES]; /* groups that lost a rank */
    int n_gone;
    brg_params *params;
    brg_ddp *ddp;
    brg_optim *optim;
    int64_t n_steps, dies_at;
} training;

/* This rank's share of the batch; the outputs are to be 1. */
static brg_status train_step(training *t)
{
    const int n = BATCH / brg_pg_world_size(t->pg);
    const int64_t first = BATCH * t->n_steps + n * brg_pg_rank(t->pg);
    float x[BATCH * N_IN];
    if (t->n_steps == t->dies_at)
        raise(SIGKILL);
    for (int i = 0; i < n * N_IN; i++)
        x[i] = cosf((float)(N_IN * first + i));
    brg_scope *scope = brg_scope_begin();
    brg_tensor *in = brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(n, N_IN), x);
    brg_tensor *out = brg_matmul(in, brg_params_find(t->params, "w"));
    brg_status status =
        brg_backward(brg_mse(out, brg_full(BRG_DTYPE_F32, BRG_SHAPE(n), 1.0)));
    brg_scope_end(scope);
    BRG_TRY(status);
    BRG_TRY(brg_optim_step(t->optim));
    t->n_steps++;
    return brg_optim_zero_grad(t->optim, false);
}

/* shown begin */
/* A step; where a rank is lost, the others agree on which is the next. */
static brg_status step_or_go_on(training *t)
{
    brg_status status = train_step(t);
    while (status != BRG_OK) {
        brg_pg *left;
        if (brg_pg_error(t->pg) == BRG_OK || t->n_gone == MAX_LOSSES)
            return status;                    /* not for a lost rank */
        BRG_TRY(brg_pg_shrink(&left, t->pg)); /* every rank that is left */
        t->gone[t->n_gone++] = t->pg;         /* destroyed after the ddp */
        t->pg = left; /* a new rank and world size: other shares of a batch */
        status = brg_ddp_regroup(t->ddp, left, t->optim, &t->n_steps);
    }
    return BRG_OK;
}
/* shown end */

static brg_status open_training(training *t)
{
    brg_sgd_options sgd = {.struct_size = sizeof sgd, .lr = 0.01};
    brg_tensor *w = brg_zeros(BRG_DTYPE_F32, BRG_SHAPE(N_IN));
    BRG_TRY(brg_params_create(&t->params));
    BRG_TRY(brg_params_add(t->params, "w", w, BRG_PARAM_TRAINED));
    BRG_TRY(brg_optim_create_sgd(&t->optim, t->params, &sgd));
    return brg_ddp_create(&t->ddp, t->pg, &w, 1, NULL, 0, NULL);
}

static brg_status run(brg_pg *pg, int64_t dies_at, float w[N_IN])
{
    training t = {.pg = pg, .dies_at = dies_at};
    brg_scope *scope = brg_scope_begin();
    brg_status status = open_training(&t);
    while (status == BRG_OK && t.n_steps < N_STEPS)
        status = step_or_go_on(&t);
    if (status == BRG_OK)
        status = brg_tensor_read(brg_params_find(t.params, "w"), w,
                                 N_IN * sizeof *w);
    brg_ddp_destroy(t.ddp);
    brg_optim_destroy(t.optim);
    brg_params_destroy(t.params);
    brg_scope_end(scope);
    brg_pg_destroy(t.pg);
    while (t.n_gone > 0)
        brg_pg_destroy(t.gone[--t.n_gone]);
    return status;
}

/* user: the ranks that kill themselves, in their order. */
static brg_status rank_main(brg_pg *pg, void *user)
{
    float w[N_IN], alone[N_IN], largest = 0;
    char **dying = user;
    const int rank = brg_pg_rank(pg);
    int64_t dies_at = -1;
    for (int i = 0; dying[i]; i++)
        if (atoi(dying[i]) == rank)
            dies_at = 10 * (i + 1);
    BRG_TRY(run(pg, dies_at, w));
    BRG_TRY(brg_pg_create_self(&pg));
    BRG_TRY(run(pg, -1, alone));
    for (int k = 0; k < N_IN; k++)
        largest = fmaxf(largest, fabsf(w[k] - alone[k]));
    printf("rank %d: weights differ by %.1g\n", rank, (double)largest);
    return largest < 1e-5f ? BRG_OK : BRG_ERR_INTERNAL;
}

int main(int argc, char **argv)
{
    const struct brg_sim_fault deaths[] = {{BRG_SIM_DIE, 1, 20, 0},
                                           {BRG_SIM_DIE, 3, 50, 0}};
    brg_sim_options sim = {
        .struct_size = sizeof sim, .faults = deaths, .n_faults = 2};
    brg_pg *pg;
    brg_status status;
    if (argc == 1)
        status = brg_sim_run(4, &sim, rank_main, argv + 1);
    else if ((status = brg_pg_create(&pg, "mpi", NULL)) == BRG_OK)
        status = rank_main(pg, argv + 1);
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    return status == BRG_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
