/* SPDX-License-Identifier: Apache-2.0
 * Sums in a fixed order over NCCL: the bits of the CPU, and trainings whose
 * weights have one hash on one GPU and on several. */
#include <stdlib.h>

#include "core/tensor/device.h"
#include "tests/cuda/gpu_ranks.h"
#include "tests/support/backend_suite.h"
#include "tests/support/leaf_train.h"
#include "tests/support/ranks.h"

#define LEAVES 11

#define COUNT 100003
#define MOST (((size_t)25 << 20) + 3) /* more than there are slots for */

/* Sums by NCCL, and without it. */
static const char *const ways[] = {"nccl", "kernel", "copy"};
#define N_WAYS 3

static brg_pg *make_group(int way)
{
    brg_pg *pg;
    (void)setenv("BRG_NCCL_SUMS", ways[way], 1);
    assert_brg_ok(brg_nccl_create(&pg, over, mine()));
    return pg;
}

static void test_leaves__keep_the_contract(void **state)
{
    (void)state;
    for (int way = 0; way < N_WAYS; way++) {
        brg_pg *pg = make_group(way);
        assert_brg_ok(brg_suite_leaves_on_host(pg));
        assert_brg_ok(brg_suite_run_on_host(pg));
        brg_pg_destroy(pg);
    }
}

static void fill(void *at, size_t n, brg_dtype dtype, int salt)
{
    for (size_t i = 0; i < n; i++) {
        const double x =
            sin((double)i * 0.37 + rank * 1.7 + salt) * exp2((double)(i % 20));
        ranks_store(at, i, dtype, x);
    }
}

static void copy(brg_device to, void *dst, brg_device from, const void *src,
                 size_t nbytes)
{
    assert_brg_ok(brg__device_copy(to, dst, from, src, nbytes));
}

/* The same parts over MPI in host memory and over NCCL in the GPU's. */
static void check_leaves(brg_pg *pg, size_t count, brg_dtype dtype,
                         brg_reduce_op op)
{
    const bool half = brg_dtype_size(dtype) == 2;
    const brg_dtype wide = half ? BRG_DTYPE_F32 : dtype;
    const size_t stride = (count * brg_dtype_size(wide) + 63) / 64 * 64;
    brg_leaf_run run;
    brg_work *work;
    void *there, *out;
    assert_brg_ok(brg_leaf_run_of(&run, LEAVES, rank, n_ranks));
    char *slots = calloc(run.n_slots + 2, stride);
    char *want = slots + run.n_slots * stride, *got = want + stride;
    for (uint32_t i = 0; i < run.n; i++) {
        fill(slots + brg_leaf_slot(&run, i) * stride, count, wide, (int)i);
        brg_leaf_add(&run, i, slots, stride, count, dtype);
    }
    brg_leaf_parts parts = {slots, stride, LEAVES};
    assert_brg_ok(brg_pg_alloc(pg, &there, run.n_slots * stride));
    assert_brg_ok(brg_pg_alloc(pg, &out, stride));
    copy(mine(), there, CPU, slots, run.n_slots * stride);
    assert_brg_ok(brg_sum_leaves(over, &work, want, &parts, count, dtype, op));
    assert_brg_ok(brg_work_wait(work));
    parts.data = there;
    void *recv = half ? out : there; /* in place where that is allowed */
    assert_brg_ok(brg_sum_leaves(pg, &work, recv, &parts, count, dtype, op));
    assert_brg_ok(brg_work_wait(work));
    copy(CPU, got, mine(), recv, count * brg_dtype_size(dtype));
    assert_memory_equal(got, want, count * brg_dtype_size(dtype));
    brg_pg_free(pg, there);
    brg_pg_free(pg, out);
    free(slots);
}

static void test_leaves__have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_F64,
                                       BRG_DTYPE_BF16, BRG_DTYPE_F16};
    for (int way = 0; way < N_WAYS; way++) {
        brg_pg *pg = make_group(way);
        for (size_t d = 0; d < 4; d++)
            for (int k = 0; k < 2; k++)
                check_leaves(pg, COUNT, dtypes[d],
                             k ? BRG_REDUCE_AVG : BRG_REDUCE_SUM);
        brg_pg_destroy(pg);
    }
}

/* As MPI sums them: in the order of the ranks, 16-bit floats in f32 and rounded
 * once. The second time at a place that is not aligned. */
