/* SPDX-License-Identifier: Apache-2.0
 * Attention described to cuDNN, one operation at a time: see sdpa.h.
 *
 * cuDNN has fused kernels for two patterns of operations: softmax(scale q k^T,
 * masked) v with the log-sum-exp of its rows, and the gradients made from them.
 * The gradient is described without a sum of dq in memory, so that its results
 * repeat; with one, by atomic additions, where they need not. */
#include "core/cuda/sdpa.h"

#define MAX_OPS 24
#define MAX_CONFIGS 8

#define dnn brg__sdpa_dnn

typedef cudnnBackendDescriptor_t desc;

brg__sdpa_functions brg__sdpa_dnn;

static bool has_all;

static void load_functions(void)
{
#define LOAD(name)                                                             \
    *(void **)&dnn.name##_ = brg__cu_dnn_symbol(#name);                        \
    if (!dnn.name##_)                                                          \
        return;
    BRG__SDPA_FUNCTIONS(LOAD)
#undef LOAD
    has_all = true;
}

bool brg__sdpa_load(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, load_functions);
    return has_all;
}

/* ---- Describing ----------------------------------------------------------------- */

typedef struct builder {
    const brg__cu_attention *a;
    cudnnHandle_t handle;
    brg__sdpa_graph *graph;
    bool has_failed;
    int n_ops;
    desc ops[MAX_OPS];
    int64_t n_virtual;
} builder;

static desc make(builder *b, cudnnBackendDescriptorType_t type)
{
    desc d = NULL;
    if (b->has_failed || b->graph->n_made == BRG__SDPA_MAX_MADE ||
        dnn.cudnnBackendCreateDescriptor_(type, &d) != CUDNN_STATUS_SUCCESS) {
        b->has_failed = true;
        return NULL;
    }
    return b->graph->made[b->graph->n_made++] = d;
}

static void set(builder *b, desc d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t n, const void *value)
{
    if (!b->has_failed && dnn.cudnnBackendSetAttribute_(
                              d, name, type, n, value) != CUDNN_STATUS_SUCCESS)
        b->has_failed = true;
}

static void set_desc(builder *b, desc d, cudnnBackendAttributeName_t name,
                     desc value)
{
    set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

static void finish(builder *b, desc d)
{
    if (!b->has_failed && dnn.cudnnBackendFinalize_(d) != CUDNN_STATUS_SUCCESS)
        b->has_failed = true;
}

static void finish_op(builder *b, desc op)
{
    finish(b, op);
    if (b->n_ops == MAX_OPS)
        b->has_failed = true;
    else
        b->ops[b->n_ops++] = op;
}

typedef struct layout {
    int64_t size[4], step[4];
} layout;

/* uid 0: no memory, a value on the way from one operation to the next. */
static desc tensor(builder *b, int64_t uid, cudnnDataType_t dtype, layout l)
{
    const int64_t alignment = 16;
    const bool is_virtual = uid == 0;
    const bool is_value = uid >= BRG__UID_SCALE && uid < BRG__UID_OTHERS;
    if (is_virtual)
        uid = BRG__UID_OTHERS + b->n_virtual++;
    desc d = make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &dtype);
    set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, l.size);
    set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, l.step);
    set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1,
        &alignment);
    set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &is_value);
    finish(b, d);
    return d;
}

static cudnnDataType_t type_of(const builder *b)
{
    return b->a->dtype == BRG_DTYPE_F16 ? CUDNN_DATA_HALF : CUDNN_DATA_BFLOAT16;
}

/* (batch, heads, rows, cols), or its transpose. */
static desc heads(builder *b, int64_t uid, const brg__cu_heads *h, int64_t rows,
                  int64_t cols, bool is_flipped)
{
    layout l = {{b->a->n_batch, b->a->n_heads, rows, cols},
                {h->batch, h->head, h->row, 1}};
    if (is_flipped)
        l = (layout){{l.size[0], l.size[1], cols, rows},
                     {h->batch, h->head, 1, h->row}};
    return tensor(b, uid, type_of(b), l);
}

