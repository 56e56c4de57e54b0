/* SPDX-License-Identifier: Apache-2.0
 * Status asserts and seeded test data. */
#include "tests/support/brg_test.h"

#include <unistd.h>

#include <stdio.h>

#include <brigade/compile.h>
#include <brigade/device.h>

static void describe(const char *expr, brg_status status)
{
    print_error("%s gave %s: %s (%s:%d)\n", expr, brg_status_name(status),
                brg_error_message(), brg_error_file(), brg_error_line());
}

void brg_test__ok(brg_status status, const char *expr, const char *file,
                  int line)
{
    if (status == BRG_OK)
        return;
    describe(expr, status);
    _fail(file, line);
}

static void check_record(brg_status code, const char *text, const char *expr,
                         const char *file, int line)
{
    bool is_right = brg_error_code() == code && brg_error_message()[0] != '\0';
    if (is_right && text)
        is_right = strstr(brg_error_message(), text) != NULL;
    if (is_right)
        return;
    describe(expr, brg_error_code());
    print_error("expected %s with a message%s%s\n", brg_status_name(code),
                text ? " containing: " : "", text ? text : "");
    _fail(file, line);
}

void brg_test__fails(brg_status status, brg_status code, const char *text,
                     const char *expr, const char *file, int line)
{
    if (status != code) {
        describe(expr, status);
        print_error("expected %s\n", brg_status_name(code));
        _fail(file, line);
    }
    check_record(code, text, expr, file, line);
}

void *brg_test__some(void *ptr, const char *expr, const char *file, int line)
{
    if (!ptr) {
        describe(expr, brg_error_code());
        _fail(file, line);
    }
    return ptr;
}

void brg_test__null(void *ptr, brg_status code, const char *text,
                    const char *expr, const char *file, int line)
{
    if (ptr) {
        print_error("%s succeeded, expected %s\n", expr, brg_status_name(code));
        _fail(file, line);
    }
    check_record(code, text, expr, file, line);
}

uint64_t brg_test_seed(uint64_t fallback)
{
    const char *text = getenv("BRG_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : fallback;
    printf("seed: %llu (set BRG_TEST_SEED to repeat)\n",
           (unsigned long long)seed);
    return seed;
}

uint64_t brg_test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double brg_test_uniform(uint64_t *state, double low, double high)
{
    double u = (double)(brg_test_random(state) >> 11) * 0x1p-53;
    return low + u * (high - low);
}

/* ---- Some of the tests, another device ----------------------------------------- */

/* BRG_TEST_FILTER: only tests with such a name, of every program. */
__attribute__((constructor)) static void choose_tests(void)
{
    const char *pattern = getenv("BRG_TEST_FILTER");
    if (pattern)
        cmocka_set_test_filter(pattern);
}

/* Before main, so that every test program can run there. */
__attribute__((constructor)) static void choose_device(void)
{
    const char *text = getenv("BRG_TEST_DEVICE");
    brg_device device;
    if (!text || !*text)
        return;
    brg_status status = brg_device_parse(&device, text);
    if (status == BRG_OK && device.type == BRG_DEVICE_CUDA)
        status = brg_device_load("cuda");
    if (status == BRG_OK)
        status = brg_device_set(device);
    if (status == BRG_OK)
        return;
    printf("SKIPPED, nothing was tested: no device %s: %s\n", text,
           brg_error_message());
    fflush(stdout);
    _exit(BRG_TEST_SKIPPED);
}

/* With BRG_TEST_COMPILED=1 the main thread's backwards are compiled, from the
 * start, also in tests that know nothing of it (see tests/autograd/graph.h). */
__attribute__((constructor)) static void begin_compiled_run(void)
{
    int scope;
    const char *text = getenv("BRG_TEST_COMPILED");
    if (text && strcmp(text, "1") == 0 &&
        brg_compile_begin(&scope, NULL) != BRG_OK)
        abort();
}

size_t brg_test_count(const char *text, const char *word)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, word)); at++)
        n++;
    return n;
}
