/* SPDX-License-Identifier: Apache-2.0
 * Random models, trained eagerly and compiled over batches of changing size:
 * the same gradients, bit for bit, after every backward. Hooks on tensors,
 * nodes and leaves, retained graphs and gradients, custom functions; and on two
 * ranks of a simulated world under brg_ddp, some steps without reduction. The
 * same as whole steps, backward inside, of models that are captured in one.
 *
 * BRG_TEST_SEED repeats from a model (the message says which);
 * BRG_FUZZ_SECONDS is how long to go on, 1 by default, alone and on ranks. */
#include <brigade/compile.h>
#include <brigade/ddp.h>
#include <brigade/function.h>
#include <brigade/sim.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "core/base/clock.h"
#include "tests/autograd/graph.h"
#include "tests/support/ranks.h"

#define WIDTH 5
#define N_WEIGHTS 3 /* WIDTH x WIDTH, each with a bias */
#define N_PARAMS (2 * N_WEIGHTS)
#define MAX_OPS 24
#define MAX_VALUES (MAX_OPS + 1)
#define N_STEPS 24
#define N_BATCHES 9
#define MAX_BATCH 9
#define MAX_HASHES (2 * N_STEPS * (N_PARAMS + MAX_OPS))

static const int batches[N_BATCHES] = {4, 4, 7, 2, 9, 1, 4, 3, 7};

/* ---- Models -------------------------------------------------------------------- */

typedef enum op_kind {
    OP_LINEAR,
    OP_SIN,
    OP_TANH_SQUARE,
    OP_RELU,
    OP_SIGMOID,
    OP_SCALE,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_SOFTMAX,
    OP_CENTER,     /* minus the mean of the row */
    OP_OVER_BATCH, /* times the mean over the batch */
    OP_CAT,        /* of two, cut to the width */
    OP_FLAT,       /* through another shape that holds the batch */
    OP_IN_PLACE,   /* a copy that changes */
    OP_FUNCTION,   /* code of the user */
    OP_HOOK,       /* on the tensor */
    OP_PRE_HOOK,   /* on the node that made it */
    OP_POST_HOOK,
    OP_RETAIN,
    N_OPS
} op_kind;

typedef struct model_op {
    op_kind kind;
    int a, b, weight;
    double f;
} model_op;

typedef struct model {
    model_op ops[MAX_OPS];
    int n_ops;
    uint64_t seed;
    bool is_whole; /* its steps are; nothing in it needs a value */
} model;

/* What a step does, the same eagerly and compiled, on all ranks. */
typedef struct step_plan {
    bool is_twice, is_synced, is_zeroed, has_leaf_hook;
} step_plan;

static uint64_t draw(uint64_t *random)
{
    *random = *random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return *random >> 33;
}

static double draw_real(uint64_t *random)
{
    return (double)draw(random) / 1073741824.0 - 1;
}

static void make_model(model *m, uint64_t seed, bool is_whole)
{
    uint64_t random = seed * UINT64_C(0x9e3779b97f4a7c15);
    *m = (model){.seed = seed,
                 .n_ops = 4 + (int)(draw(&random) % 20),
                 .is_whole = is_whole};
    for (int k = 0; k < m->n_ops; k++)
        m->ops[k] = (model_op){
            .kind = (op_kind)(draw(&random) % N_OPS),
            .a = draw(&random) % 3 ? k : (int)(draw(&random) % (k + 1)),
            .b = (int)(draw(&random) % (k + 1)),
            .weight = (int)(draw(&random) % N_WEIGHTS),
            .f = 1 + draw_real(&random) / 2};
    for (int k = 0; is_whole && k < m->n_ops; k++) {
        op_kind *kind = &m->ops[k].kind;
        if (*kind == OP_IN_PLACE || *kind == OP_FUNCTION || *kind == OP_RETAIN)
            *kind = OP_CENTER;
    }
}

static step_plan plan_step(const model *m, int step)
{
    uint64_t random = (m->seed + 1) * UINT64_C(0x9e3779b97f4a7c15) + step;
    draw(&random);
    step_plan p = {.is_twice = draw(&random) % 3 == 0 && !m->is_whole,
                   .is_synced = draw(&random) % 3 != 0,
                   .is_zeroed = draw(&random) % 2,
                   .has_leaf_hook = draw(&random) % 2};
    return p;
}