static desc host_value(builder *b, int64_t uid)
{
    return tensor(b, uid, CUDNN_DATA_FLOAT,
                  (layout){{1, 1, 1, 1}, {1, 1, 1, 1}});
}

/* One value per pair of a query and a key. */
static desc scores(builder *b, cudnnDataType_t dtype)
{
    const int64_t h = b->a->n_heads, t = b->a->t, s = b->a->s;
    return tensor(b, 0, dtype,
                  (layout){{b->a->n_batch, h, t, s}, {h * t * s, t * s, s, 1}});
}

/* One value per query. */
static desc stats(builder *b, int64_t uid)
{
    const int64_t h = b->a->n_heads, t = b->a->t;
    return tensor(b, uid, CUDNN_DATA_FLOAT,
                  (layout){{b->a->n_batch, h, t, 1}, {h * t, t, 1, 1}});
}

/* ---- Operations ------------------------------------------------------------------- */

static void matmul(builder *b, desc x, desc y, desc out)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    desc how = make(b, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
    finish(b, how);
    desc op = make(b, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_desc(b, op, CUDNN_ATTR_OPERATION_MATMUL_ADESC, x);
    set_desc(b, op, CUDNN_ATTR_OPERATION_MATMUL_BDESC, y);
    set_desc(b, op, CUDNN_ATTR_OPERATION_MATMUL_CDESC, out);
    set_desc(b, op, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    finish_op(b, op);
}

static void reduce(builder *b, cudnnReduceTensorOp_t kind, desc x, desc out)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    desc how = make(b, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &f32);
    set(b, how, CUDNN_ATTR_REDUCTION_OPERATOR,
        CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &kind);
    finish(b, how);
    desc op = make(b, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_desc(b, op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_desc(b, op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, out);
    set_desc(b, op, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    finish_op(b, op);
}

static void reshape(builder *b, desc x, desc out)
{
    desc op = make(b, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_desc(b, op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_desc(b, op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, out);
    finish_op(b, op);
}

typedef struct pointwise {
    cudnnPointwiseMode_t mode;
    desc x, y, condition, out; /* y and condition: NULL where there is none */
    int64_t axis;              /* of GEN_INDEX */
} pointwise;

static desc apply(builder *b, pointwise w)
{
    const bool compares = w.mode == CUDNN_POINTWISE_CMP_GE;
    const cudnnDataType_t in = compares ? CUDNN_DATA_BOOLEAN : CUDNN_DATA_FLOAT;
    desc how = make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1,
        &w.mode);
    set(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &in);
    if (w.mode == CUDNN_POINTWISE_GEN_INDEX)
        set(b, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &w.axis);
    finish(b, how);
    desc op = make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_desc(b, op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_desc(b, op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, w.x);
    if (w.y)
        set_desc(b, op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, w.y);
    if (w.condition)
        set_desc(b, op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, w.condition);
    set_desc(b, op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, w.out);
    finish_op(b, op);
    return w.out;
}

/* mode(x, y) over all scores. */
static desc on_scores(builder *b, cudnnPointwiseMode_t mode, desc x, desc y)
{
    return apply(b, (pointwise){.mode = mode,
                                .x = x,
                                .y = y,
                                .out = scores(b, CUDNN_DATA_FLOAT)});
}

/* The lowest value where the key comes behind the query. */
static desc masked(builder *b, desc x)
{
    if (!b->a->is_causal)
        return x;
    desc at[2];
    for (int i = 0; i < 2; i++)
        at[i] = apply(b, (pointwise){.mode = CUDNN_POINTWISE_GEN_INDEX,
                                     .x = x,
                                     .axis = 2 + i,
                                     .out = scores(b, CUDNN_DATA_INT32)});
    desc is_seen = apply(b, (pointwise){.mode = CUDNN_POINTWISE_CMP_GE,
                                        .x = at[0],
                                        .y = at[1],
                                        .out = scores(b, CUDNN_DATA_BOOLEAN)});
    return apply(b, (pointwise){.mode = CUDNN_POINTWISE_BINARY_SELECT,
                                .x = x,
                                .y = host_value(b, BRG__UID_LOWEST),
                                .condition = is_seen,
                                .out = scores(b, CUDNN_DATA_FLOAT)});
}

/* ---- The two patterns --------------------------------------------------------------- */

static void describe_forward(builder *b)
{
    const brg__cu_attention *a = b->a;
    desc q = heads(b, BRG__UID_Q, &a->q, a->t, a->d, false);
    desc k_t = heads(b, BRG__UID_K, &a->k, a->s, a->d, true);
    desc v = heads(b, BRG__UID_V, &a->v, a->s, a->d_out, false);
    desc out = heads(b, BRG__UID_OUT, &a->out, a->t, a->d_out, false);
    desc x = scores(b, CUDNN_DATA_FLOAT);
    matmul(b, q, k_t, x);
    x = on_scores(b, CUDNN_POINTWISE_MUL, x, host_value(b, BRG__UID_SCALE));
    x = masked(b, x);
    desc top = stats(b, 0), sum = stats(b, 0), log_sum = stats(b, 0);
    reduce(b, CUDNN_REDUCE_TENSOR_MAX, x, top);
    x = on_scores(b, CUDNN_POINTWISE_SUB, x, top);
    x = on_scores(b, CUDNN_POINTWISE_EXP, x, NULL);
    reduce(b, CUDNN_REDUCE_TENSOR_ADD, x, sum);
    apply(b,
          (pointwise){.mode = CUDNN_POINTWISE_LOG, .x = sum, .out = log_sum});
    apply(b, (pointwise){.mode = CUDNN_POINTWISE_ADD,
                         .x = top,
                         .y = log_sum,
                         .out = stats(b, BRG__UID_STATS)});
    desc p = apply(b, (pointwise){.mode = CUDNN_POINTWISE_DIV,
                                  .x = x,
                                  .y = sum,
                                  .out = scores(b, type_of(b))});
    matmul(b, p, v, out);
}

/* Scores as columns of queries, in the type of the operands. */
static desc flipped(builder *b, desc x)
{
    const int64_t h = b->a->n_heads, t = b->a->t, s = b->a->s;
    desc out =
        tensor(b, 0, type_of(b),
               (layout){{b->a->n_batch, h, s, t}, {h * t * s, t * s, 1, s}});
    reshape(b, x, out);
    return out;
}

/* sum over the head of g * out, one value per query. */
static desc describe_delta(builder *b, desc g, desc out)
{
    const brg__cu_attention *a = b->a;
    const int64_t h = a->n_heads, t = a->t, d = a->d_out;
    desc product =
        tensor(b, 0, CUDNN_DATA_FLOAT,
               (layout){{a->n_batch, h, t, d}, {h * t * d, t * d, h * d, 1}});
    apply(b,
          (pointwise){
              .mode = CUDNN_POINTWISE_MUL, .x = g, .y = out, .out = product});
    desc sum = stats(b, 0);
    reduce(b, CUDNN_REDUCE_TENSOR_ADD, product, sum);
    return apply(b, (pointwise){.mode = CUDNN_POINTWISE_MUL,
                                .x = sum,
                                .y = host_value(b, BRG__UID_ONE),
                                .out = stats(b, BRG__UID_DELTA)});
}

static void describe_backward(builder *b)
{
    const brg__cu_attention *a = b->a;
    desc q = heads(b, BRG__UID_Q, &a->q, a->t, a->d, false);
    desc k_t = heads(b, BRG__UID_K, &a->k, a->s, a->d, true);
    desc v_t = heads(b, BRG__UID_V, &a->v, a->s, a->d_out, true);
    desc out = heads(b, BRG__UID_OUT, &a->out, a->t, a->d_out, false);
    desc g = heads(b, BRG__UID_G, &a->g, a->t, a->d_out, false);
    desc scale = host_value(b, BRG__UID_SCALE);
    desc delta = describe_delta(b, g, out);
    desc x = scores(b, CUDNN_DATA_FLOAT);
    matmul(b, q, k_t, x);
    x = on_scores(b, CUDNN_POINTWISE_MUL, x, scale);
    x = on_scores(b, CUDNN_POINTWISE_SUB, x, stats(b, BRG__UID_STATS));
    x = masked(b, x);
    desc p = on_scores(b, CUDNN_POINTWISE_EXP, x, NULL);
    matmul(b, flipped(b, p), g,
           heads(b, BRG__UID_GV, &a->gv, a->s, a->d_out, false));
    x = scores(b, CUDNN_DATA_FLOAT);
    matmul(b, g, v_t, x);
    x = on_scores(b, CUDNN_POINTWISE_SUB, x, delta);
    x = on_scores(b, CUDNN_POINTWISE_MUL, x, p);
    desc ds = on_scores(b, CUDNN_POINTWISE_MUL, x, scale);
    matmul(b, flipped(b, ds), q,
           heads(b, BRG__UID_GK, &a->gk, a->s, a->d, false));
    desc k = tensor(b, 0, CUDNN_DATA_FLOAT,
                    (layout){{a->n_batch, a->n_heads, a->s, a->d},
                             {a->k.batch, a->k.head, a->k.row, 1}});
    reshape(b, k_t, k);
    desc gq = heads(b, BRG__UID_GQ, &a->gq, a->t, a->d, false);
    if (!b->graph->adds_up) {
        matmul(b, ds, k, gq);
        return;
    }
    const int64_t h = a->n_heads, t = a->t, d = a->d;
    desc sum =
        tensor(b, BRG__UID_GQ_SUM, CUDNN_DATA_FLOAT,
               (layout){{a->n_batch, h, t, d}, {h * t * d, t * d, d, 1}});
    matmul(b, ds, k, sum);
    apply(b,
          (pointwise){.mode = CUDNN_POINTWISE_IDENTITY, .x = sum, .out = gq});
}

/* ---- What cuDNN makes of it ------------------------------------------------------------- */

/* The first configuration of the heuristic's list that can be made. */
static bool choose(builder *b, desc heuristic)
{
    desc configs[MAX_CONFIGS];
    int64_t n = 0;
    for (int i = 0; i < MAX_CONFIGS; i++)
        configs[i] = make(b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    if (b->has_failed || dnn.cudnnBackendGetAttribute_(
                             heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                             CUDNN_TYPE_BACKEND_DESCRIPTOR, MAX_CONFIGS, &n,
                             configs) != CUDNN_STATUS_SUCCESS)
        return false;
    for (int64_t i = 0; i < n && i < MAX_CONFIGS; i++) {
        b->has_failed = false;
        desc run = make(b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(b, run, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1,
            &b->handle);
        set_desc(b, run, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
        finish(b, run);
        if (b->has_failed)
            continue;
        b->graph->run = run;
        return dnn.cudnnBackendGetAttribute_(
                   run, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                   CUDNN_TYPE_INT64, 1, NULL,
                   &b->graph->workspace) == CUDNN_STATUS_SUCCESS;
    }
    return false;
}

bool brg__sdpa_describe(brg__sdpa_graph *graph, cudnnHandle_t handle,
                        const brg__cu_attention *a, bool is_backward)
{
    builder b = {.a = a, .handle = handle, .graph = graph};
    if (is_backward)
        describe_backward(&b);
    else
        describe_forward(&b);
    desc ops = make(&b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(&b, ops, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1,
        &handle);
    set(&b, ops, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
        b.n_ops, b.ops);
    finish(&b, ops);
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    desc heuristic = make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_desc(&b, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, ops);
    set(&b, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1,
        &mode);
    finish(&b, heuristic);
    return !b.has_failed && choose(&b, heuristic);
}

void brg__sdpa_forget(brg__sdpa_graph *graph)
{
    while (graph->n_made > 0)
        (void)dnn.cudnnBackendDestroyDescriptor_(graph->made[--graph->n_made]);
}
