/* SPDX-License-Identifier: Apache-2.0
 * What bench/gpu/kernel_times.c makes of what CUPTI tells, with a made-up CUPTI
 * and names recorded in a step of gpt2 on two H200; needs no GPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cupti.h>

#include "bench/gpu/kernel_report.h"
#include "tests/support/brg_test.h"

int InitializeInjection(void);

/* ---- A made-up CUPTI ----------------------------------------------------------- */

static struct {
    CUpti_BuffersCallbackRequestFunc get;
    CUpti_BuffersCallbackCompleteFunc take;
    CUpti_CallbackFunc see;
    uint8_t *buffer;
    size_t size, valid;
    bool is_over; /* the driver has gone */
} fake;

CUptiResult
cuptiActivityRegisterCallbacks(CUpti_BuffersCallbackRequestFunc get,
                               CUpti_BuffersCallbackCompleteFunc take)
{
    fake.get = get;
    fake.take = take;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityEnable(CUpti_ActivityKind kind)
{
    (void)kind;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityFlushAll(uint32_t flag)
{
    (void)flag;
    if (fake.is_over)
        return CUPTI_ERROR_NOT_INITIALIZED;
    if (fake.buffer)
        fake.take(NULL, 0, fake.buffer, fake.size, fake.valid);
    fake.buffer = NULL;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityGetNextRecord(uint8_t *buffer, size_t valid,
                                       CUpti_Activity **record)
{
    uint8_t *at =
        *record ? (uint8_t *)*record + sizeof(CUpti_ActivityKernel9) : buffer;
    if (at >= buffer + valid)
        return CUPTI_ERROR_MAX_LIMIT_REACHED;
    *record = (CUpti_Activity *)(void *)at;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiActivityGetNumDroppedRecords(CUcontext context,
                                              uint32_t stream, size_t *n)
{
    (void)context;
    (void)stream;
    *n = 0;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiSubscribe(CUpti_SubscriberHandle *subscriber,
                           CUpti_CallbackFunc see, void *user)
{
    (void)subscriber;
    (void)user;
    fake.see = see;
    return CUPTI_SUCCESS;
}

CUptiResult cuptiEnableCallback(uint32_t is_on,
                                CUpti_SubscriberHandle subscriber,
                                CUpti_CallbackDomain domain,
                                CUpti_CallbackId id)
{
    (void)is_on;
    (void)subscriber;
    (void)domain;
    (void)id;
    return CUPTI_SUCCESS;
}

static void run_kernel(const char *name, uint64_t start, uint64_t end)
{
    size_t n;
    if (!fake.buffer) {
        fake.get(&fake.buffer, &fake.size, &n);
        fake.valid = 0;
    }
    CUpti_ActivityKernel9 *k = (void *)(fake.buffer + fake.valid);
    memset(k, 0, sizeof *k);
    k->kind = CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL;
    k->name = name;
    k->start = start;
    k->end = end;
    fake.valid += sizeof *k;
}

/* ---- Groups -------------------------------------------------------------------- */

static const char *const recorded[][2] = {
    {"products", "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT"},
    {"products", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64_"
                 "warpgroupsize1x1x1_aux_bf16_dgelu_execute_segment_k_off_ker"},
    {"products", "nvjet_sm90_tst_192x128_64x5_1x2_h_bz_coopA_geluauxbias_TNN"},
    {"products", "_ZN8cublasLt19splitKreduce_kernelILi32ELi16Eif13__nv_bfloat"},
    {"attention, gradient",
     "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26"},
    {"attention, gradient", "_ZN5cudnn6fusion9matmul_dqILb1ELi64EEEvPKvS3_"},
    {"attention, gradient",
     "_ZN5cudnn6fusion28compute_dot_do_o_specializedILb1ELi64EEEvPKvS3_PvS4_"},
    {"attention",
     "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_32"},
    {"layer norm, gradient",
     "_Z22norm_grad_in_registersI13__nv_bfloat16Li3EEv12brg__cu_norm"},
    {"layer norm, gradient",
     "_Z22layer_norm_join_kernelI13__nv_bfloat16fEv12brg__cu_norm"},
    {"layer norm", "_Z17norm_in_registersI13__nv_bfloat16Li3EEv12brg__cu_norm"},
    {"sums of biases' gradients",
     "_Z14columns_kernelI13__nv_bfloat16Ev14brg__cu_reduce"},
    {"sums of biases' gradients", "_Z16join_sums_kernel14brg__cu_reduce"},
    {"optimizer", "_Z13update_kernel5batch"},
    {"sums between ranks, with the waiting inside of them",
     "_Z7sum_allI13__nv_bfloat16fS0_Lb0EEv17brg__nccl_sum_job"},
    {"sums between ranks, with the waiting inside of them",
     "_Z13push_then_sumIfffLb0EEv18brg__nccl_push_job"},
    {"sums between ranks, with the waiting inside of them",
     "_Z35ncclDevKernel_AllReduce_Sum_bf16_RING_LL24ncclDevKernelArgsStorage"},
    {"cross entropy",
     "_Z19entropy_grad_kernelI13__nv_bfloat16fLi8EEv15brg__cu_entropyP13brg_"},
    {"cross entropy", "_Z12count_kernel15brg__cu_entropyP13brg__cu_fault"},
    {"clipping", "_Z12scale_kernel5batchPKd"},
    {"clipping", "_Z14squares_kernel5batchPd"},
    {"clipping", "_Z13factor_kernelPKdldPd"},
    {"embeddings",
     "_Z15add_rows_kernelI13__nv_bfloat16fEv13brg__cu_indexPKjS3_"},
    {"embeddings",
     "_ZN3cub17CUB_300001_SM_9006detail10radix_sort29DeviceRadix"},
    {"embeddings",
     "_Z18take_slices_kernelI5uint4Ev13brg__cu_indexlP13brg__cu_"},
    {"pointwise", "_Z13packed_kernelI13__nv_bfloat167row_addLi2EEv6packed"},
    {"pointwise", "brg_flat_3"},
    {"copies and fills", "[fill]"},
    {"copies and fills", "[copy on the GPU]"},
    {"copies between GPUs", "[copy between GPUs]"},
    {"everything else", "_Z12store_kernel7numbersPd"},
};
#define N_RECORDED (sizeof recorded / sizeof *recorded)

static void test_kernel_times__groups_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_RECORDED; i++)
        assert_string_equal(kernel_group(recorded[i][1]), recorded[i][0]);
}

static void expect_in(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("expected \"%s\" in:\n%s", part, text);
}

/* Five steps of 100 us, one of which is much longer. */
static void run_steps(void (*add)(const char *, uint64_t, uint64_t))
{
    uint64_t t = 1000000;
    for (int i = 0; i <= 5; i++, t += 100000) {
        t += i == 2 ? 900000 : 0; /* the host waited */
        add("nvjet_x", t + 10000, t + 50000);
        add("ncclDevKernel_x", t + 40000, t + 60000); /* 10 us by itself */
        add("what_is_this", t + 60000, t + 65000);
        add("_Z13update_kernel5batch", t + 80000, t + 100000);
    }
}

static void expect_table(const char *text)
{
    expect_in(text, "4 steps of 100 us (1 left out), 24 records (0 lost)");
    expect_in(text, "| products | 40 | 40.0% |");
    expect_in(text,
              "| sums between ranks, with the waiting inside of them | 20 "
              "| 20.0% |");
    expect_in(text, "| everything else | 5 | 5.0% |");
    expect_in(text,
              "| at the same time as others (subtracted) | -10 | -10.0% |");
    expect_in(text, "| nothing runs | 25 | 25.0% |");
    expect_in(text, "| step | 100 | 100.0% |");
    expect_in(text,
              "| 15.0 | 1.0 | `what_is_this` | `_Z13update_kernel5batch` |");
    expect_in(text, "| 10.0 | 1.0 | `_Z13update_kernel5batch` | `nvjet_x` |");
    expect_in(text, "only sums and copies between GPUs run | 10 | 10.0% |");
    expect_in(text, "| 20.0 | 1.0 | optimizer | `_Z13update_kernel5batch` |");
}

static void test_kernel_times__adds_up_steps(void **state)
{
    char text[8192] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    (void)state;
    assert_non_null(out);
    run_steps(kernel_report_add);
    kernel_report_write(out, "update_kernel");
    (void)fclose(out);
    kernel_report_clear();
    expect_table(text);
}

static void test_kernel_times__one_step_where_none_ends(void **state)
{
    char text[4096] = "";
    FILE *out = fmemopen(text, sizeof text, "w");
    (void)state;
    assert_non_null(out);
    kernel_report_add("b", 3000, 5000);
    kernel_report_add("a", 1000, 2000);
    kernel_report_add("late", 9000, 8000); /* no time */
    kernel_report_write(out, "update_kernel");
    (void)fclose(out);
    kernel_report_clear();
    expect_in(text, "1 steps of 4 us (0 left out), 2 records (1 lost)");
    expect_in(text, "| everything else | 3 | 75.0% |");
    expect_in(text, "| nothing runs | 1 | 25.0% |");
}

/* ---- The library --------------------------------------------------------------- */

/* A program that ends when the driver has gone. */
static void run_program(bool waits)
{
    const CUpti_CallbackData waited = {.callbackSite = CUPTI_API_EXIT};
    (void)setenv("OMPI_COMM_WORLD_RANK", "3", 1);
    (void)setenv("KERNEL_TIMES", "kernel_times_%r.txt", 1);
    if (InitializeInjection() != 1)
        _exit(2);
    if (waits) {
        run_steps(run_kernel);
        fake.see(NULL, CUPTI_CB_DOMAIN_RUNTIME_API,
                 CUPTI_RUNTIME_TRACE_CBID_cudaStreamSynchronize_v3020, &waited);
    }
    fake.is_over = true;
    exit(0);
}

static void check_program(bool waits, char *text, size_t size)
{
    int status = -1;
    text[0] = '\0';
    (void)unlink("kernel_times_3.txt");
    (void)fflush(NULL);
    const pid_t child = fork();
    if (child == 0)
        run_program(waits);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    FILE *in = fopen("kernel_times_3.txt", "r");
    if (in) {
        text[fread(text, 1, size - 1, in)] = '\0';
        (void)fclose(in);
    }
    (void)unlink("kernel_times_3.txt");
}

static void test_kernel_times__outlives_the_driver(void **state)
{
    static char text[8192];
    (void)state;
    check_program(true, text, sizeof text);
    expect_table(text);
}

static void test_kernel_times__no_file_where_nothing_ran(void **state)
{
    static char text[8192];
    (void)state;
    check_program(false, text, sizeof text);
    assert_string_equal(text, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernel_times__groups_by_name),
        cmocka_unit_test(test_kernel_times__adds_up_steps),
        cmocka_unit_test(test_kernel_times__one_step_where_none_ends),
        cmocka_unit_test(test_kernel_times__outlives_the_driver),
        cmocka_unit_test(test_kernel_times__no_file_where_nothing_ran),
    };
    return cmocka_run_group_tests_name("kernel_times", tests, NULL, NULL);
}
