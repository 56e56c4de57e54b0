/* SPDX-License-Identifier: Apache-2.0
 * Sparse gradients: a bag of words learns to tell two kinds of texts apart. A
 * step touches only the rows of the table whose words it has seen. */
#include <stdio.h>
#include <stdlib.h>

#include <brigade/autograd.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/sparse.h>

#define N_WORDS 20000
#define WIDTH 16
#define N_TEXTS 32
#define LENGTH 12
#define N_STEPS 150

typedef struct model {
    brg_params *params;
    brg_optim *optim;
    brg_tensor *table;  /* (words, width) */
    brg_tensor *weight; /* (2, width) */
} model;

static brg_tensor *random_tensor(int ndim, const int64_t *shape)
{
    brg_tensor *t = brg_empty(BRG_DTYPE_F32, ndim, shape);
    float *at = t ? brg_tensor_data(t) : NULL;
    for (int64_t i = 0; t && i < brg_tensor_numel(t); i++)
        at[i] = 0.2f * (float)rand() / (float)RAND_MAX - 0.1f;
    return t;
}

static brg_status create_model(model *m)
{
    brg_adamw_options options = BRG_ADAMW_OPTIONS_INIT;
    options.lr = 0.02;
    m->table = random_tensor(BRG_SHAPE(N_WORDS, WIDTH));
    m->weight = random_tensor(BRG_SHAPE(2, WIDTH));
    BRG_TRY(brg_params_create(&m->params));
    BRG_TRY(brg_params_add(m->params, "table", m->table, BRG_PARAM_TRAINED));
    BRG_TRY(brg_params_add(m->params, "weight", m->weight, BRG_PARAM_TRAINED));
    return brg_optim_create_adamw(&m->optim, m->params, &options);
}

/* Texts of kind 1 use odd words more often; some words are frequent. */
static void create_texts(int64_t *words, int64_t *kinds)
{
    for (int i = 0; i < N_TEXTS; i++) {
        kinds[i] = rand() % 2;
        for (int k = 0; k < LENGTH; k++) {
            int64_t word = rand() % (rand() % 4 ? 200 : N_WORDS);
            bool is_typical = rand() % 10 < 9;
            bool is_odd = is_typical == (kinds[i] == 1);
            words[i * LENGTH + k] = word / 2 * 2 + is_odd;
        }
    }
}

static brg_status step(const model *m, double *loss, int64_t *n_rows)
{
    int64_t words[N_TEXTS * LENGTH], kinds[N_TEXTS];
    brg_embedding_options options = BRG_EMBEDDING_OPTIONS_INIT;
    options.sparse_grad = true;
    create_texts(words, kinds);
    brg_tensor *ids =
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(N_TEXTS, LENGTH), words);
    brg_tensor *targets =
        brg_from_data(BRG_DTYPE_I64, BRG_SHAPE(N_TEXTS), kinds);
    brg_tensor *rows = brg_embedding_with(m->table, ids, &options);
    brg_tensor *bags = brg_mean(rows, BRG_DIMS(1), false); /* (texts, width) */
    brg_tensor *error =
        brg_cross_entropy(brg_linear(bags, m->weight, NULL), targets);
    BRG_TRY(brg_backward(error)); /* fails if error is NULL */
    BRG_TRY(brg_tensor_item(error, loss));
    BRG_TRY(brg_clip_grad_norm(NULL, m->params, 1.0, true));
    *n_rows = brg_sparse_nnz(brg_tensor_grad(m->table));
    BRG_TRY(brg_optim_step(m->optim));
    return brg_optim_zero_grad(m->optim, false);
}

static brg_status train(const model *m, double *loss)
{
    for (int i = 0; i < N_STEPS; i++) {
        int64_t n_rows = 0;
        brg_scope *scope = brg_scope_begin();
        brg_status status = step(m, loss, &n_rows);
        brg_scope_end(scope);
        BRG_TRY(status);
        if (i % 30 == 0)
            printf("step %3d: loss %.5f, %lld of %d rows touched\n", i, *loss,
                   (long long)n_rows, N_WORDS);
    }
    return BRG_OK;
}

int main(void)
{
    model m = {0};
    double loss = 1;
    srand(1);
    brg_scope *scope = brg_scope_begin();
    brg_status status = create_model(&m);
    if (status == BRG_OK)
        status = train(&m, &loss);
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    brg_optim_destroy(m.optim);
    brg_params_destroy(m.params);
    brg_scope_end(scope);
    printf("loss %.5f\n", loss);
    return status == BRG_OK && loss < 0.2 ? EXIT_SUCCESS : EXIT_FAILURE;
}