/* ---- Code of the user ------------------------------------------------------------ */

static brg_status half_sin_forward(brg_context *ctx, const brg_value *args,
                                   size_t n, brg_value *out)
{
    (void)n;
    out[0] = brg_value_tensor(brg_sin(args[0].as.tensor));
    return brg_context_save(ctx, &args[0].as.tensor, 1);
}

/* Half the gradient only, so that a plan that ran the rule of sin shows. */
static brg_status half_sin_backward(brg_context *ctx, brg_tensor *const *g,
                                    brg_tensor **gi, size_t *n)
{
    (void)n;
    brg_tensor *x;
    BRG_TRY(brg_context_saved(ctx, 0, &x));
    gi[0] = brg_mul(g[0], brg_mul_scalar(brg_cos(x), 0.5));
    return gi[0] ? BRG_OK : brg_error_code();
}

static brg_function *half_sin;

static int make_function(void **state)
{
    (void)state;
    brg_function_def def = BRG_FUNCTION_DEF_INIT;
    def.name = "half_sin";
    def.n_outputs = 1;
    def.forward = half_sin_forward;
    def.backward = half_sin_backward;
    return brg_function_create(&half_sin, &def) == BRG_OK ? 0 : -1;
}

static int free_function(void **state)
{
    (void)state;
    brg_function_release(half_sin);
    return 0;
}

/* f g + f: hooks that run in another order show. */
static brg_status change(brg_tensor **g, const double *f)
{
    if (!*g)
        return BRG_OK;
    *g = brg_add_scalar(brg_mul_scalar(*g, *f), *f);
    return *g ? BRG_OK : brg_error_code();
}

static brg_status on_tensor(brg_tensor *grad, brg_tensor **replacement,
                            void *user)
{
    *replacement = grad;
    return change(replacement, user);
}

static brg_status on_pre(brg_tensor **grads, size_t n, void *user)
{
    return n ? change(&grads[0], user) : BRG_OK;
}

static brg_status on_post(brg_tensor **grad_in, size_t n_in,
                          brg_tensor *const *grad_out, size_t n_out, void *user)
{
    (void)grad_out;
    (void)n_out;
    return n_in ? change(&grad_in[0], user) : BRG_OK;
}

/* ---- One side: eager or compiled -------------------------------------------------- */

typedef struct side {
    const model *m;
    brg_pg *pg; /* NULL: alone */
    brg_ddp *ddp;
    brg_compiled *step; /* NULL: steps are called as they are */
    brg_tensor *params[N_PARAMS];
    brg_tensor *kept[MAX_OPS];
    int n_kept;
    uint64_t n_seen; /* calls of post-accumulate hooks */
    XXH64_hash_t hash[MAX_HASHES];
    int n;
} side;

/* A leaf's hook: what it sees of .grad is part of what is compared. */
static brg_status on_accumulated(brg_tensor *leaf, void *user)
{
    side *s = user;
    brg_tensor *grad = brg_tensor_grad(leaf);
    s->n_seen++;
    if (s->pg || !grad) /* .grad is the reducer's until the end */
        return BRG_OK;
    const double f = 0.5;
    BRG_TRY(change(&grad, &f));
    return brg_tensor_set_grad(leaf, grad);
}

static brg_status add_hook(const model_op *op, brg_tensor *t)
{
    brg_node *node;
    brg_status status;
    if (!brg_requires_grad(t))
        return BRG_OK;
    void *f = (void *)(uintptr_t)&op->f;
    if (op->kind == OP_HOOK)
        return brg_tensor_add_hook(NULL, t, on_tensor, f, NULL);
    BRG_TRY(brg_tensor_node(&node, t));
    status = op->kind == OP_PRE_HOOK
                 ? brg_node_add_pre_hook(NULL, node, on_pre, f, NULL)
                 : brg_node_add_post_hook(NULL, node, on_post, f, NULL);
    brg_node_release(node);
    return status;
}

static brg_tensor *linear(const side *s, const model_op *op, brg_tensor *a)
{
    return brg_add(brg_matmul(a, s->params[2 * op->weight]),
                   s->params[2 * op->weight + 1]);
}

