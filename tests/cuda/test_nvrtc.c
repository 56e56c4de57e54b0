/* SPDX-License-Identifier: Apache-2.0
 * The CUDA C of groups is CUDA C: NVRTC compiles it, for GPUs of several kinds,
 * and says what it refuses. Needs NVRTC, but no GPU. */
#include <unistd.h>

#include "core/cuda/cu.h"
#include "core/cuda/nvrtc.h"

#include "compile/fuse/cuda_group.h"
#include "tests/compile/groups.h"

#define N_GROUPS 8

static brg_device_host host;
static int n_polls;

static void count_poll(void)
{
    n_polls++;
}

static char *make_text(brg__cuda_group *g, size_t n, int *kernel)
{
    static const brg_dtype dtypes[] = {BRG_DTYPE_F32, BRG_DTYPE_BF16,
                                       BRG_DTYPE_F16, BRG_DTYPE_F64};
    static group_case c[N_GROUPS];
    brg__cuda_group *groups[N_GROUPS];
    const char *why;
    char *text;
    uint64_t seed = brg_test_seed(51);
    for (size_t i = 0; i < n; i++) {
        chance chances = {seed + i};
        brg_seed(chances.state);
        random_group(&chances, &c[i], dtypes[i % 4]);
        assert_brg_ok(brg__cuda_group_init(&g[i], &c[i].group, c[i].in, &why));
        assert_null(why);
        groups[i] = &g[i];
    }
    assert_brg_ok(brg__cuda_text(&text, groups, n, kernel));
    return text;
}

static bool holds(const char *bytes, size_t n, const char *name)
{
    const size_t length = strlen(name);
    for (size_t i = 0; i + length <= n; i++)
        if (memcmp(bytes + i, name, length) == 0)
            return true;
    return false;
}

static void test_nvrtc__compiles_groups(void **state)
{
    static const int capabilities[] = {80, 90};
    static brg__cuda_group g[N_GROUPS];
    int kernel[N_GROUPS];
    (void)state;
    brg_scope *scope = brg_scope_begin();
    char *text = make_text(g, N_GROUPS, kernel);
    for (size_t i = 0; i < 2; i++) {
        void *cubin;
        size_t n;
        char name[40];
        n_polls = 0;
        assert_brg_ok(
            brg__cu_nvrtc_compile(capabilities[i], text, 60, &cubin, &n));
        assert_true(n_polls > 10);
        assert_memory_equal(cubin, "\177ELF", 4);
        for (size_t k = 0; k < N_GROUPS; k++) {
            snprintf(name, sizeof name, "brg_flat_%d", kernel[k]);
            assert_true(holds(cubin, n, name));
            snprintf(name, sizeof name, "brg_columns_%d", kernel[k]);
            assert_true(holds(cubin, n, name) == g[k].has_columns);
        }
        print_message("sm_%d: %zu bytes\n", capabilities[i], n);
        brg__mem_free(cubin);
    }
    brg__mem_free(text);
    brg_scope_end(scope);
}

static void test_nvrtc__says_what_it_refuses(void **state)
{
    void *cubin;
    size_t n;
    (void)state;
    assert_int_equal(
        brg__cu_nvrtc_compile(90, "extern \"C\" nonsense;", 60, &cubin, &n),
        BRG_ERR_UNSUPPORTED);
    assert_null(cubin);
    assert_non_null(strstr(brg_error_message(), "NVRTC_ERROR_COMPILATION"));
    assert_non_null(strstr(brg_error_message(), "brigade.cu(1): error"));
}

/* It is left alone, goes on to its end and frees what it has; then others can be
 * compiled. */
static void test_nvrtc__takes_too_long(void **state)
{
    static brg__cuda_group g[N_GROUPS];
    int kernel[N_GROUPS], n_refused = 0;
    brg_memory_stats before, after;
    void *cubin;
    size_t n;
    (void)state;
    brg_memory_get_stats(&before);
    brg_scope *scope = brg_scope_begin();
    char *text = make_text(g, N_GROUPS, kernel);
    assert_int_equal(brg__cu_nvrtc_compile(90, text, 0.01, &cubin, &n),
                     BRG_ERR_TIMEOUT);
    assert_null(cubin);
    assert_non_null(strstr(brg_error_message(), "longer than 0.01 s"));
    for (; n_refused < 6000; n_refused++) {
        brg_status status = brg__cu_nvrtc_compile(90, text, 60, &cubin, &n);
        if (status == BRG_OK)
            break;
        assert_int_equal(status, BRG_ERR_TIMEOUT);
        assert_non_null(strstr(brg_error_message(), "still at a source"));
        assert_int_equal(usleep(10000), 0);
    }
    print_message("stopped after %d0 ms\n", n_refused);
    assert_in_range(n_refused, 1, 5999);
    brg__mem_free(cubin);
    brg__mem_free(text);
    brg_scope_end(scope);
    brg_memory_get_stats(&after);
    assert_int_equal(after.in_use, before.in_use);
}

static void test_nvrtc__gpus_that_it_does_not_know(void **state)
{
    char text[BRG_DEVICE_COMPILER_TEXT], other[BRG_DEVICE_COMPILER_TEXT];
    (void)state;
    assert_brg_ok(brg__cu_nvrtc_identity(90, text, sizeof text));
    assert_brg_ok(brg__cu_nvrtc_identity(80, other, sizeof other));
    print_message("%s\n", text);
    assert_string_not_equal(text, other);
    assert_int_equal(brg__cu_nvrtc_identity(13, text, sizeof text),
                     BRG_ERR_UNSUPPORTED);
    assert_non_null(strstr(brg_error_message(), "compute capability 1.3"));
}

int main(void)
{
    char text[BRG_DEVICE_COMPILER_TEXT];
    host = *brg_device_host_get();
    host.poll = count_poll;
    brg__cu_host = &host;
    if (brg__cu_nvrtc_identity(90, text, sizeof text) != BRG_OK) {
        printf("SKIPPED, nothing was tested: %s\n", brg_error_message());
        return BRG_TEST_SKIPPED;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nvrtc__compiles_groups),
        cmocka_unit_test(test_nvrtc__says_what_it_refuses),
        cmocka_unit_test(test_nvrtc__takes_too_long),
        cmocka_unit_test(test_nvrtc__gpus_that_it_does_not_know),
    };
    return cmocka_run_group_tests_name("nvrtc", tests, NULL, NULL);
}