static void check_all_reduce(brg_pg *pg, size_t count, brg_dtype dtype,
                             brg_reduce_op op)
{
    const size_t each = brg_dtype_size(dtype), nbytes = count * each;
    char *want = calloc(2, nbytes), *got = want + nbytes;
    brg_work *work;
    void *all;
    assert_brg_ok(brg_pg_alloc(pg, &all, nbytes + each));
    for (size_t skip = 0; skip < 2; skip++) {
        char *there = (char *)all + skip * each;
        for (size_t i = 0; i < count; i++)
            ranks_store(want, i, dtype, sin((double)i * 0.37 + rank));
        copy(mine(), there, CPU, want, nbytes);
        assert_brg_ok(brg_all_reduce(over, &work, want, count, dtype, op));
        assert_brg_ok(brg_work_wait(work));
        assert_brg_ok(brg_all_reduce(pg, &work, there, count, dtype, op));
        assert_brg_ok(brg_work_wait(work));
        copy(CPU, got, mine(), there, nbytes);
        assert_memory_equal(got, want, nbytes);
    }
    brg_pg_free(pg, all);
    free(want);
}

static void test_leaves__wide_sums_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (int way = 0; way < N_WAYS; way++) {
        (void)setenv("BRG_NCCL_WIDE_SUMS", way ? "0" : "1", 1);
        brg_pg *pg = make_group(way);
        (void)unsetenv("BRG_NCCL_WIDE_SUMS");
        for (int k = 0; k < 4; k++)
            check_all_reduce(pg, COUNT, k % 2 ? BRG_DTYPE_F16 : BRG_DTYPE_BF16,
                             k / 2 ? BRG_REDUCE_AVG : BRG_REDUCE_SUM);
        for (int k = 0; way && k < 2; k++)
            check_all_reduce(pg, k ? MOST : COUNT, BRG_DTYPE_F32,
                             k ? BRG_REDUCE_AVG : BRG_REDUCE_SUM);
        brg_pg_destroy(pg);
    }
}

/* All ranks, and this GPU alone. */
static void check_training(const leaf_train *how, int way)
{
    uint64_t together = 1, alone = 2, cpu = 3;
    brg_pg *self, *one, *pg = make_group(way);
    assert_brg_ok(brg_pg_create_self(&self));
    assert_brg_ok(brg_nccl_create(&one, self, mine()));
    assert_brg_ok(brg_device_set(mine()));
    assert_brg_ok(leaf_train_run(pg, how, &together));
    assert_brg_ok(leaf_train_run(one, how, &alone));
    assert_brg_ok(brg_device_set(CPU));
    assert_brg_ok(leaf_train_run(self, how, &cpu));
    printf("%d ranks, buckets of %zu: %016llx, alone %016llx, CPU %016llx\n",
           n_ranks, how->cap, (unsigned long long)together,
           (unsigned long long)alone, (unsigned long long)cpu);
    assert_int_equal(together, alone);
    brg_pg_destroy(pg);
    brg_pg_destroy(one);
    brg_pg_destroy(self);
}

static void test_leaves__one_hash_on_one_gpu_and_on_several(void **state)
{
    (void)state;
    static const size_t caps[N_WAYS] = {65536, 0, SIZE_MAX};
    for (size_t i = 0; i < 3; i++)
        for (int k = 0; k < 2; k++)
            check_training(&(leaf_train){.n_steps = 40,
                                         .batch = 48,
                                         .n_leaves = k ? 6 : 8,
                                         .cap = caps[i],
                                         .n_hidden = 192,
                                         .adamw = k},
                           (int)i);
    check_training(&(leaf_train){.n_steps = 20,
                                 .batch = 48,
                                 .n_leaves = 8,
                                 .n_hidden = 64,
                                 .compiled = true},
                   1);
}

int main(int argc, char **argv)
{
    int status = gpu_ranks_begin(argc, argv);
    if (status)
        return status;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaves__have_the_bits_of_the_cpu),
        cmocka_unit_test(test_leaves__wide_sums_are_those_of_the_cpu),
        cmocka_unit_test(test_leaves__keep_the_contract),
        cmocka_unit_test(test_leaves__one_hash_on_one_gpu_and_on_several),
    };
    return gpu_ranks_end(
        cmocka_run_group_tests_name("leaves", tests, NULL, NULL));
}
