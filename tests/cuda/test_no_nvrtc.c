/* SPDX-License-Identifier: Apache-2.0
 * Steps with kernels of their own on a GPU where NVRTC is of no use (lacking_nvrtc.c):
 * the ops run one by one, and a warning says why, once. */
#include <unistd.h>

#include "tests/compile/kernel_cache.h"
#include "tests/cuda/steps.h"

#define WHY "lacks nvrtcGetNumSupportedArchs"

static int n_told;

/* As close to eager steps as with kernels (test_groups.c). */
static void train(kind k, double most)
{
    static const model_options options = {.eps = 1e-3};
    static outcome want, got;
    run_way(k, EAGER, BRG_DTYPE_F32, &options, &want);
    for (way w = BACKWARD; w < N_WAYS; w++) {
        logged[0] = '\0';
        run_way(k, w, BRG_DTYPE_F32, &options, &got);
        check_counts(k, w, &got);
        const double off = worst_of(&got, &want);
        printf("%s %s: off by %.2g, logged: %s\n", kind_names[k], way_names[w],
               off, logged);
        assert_true(off <= most);
        const char *first = strstr(logged, "run one by one on cuda:0");
        if (first)
            assert_non_null(strstr(first, WHY));
        assert_true(!first || !strstr(first + 1, "run one by one on cuda:0"));
        n_told += first != NULL;
    }
}

/* GPT has no cuDNN in it, which may look for NVRTC too. */
static void test_no_nvrtc__steps_run_all_the_same(void **state)
{
    (void)state;
    backend_of_ways = BRG_COMPILE_BACKEND_FUSED;
    train(MLP, 1e-5);
    train(GPT, 1e-4);
    assert_true(n_told > 0);
}

/* The loader is told at the start where to look first. */
static int start_again(char **argv)
{
    const char *path = getenv("LD_LIBRARY_PATH");
    char both[8192];
    snprintf(both, sizeof both, "%s%s%s", BRG_TEST_LACKING, path ? ":" : "",
             path ? path : "");
    if (setenv("LD_LIBRARY_PATH", both, 1) != 0 ||
        setenv("BRG_TEST_IS_LACKING", "1", 1) != 0)
        return 1;
    (void)execv("/proc/self/exe", argv);
    perror("execv");
    return 1;
}

int main(int argc, char **argv)
{
    (void)argc;
    if (!getenv("BRG_TEST_IS_LACKING"))
        return start_again(argv);
    int missing = require_gpu();
    if (missing)
        return missing;
    fresh_kernel_cache();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_nvrtc__steps_run_all_the_same),
    };
    return cmocka_run_group_tests_name("no_nvrtc", tests, NULL, NULL);
}
