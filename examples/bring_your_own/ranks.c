/* SPDX-License-Identifier: Apache-2.0
 * alone.c on many ranks: README.md shows what is new.
 *
 *     mpirun -n 2 byo_ranks_c */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <brigade/reducer.h>

#define N_IN 2
#define N_HIDDEN 32
#define BATCH 48
#define N_STEPS 300
#define RATE 0.3

enum { W1, B1, W2, B2, N_PARAMS };
static const size_t sizes[N_PARAMS] = {N_IN * N_HIDDEN, N_HIDDEN, N_HIDDEN, 1};
static double *param[N_PARAMS], *grad[N_PARAMS];
static const char *const names[N_PARAMS] = {"w1", "b1", "w2", "b2"};
static brg_pg *pg;
static brg_reducer *reducer;

/* y = x0 x1, at places that follow from the step. */
static double sample(int step, int i, double *x)
{
    x[0] = sin(1.3 * step + 0.7 * i);
    x[1] = cos(2.1 * step + 0.4 * i);
    return x[0] * x[1];
}

static void die(const char *why)
{
    fprintf(stderr, "%s\n", why);
    exit(EXIT_FAILURE);
}

static void must(brg_status status)
{
    if (status != BRG_OK)
        die(brg_error_message());
}

static void make_params(void)
{
    for (int p = 0; p < N_PARAMS; p++) {
        param[p] = malloc(sizes[p] * sizeof(double));
        grad[p] = malloc(sizes[p] * sizeof(double));
        if (!param[p] || !grad[p])
            die("out of memory");
        for (size_t k = 0; k < sizes[p]; k++)
            param[p][k] = p == W1 || p == W2 ? sin(9.7 * k + p) : 0;
    }
}

/* h = tanh(x w1 + b1), y = h w2 + b2; returns the error of each sample. */
static void forward(int step, int first, int n, double (*x)[N_IN],
                    double (*h)[N_HIDDEN], double *error)
{
    for (int i = 0; i < n; i++) {
        error[i] = param[B2][0] - sample(step, first + i, x[i]);
        for (int j = 0; j < N_HIDDEN; j++) {
            double sum = param[B1][j];
            for (int k = 0; k < N_IN; k++)
                sum += x[i][k] * param[W1][k * N_HIDDEN + j];
            h[i][j] = tanh(sum);
            error[i] += h[i][j] * param[W2][j];
        }
    }
}

/* Of the mean over n samples of error^2 / 2, the last layer first. */
static void backward(int n, double (*x)[N_IN], double (*h)[N_HIDDEN],
                     const double *error)
{
    for (int p = 0; p < N_PARAMS; p++)
        for (size_t k = 0; k < sizes[p]; k++)
            grad[p][k] = 0;
    for (int i = 0; i < n; i++) {
        grad[B2][0] += error[i] / n;
        for (int j = 0; j < N_HIDDEN; j++)
            grad[W2][j] += error[i] * h[i][j] / n;
    }
    must(brg_reducer_mark_ready(reducer, W2));
    must(brg_reducer_mark_ready(reducer, B2));
    for (int i = 0; i < n; i++)
        for (int j = 0; j < N_HIDDEN; j++) {
            double d = error[i] * param[W2][j] * (1 - h[i][j] * h[i][j]) / n;
            grad[B1][j] += d;
            for (int k = 0; k < N_IN; k++)
                grad[W1][k * N_HIDDEN + j] += d * x[i][k];
        }
    must(brg_reducer_mark_ready(reducer, W1));
    must(brg_reducer_mark_ready(reducer, B1));
    must(brg_reducer_wait(reducer)); /* now the average over ranks */
}

static void update(void)
{
    for (int p = 0; p < N_PARAMS; p++)
        for (size_t k = 0; k < sizes[p]; k++)
            param[p][k] -= RATE * grad[p][k];
}

/* The error of the whole network on samples it has not seen. */
static double test_error(double (*x)[N_IN], double (*h)[N_HIDDEN])
{
    double error[BATCH], sum = 0;
    forward(N_STEPS, 0, BATCH, x, h, error);
    for (int i = 0; i < BATCH; i++)
        sum += error[i] * error[i] / BATCH;
    return sum;
}

int main(void)
{
    static double x[BATCH][N_IN], h[BATCH][N_HIDDEN], error[BATCH];
    make_params();
    brg_reducer_param list[N_PARAMS];
    for (int p = 0; p < N_PARAMS; p++)
        list[p] = brg_reducer_raw(names[p], grad[p], sizes[p], BRG_DTYPE_F64);
    must(brg_pg_create(&pg, "auto", NULL));
    must(brg_reducer_create(&reducer, pg, list, N_PARAMS, NULL));
    int n = BATCH / brg_pg_world_size(pg), first = n * brg_pg_rank(pg);
    for (int step = 0; step < N_STEPS; step++) {
        forward(step, first, n, x, h, error);
        backward(n, x, h, error);
        update();
    }
    double result = test_error(x, h);
    if (first == 0)
        printf("error %.10f, w1[0] %.10f\n", result, param[W1][0]);
    brg_reducer_destroy(reducer);
    brg_pg_destroy(pg);
    for (int p = 0; p < N_PARAMS; p++) {
        free(param[p]);
        free(grad[p]);
    }
    return EXIT_SUCCESS;
}