static brg_tensor *shaped(const model_op *op, brg_tensor *a, brg_tensor *b)
{
    const int64_t n = brg_tensor_shape(a)[0];
    switch (op->kind) {
    case OP_CENTER:
        return brg_sub(a, brg_mean(a, 1, (int[]){1}, true));
    case OP_OVER_BATCH:
        return brg_mul(a, brg_mean(b, 1, (int[]){0}, true));
    case OP_CAT:
        return brg_slice(brg_cat((brg_tensor *[]){a, b}, 2, 1), 1, 2, 2 + WIDTH,
                         1);
    default:
        return brg_reshape(brg_sin(brg_reshape(a, BRG_SHAPE(n * WIDTH))),
                           BRG_SHAPE(n, WIDTH));
    }
}

static brg_tensor *change_copy(const model_op *op, brg_tensor *a)
{
    brg_tensor *t = brg_copy(a);
    return t && brg_mul_scalar_(t, op->f) == BRG_OK ? t : NULL;
}

static brg_tensor *apply(side *s, const model_op *op, brg_tensor *a,
                         brg_tensor *b)
{
    const brg_value arg = brg_value_tensor(a);
    switch (op->kind) {
    case OP_LINEAR:
        return linear(s, op, a);
    case OP_SIN:
        return brg_sin(a);
    case OP_TANH_SQUARE:
        return brg_tanh(brg_square(a));
    case OP_RELU:
        return brg_relu(a);
    case OP_SIGMOID:
        return brg_sigmoid(a);
    case OP_SCALE:
        return brg_mul_scalar(a, op->f);
    case OP_ADD:
        return brg_add(a, b);
    case OP_SUB:
        return brg_sub(a, b);
    case OP_MUL:
        return brg_tanh(brg_mul(a, b));
    case OP_SOFTMAX:
        return brg_softmax(a, -1);
    case OP_IN_PLACE:
        return change_copy(op, a);
    case OP_FUNCTION:
        return brg_function_call(half_sin, &arg, 1);
    case OP_RETAIN:
        if (brg_requires_grad(a))
            s->kept[s->n_kept++] = a;
        return brg_retain_grad(a) == BRG_OK ? a : NULL;
    case OP_HOOK:
    case OP_PRE_HOOK:
    case OP_POST_HOOK:
        return add_hook(op, a) == BRG_OK ? a : NULL;
    default:
        return shaped(op, a, b);
    }
}

/* The ranks' batches differ. */
static brg_tensor *data_of(const side *s, int step)
{
    float x[MAX_BATCH * WIDTH];
    const int rank = s->pg ? brg_pg_rank(s->pg) : 0;
    uint64_t random = s->m->seed * 1000 + (uint64_t)(step * 10 + rank);
    const int batch = batches[(step + rank) % N_BATCHES];
    draw(&random);
    for (int i = 0; i < batch * WIDTH; i++)
        x[i] = (float)draw_real(&random);
    return brg_from_data(BRG_DTYPE_F32, BRG_SHAPE(batch, WIDTH), x);
}

/* Every parameter has a part in it. */
static brg_tensor *loss_of(side *s, brg_tensor *x)
{
    brg_tensor *t[MAX_VALUES];
    t[0] = brg_add(x, s->params[1]);
    s->n_kept = 0;
    for (int k = 0; k < s->m->n_ops; k++) {
        const model_op *op = &s->m->ops[k];
        t[k + 1] = apply(s, op, t[op->a], t[op->b]);
        if (!t[k + 1])
            return NULL;
    }
    brg_tensor *loss = brg_mean_all(t[s->m->n_ops]);
    for (int i = 0; i < N_PARAMS; i++)
        loss = brg_add(loss, brg_mean_all(brg_sin(s->params[i])));
    return loss;
}

/* ---- Training ----------------------------------------------------------------------- */

static brg_status note(side *s, const brg_tensor *grad)
{
    float bits[MAX_BATCH * WIDTH];
    const size_t nbytes = grad ? brg_tensor_nbytes(grad) : 0;
    RANK_CHECK(s->n < MAX_HASHES && nbytes <= sizeof bits, "no room");
    if (grad)
        BRG_TRY(brg_tensor_read(grad, bits, nbytes));
    s->hash[s->n++] = XXH64(bits, nbytes, s->n_seen);
    return BRG_OK;
}

static brg_status note_all(side *s)
{
    for (int i = 0; i < N_PARAMS; i++)
        BRG_TRY(note(s, brg_tensor_grad(s->params[i])));
    for (int i = 0; i < s->n_kept; i++)
        BRG_TRY(note(s, brg_tensor_grad(s->kept[i])));
    return BRG_OK;
}

