/* SPDX-License-Identifier: Apache-2.0
 * Every row of op_cases.def in every mode. An argument filters the tests by
 * name: core_test_ops 'matmul*'. */

#include "tests/core/op_rows.h"
#include "tests/core/op_ref_dense.h"
#include "tests/core/op_ref_nn.h"
#include "tests/core/op_ref_pointwise.h"
#include "tests/core/op_ref_shape.h"
#include "tests/core/op_ref_sparse.h"
#include "tests/support/fake_device.h"

#define OP(name, ...) OP_MORE(name, , __VA_ARGS__)

/* The expressions of the rows as functions. */
#define CALL(...) __VA_ARGS__
#define REF(...) __VA_ARGS__
#define REF_FN(fn) 0
#define OP_MORE(name, variant, call, reference, ...)                           \
    static brg_tensor *call_##name##_##variant(brg_tensor *const *x)           \
    {                                                                          \
        return call;                                                           \
    }                                                                          \
    static double scalar_##name##_##variant(double a, double b, double c)      \
    {                                                                          \
        (void)a, (void)b, (void)c;                                             \
        return reference;                                                      \
    }
#include "tests/core/op_cases.def"
#undef OP_MORE
#undef CALL
#undef REF
#undef REF_FN

/* The rows as data. */
#define CALL(...)
#define REF(...) .is_scalar = true
#define REF_FN(fn) .ref = (fn)
#define OP_MORE(name, variant_, nothing, ...)                                  \
    {.op = #name,                                                              \
     .variant = #variant_,                                                     \
     .call = call_##name##_##variant_,                                         \
     .scalar = scalar_##name##_##variant_,                                     \
     __VA_ARGS__},
static const op_case cases[] = {
#include "tests/core/op_cases.def"
};

#define N_CASES (sizeof cases / sizeof *cases)
#define NAME_MAX_LENGTH 80

typedef struct planned_test {
    const op_case *c;
    op_mode_fn run;
    char name[NAME_MAX_LENGTH];
} planned_test;

static void run_planned(void **state)
{
    const planned_test *test = *state;
    test->run(test->c);
}

static void test_ops__every_row_has_a_case(void **state)
{
    (void)state;
    size_t n_missing = 0;
    for (size_t i = 0; brg_op_at(i); i++) {
        bool is_found = false;
        for (size_t k = 0; k < N_CASES; k++)
            is_found = is_found || strcmp(cases[k].op, brg_op_at(i)->name) == 0;
        if (is_found)
            continue;
        print_error("op_cases.def has no row for %s\n", brg_op_at(i)->name);
        n_missing++;
    }
    assert_int_equal(n_missing, 0);
}

int main(int argc, char **argv)
{
    static planned_test planned[N_CASES * 16];
    static struct CMUnitTest tests[N_CASES * 16 + 1];
    size_t n = 0;
    assert_true(op_n_modes <= 16);
    if (brg_device_get().type == BRG_DEVICE_CPU) /* for mixed_devices */
        assert_brg_ok(brg_device_register(BRG_DEVICE_CUDA, &fake));
    for (size_t k = 0; k < N_CASES; k++)
        for (size_t m = 0; m < op_n_modes; m++, n++) {
            planned_test *test = &planned[n];
            test->c = &cases[k];
            test->run = op_modes[m].run;
            snprintf(test->name, sizeof test->name, "%s%s%s__%s", cases[k].op,
                     cases[k].variant[0] ? "/" : "", cases[k].variant,
                     op_modes[m].name);
            tests[n] =
                (struct CMUnitTest){test->name, run_planned, NULL, NULL, test};
        }
    tests[n++] =
        (struct CMUnitTest){"every_row_has_a_case",
                            test_ops__every_row_has_a_case, NULL, NULL, NULL};
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return _cmocka_run_group_tests("ops", tests, n, NULL, NULL);
}