static brg_status one_backward(side *s, brg_tensor *loss, bool is_kept)
{
    brg_backward_options options = BRG_BACKWARD_OPTIONS_INIT;
    options.retain_graph = is_kept;
    BRG_TRY(brg_backward_with(&loss, 1, &options));
    return note_all(s);
}

/* A whole step. */
static brg_status whole_step(brg_tensor *const *in, size_t n_in,
                             brg_tensor **out, size_t n_out, void *user)
{
    (void)n_in;
    (void)n_out;
    out[0] = loss_of(user, in[0]);
    return out[0] ? brg_backward(out[0]) : brg_error_code();
}

static brg_status train_whole(side *s, brg_tensor *x, bool is_synced)
{
    brg_tensor *loss;
    if (s->ddp)
        (void)brg_ddp_set_sync(s->ddp, is_synced);
    BRG_TRY(s->step ? brg_compiled_call(s->step, &x, 1, &loss, 1)
                    : whole_step(&x, 1, &loss, 1, s));
    return note_all(s);
}

/* Of two backwards over one graph only the last is reduced. */
static brg_status train_apart(side *s, brg_tensor *x, const step_plan *plan)
{
    brg_tensor *loss = loss_of(s, x);
    brg_status status = loss ? BRG_OK : brg_error_code();
    for (int k = plan->is_twice ? 0 : 1; status == BRG_OK && k < 2; k++) {
        if (s->ddp)
            (void)brg_ddp_set_sync(s->ddp, k == 1 && plan->is_synced);
        status = one_backward(s, loss, k == 0);
    }
    return status;
}

static brg_status train_step(side *s, int step)
{
    const step_plan plan = plan_step(s->m, step);
    brg_hook *hook = NULL;
    for (int i = 0; plan.is_zeroed && i < N_PARAMS; i++)
        BRG_TRY(brg_tensor_set_grad(s->params[i], NULL));
    if (plan.has_leaf_hook)
        BRG_TRY(brg_tensor_add_post_accumulate_hook(&hook, s->params[step % 2],
                                                    on_accumulated, s, NULL));
    brg_tensor *x = data_of(s, step);
    brg_status status = !x               ? brg_error_code()
                        : s->m->is_whole ? train_whole(s, x, plan.is_synced)
                                         : train_apart(s, x, &plan);
    if (hook)
        brg_hook_remove(hook);
    return status;
}

static brg_status make_params(side *s)
{
    uint64_t random = s->m->seed;
    for (int i = 0; i < N_PARAMS; i++) {
        float w[WIDTH * WIDTH];
        for (int k = 0; k < WIDTH * WIDTH; k++)
            w[k] = (float)draw_real(&random);
        const int64_t shape[2] = {WIDTH, WIDTH};
        s->params[i] = brg_from_data(BRG_DTYPE_F32, i % 2 ? 1 : 2, shape, w);
        if (!s->params[i])
            return brg_error_code();
        BRG_TRY(brg_set_requires_grad(s->params[i], true));
    }
    return BRG_OK;
}

static brg_status train(side *s)
{
    brg_ddp_options options = BRG_DDP_OPTIONS_INIT;
    options.first_bucket_bytes = options.bucket_bytes = 150;
    BRG_TRY(make_params(s));
    if (s->pg)
        BRG_TRY(brg_ddp_create(&s->ddp, s->pg, s->params, N_PARAMS, NULL, 0,
                               &options));
    for (int step = 0; step < N_STEPS; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_status status = train_step(s, step);
        brg_scope_end(scope);
        BRG_TRY(status);
    }
    return BRG_OK;
}

static brg_status run_side(side *s, const model *m, brg_pg *pg,
                           const brg_compile_options *compiled)
{
    int compile = 0;
    memset(s, 0, sizeof *s);
    s->m = m;
    s->pg = pg;
    if (compiled && m->is_whole)
        BRG_TRY(brg_compiled_create(&s->step, whole_step, s, compiled));
    else if (compiled)
        BRG_TRY(brg_compile_begin(&compile, compiled));
    brg_scope *scope = brg_scope_begin();
    brg_status status = train(s);
    brg_compiled_destroy(s->step);
    brg_ddp_destroy(s->ddp);
    brg_scope_end(scope);
    if (compiled && !m->is_whole && brg_compile_end(compile) != BRG_OK &&
        status == BRG_OK)
        status = brg_error_code();
    return status;
}

/* ---- Comparing ------------------------------------------------------------------------ */

typedef struct totals {
    uint64_t captures, hits, fallbacks;
} totals;

static brg_status compare_sides(const side *a, const side *b, uint64_t seed)
{
    RANK_CHECK(a->n == b->n, "seed %d: %d gradients compiled, %d eagerly",
               (int)seed, b->n, a->n);
    for (int i = 0; i < a->n; i++)
        RANK_CHECK(a->hash[i] == b->hash[i],
                   "seed %d: gradient %d of %d has other bits compiled",
                   (int)seed, i, a->n);
    return BRG_OK;
}

/* Sizes all dynamic at once, or as they change. */
static brg_status compare(uint64_t seed, brg_pg *pg, bool is_whole, totals *sum)
{
    static _Thread_local side eager, compiled;
    static _Thread_local model m;
    make_model(&m, seed, is_whole);
    BRG_TRY(run_side(&eager, &m, pg, NULL));
    for (int k = 0; k < 2; k++) {
        brg_compile_options options = BRG_COMPILE_OPTIONS_INIT;
        brg_compile_stats stats;
        options.backend = BRG_COMPILE_BACKEND_PASSES;
        options.whole = options.fullgraph = is_whole;
        options.dynamic =
            k ? BRG_COMPILE_DYNAMIC_CHANGED : BRG_COMPILE_DYNAMIC_ALL;
        BRG_TRY(run_side(&compiled, &m, pg, &options));
        brg_compile_get_stats(&stats);
        BRG_TRY(brg_compile_reset());
        BRG_TRY(compare_sides(&eager, &compiled, seed));
        sum->captures += is_whole ? stats.functions : stats.captures;
        sum->hits += is_whole ? stats.function_hits : stats.hits;
        sum->fallbacks += stats.fallbacks + stats.function_fallbacks;
    }
    return BRG_OK;
}

static uint64_t n_models(void)
{
    const char *seconds = getenv("BRG_FUZZ_SECONDS");
    return (uint64_t)(60 * (seconds ? atof(seconds) : 1.0)) + 1;
}

typedef struct run {
    uint64_t first;
    bool is_whole;
} run;

static brg_status compare_many(brg_pg *pg, void *user)
{
    const run *r = user;
    totals sum = {0};
    for (uint64_t k = 0; k < n_models(); k++)
        BRG_TRY(compare(r->first + k, pg, r->is_whole, &sum));
    if (!pg || brg_pg_rank(pg) == 0)
        print_message("%d plans, used again %d times\n", (int)sum.captures,
                      (int)sum.hits);
    /* Steps of one size, reduced or not, with a hook at a leaf or without. */
    RANK_CHECK(sum.captures > 0 && sum.hits > sum.captures / 4,
               "%d captures, %d hits", (int)sum.captures, (int)sum.hits);
    RANK_CHECK(sum.fallbacks == 0, "%d backwards ran eagerly",
               (int)sum.fallbacks);
    return BRG_OK;
}

static void test_fuzz_bits__plans_have_the_bits_of_the_engine(void **state)
{
    (void)state;
    run r = {brg_test_seed(500), false};
    assert_brg_ok(compare_many(NULL, &r));
}

static void test_fuzz_bits__and_so_on_two_ranks(void **state)
{
    (void)state;
    run r = {brg_test_seed(500), false};
    assert_brg_ok(brg_sim_run(2, NULL, compare_many, &r));
}

static void test_fuzz_bits__and_so_have_whole_steps(void **state)
{
    (void)state;
    run r = {brg_test_seed(500), true};
    assert_brg_ok(compare_many(NULL, &r));
}

static void test_fuzz_bits__also_on_two_ranks(void **state)
{
    (void)state;
    run r = {brg_test_seed(500), true};
    assert_brg_ok(brg_sim_run(2, NULL, compare_many, &r));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fuzz_bits__plans_have_the_bits_of_the_engine),
        cmocka_unit_test(test_fuzz_bits__and_so_on_two_ranks),
        cmocka_unit_test(test_fuzz_bits__and_so_have_whole_steps),
        cmocka_unit_test(test_fuzz_bits__also_on_two_ranks),
    };
    return cmocka_run_group_tests(tests, make_function, free_function);
}
