/* SPDX-License-Identifier: Apache-2.0
 * Offload of saved tensors: equal gradients, when things move, what is left
 * behind, and what goes wrong. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <brigade/offload.h>
#include <brigade/recompute.h>

#include "tests/autograd/graph.h"
#include "tests/support/fail_alloc.h"
#include "tests/support/plain_pack.h"
#include "tests/support/temp_dir.h"

static brg_offload_options disk(void)
{
    brg_offload_options options = BRG_OFFLOAD_OPTIONS_INIT;
    options.kind = BRG_OFFLOAD_DISK;
    options.folder = temp_path(".");
    return options;
}

/* Saves inputs, outputs, views and an integer tensor. */
static brg_tensor *loss_of(brg_tensor *x, brg_tensor *w)
{
    brg_tensor *ids = brg_arange(BRG_DTYPE_I64, 0, 3, 1);
    brg_tensor *h = brg_tanh(brg_matmul(brg_transpose(x, 0, 1), w));
    h = brg_mul(brg_index_select(h, 0, ids), brg_sin(h));
    return brg_sum_all(brg_softmax(h, -1));
}

static void inputs_of(brg_tensor **x, brg_tensor **w)
{
    *x = leaf_from(0.1, BRG_SHAPE(4, 3));
    *w = leaf_from(-0.3, BRG_SHAPE(4, 5));
    assert_brg_ok(brg_mul_scalar_(brg_detach(*x), 0.1));
    assert_brg_ok(brg_mul_scalar_(brg_detach(*w), 0.1));
}

static void expect_equal(const brg_tensor *a, const brg_tensor *b)
{
    for (int64_t i = 0; i < brg_tensor_numel(b); i++)
        assert_float_equal(element(a, i), element(b, i), 0);
}

static void check_equal(const brg_offload_options *options)
{
    brg_tensor *x, *w, *x2, *w2;
    inputs_of(&x, &w);
    inputs_of(&x2, &w2);
    assert_brg_ok(brg_backward(loss_of(brg_mul(x, x), w)));
    assert_brg_ok(brg_offload_begin(options));
    brg_tensor *loss = loss_of(brg_mul(x2, x2), w2);
    assert_brg_ok(brg_offload_end());
    brg_backward_options twice = BRG_BACKWARD_OPTIONS_INIT;
    twice.retain_graph = true;
    assert_brg_ok(brg_backward_with(&loss, 1, &twice));
    expect_equal(brg_tensor_grad(x2), brg_tensor_grad(x));
    expect_equal(brg_tensor_grad(w2), brg_tensor_grad(w));
    assert_brg_ok(brg_tensor_set_grad(x2, NULL));
    assert_brg_ok(brg_backward(loss)); /* comes back a second time */
    expect_equal(brg_tensor_grad(x2), brg_tensor_grad(x));
}

static void test_offload__same_gradients(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    check_equal(NULL);
    check_equal(&options);
    options.min_bytes = 50; /* some go, some stay */
    check_equal(&options);
    assert_int_equal(temp_count(), 0);
}

/* ---- The open file --------------------------------------------------------------- */

/* A descriptor of this process whose file is in the test's folder, or -1. */
static int file_in_use(void)
{
    char folder[512], link[512], path[64];
    assert_non_null(realpath(temp_path("."), folder));
    DIR *dir = opendir("/proc/self/fd");
    int found = -1;
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
        snprintf(path, sizeof path, "/proc/self/fd/%.20s", entry->d_name);
        ssize_t n = readlink(path, link, sizeof link - 1);
        if (n > 0 && strncmp(link, folder, strlen(folder)) == 0)
            found = atoi(entry->d_name);
    }
    if (dir)
        closedir(dir);
    return found;
}

static off_t file_size(void)
{
    return lseek(file_in_use(), 0, SEEK_END);
}

static brg_tensor *big(void)
{
    brg_tensor *x = assert_brg_some(brg_ones(BRG_DTYPE_F32, BRG_SHAPE(1000)));
    assert_brg_ok(brg_set_requires_grad(x, true));
    return x;
}

/* The file holds what is saved, is emptied by the backward, and closes with
 * the last piece after the end. */
static void test_offload__disk_file_grows_and_goes(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    brg_tensor *x = big();
    assert_brg_ok(brg_offload_begin(&options));
    for (int step = 0; step < 3; step++) {
        brg_scope *scope = brg_scope_begin();
        brg_tensor *y = brg_exp(brg_exp(x));
        assert_int_equal(file_size(), 8000);
        assert_int_equal(temp_count(), 0);
        assert_brg_ok(brg_backward(brg_sum_all(y)));
        assert_int_equal(file_size(), 0);
        brg_scope_end(scope);
    }
    brg_scope *scope = brg_scope_begin();
    brg_tensor *y = brg_exp(x);
    assert_brg_ok(brg_offload_end());
    assert_int_equal(file_size(), 4000);
    assert_brg_ok(brg_backward(brg_sum_all(y)));
    brg_scope_end(scope);
    assert_int_equal(file_in_use(), -1);
}

/* Bytes on the disk, as far as they have got there. */
static off_t file_space(void)
{
    struct stat st;
    assert_int_equal(fsync(file_in_use()), 0);
    assert_int_equal(fstat(file_in_use(), &st), 0);
    return st.st_blocks * 512;
}

/* Whether the file system of the folder can free the middle of a file. */
static bool knows_holes(void)
{
    int fd = open(temp_path("."), O_TMPFILE | O_RDWR, 0600);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    int failed =
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20);
    close(fd);
    return !failed;
}

/* One of two saved tensors is used and freed: the other stays, whole. */
static void test_offload__each_tensor_gives_its_space_back(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    const off_t nbytes = 1 << 20;
    brg_tensor *x[2], *loss[2];
    assert_brg_ok(brg_offload_begin(&options));
    for (int k = 0; k < 2; k++) {
        x[k] = brg_full(BRG_DTYPE_F32, BRG_SHAPE(nbytes / 4), k);
        assert_brg_ok(brg_set_requires_grad(x[k], true));
        loss[k] = brg_sum_all(brg_exp(x[k]));
    }
    assert_brg_ok(brg_offload_end());
    off_t before = file_space();
    assert_true(before >= 2 * nbytes);
    assert_brg_ok(brg_backward(loss[0]));
    assert_int_equal(file_size(), 2 * nbytes);
    assert_true(file_space() <= before - (knows_holes() ? nbytes : 0));
    assert_brg_ok(brg_backward(loss[1]));
    assert_int_equal(file_in_use(), -1);
    for (int k = 0; k < 2; k++)
        assert_float_equal(element(brg_tensor_grad(x[k]), 77),
                           k ? 2.718281828 : 1, 1e-5);
}

static void test_offload__memory_of_activations_is_given_back(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    brg_memory_stats before, after;
    brg_tensor *x = big();
    brg_memory_get_stats(&before);
    brg_scope *scope = brg_scope_begin();
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = x;
    for (int i = 0; i < 10; i++) {
        brg_scope *inner = brg_scope_begin();
        y = brg_scope_return(inner, brg_sin(brg_mul_scalar(y, 0.5)));
    }
    brg_scope *inner = brg_scope_begin();
    y = brg_scope_return(inner, brg_retain(brg_sum_all(y)));
    brg_release(y);
    assert_brg_ok(brg_offload_end());
    brg_memory_get_stats(&after);
    assert_int_equal(file_size(), 40000);
    /* Only the ten links of the chain that the scope still holds, and nodes. */
    assert_true(after.in_use - before.in_use < 10 * 4000 + 30000);
    assert_brg_ok(brg_backward(y));
    brg_scope_end(scope);
}

static void test_offload__parameters_and_small_tensors_stay(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    options.min_bytes = 100;
    brg_tensor *w = big(), *small = leaf_from(1, BRG_SHAPE(4));
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = brg_sum_all(brg_mul(w, w));
    brg_tensor *z = brg_sum_all(brg_exp(small));
    assert_brg_ok(brg_offload_end());
    assert_int_equal(file_size(), 0);
    assert_brg_ok(brg_fill_(brg_detach(w), 3));
    assert_brg_fails_with(brg_backward(y), BRG_ERR_MODIFIED, "version");
    assert_brg_ok(brg_backward(z));
}

/* Whatever ends the process, no file stays. */
static void test_offload__nothing_is_left_by_a_killed_process(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        if (brg_offload_begin(&options) == BRG_OK && brg_exp(big()))
            raise(SIGKILL);
        _exit(1);
    }
    int how;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    assert_int_equal(temp_count(), 0);
}

/* ---- Errors ------------------------------------------------------------------------ */

static void test_offload__folder_must_be_there(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    options.folder = temp_path("missing");
    assert_brg_fails_with(brg_offload_begin(&options), BRG_ERR_IO,
                          "No such file or directory");
    assert_non_null(strstr(brg_error_message(), "missing"));
    options.folder = "/proc/self/fd"; /* not for writing, root included */
    assert_brg_fails_with(brg_offload_begin(&options), BRG_ERR_IO,
                          "/proc/self/fd");
    options.folder = temp_file("plain", "x", 1);
    assert_brg_fails_with(brg_offload_begin(&options), BRG_ERR_IO,
                          "Not a directory");
    unlink(options.folder);
    options.kind = (brg_offload_kind)7;
    assert_brg_fails_with(brg_offload_begin(&options), BRG_ERR_ARG, "kind is");
    options.struct_size = 1;
    assert_brg_fails_with(brg_offload_begin(&options), BRG_ERR_ARG,
                          "struct_size");
}

/* A limit on file sizes stands for a full disk. */
static void test_offload__full_disk(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    brg_tensor *x = big();
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 6000;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = brg_exp(x); /* there is room for one */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    brg_tensor *z = brg_exp(y);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_brg_null_with(brg_exp(z), BRG_ERR_ARG, "");
    assert_null(z);
    assert_brg_ok(brg_offload_end());
    assert_brg_ok(brg_backward(brg_sum_all(y))); /* the first still works */
    assert_float_equal(element(brg_tensor_grad(x), 7), 2.7182817, 1e-6);
    assert_int_equal(file_in_use(), -1);
}

static void test_offload__a_file_cut_short_is_detected(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    brg_tensor *x = big();
    assert_brg_ok(brg_offload_begin(&options));
    brg_tensor *y = brg_sum_all(brg_exp(x));
    assert_brg_ok(brg_offload_end());
    assert_int_equal(ftruncate(file_in_use(), 1000), 0);
    assert_brg_fails_with(brg_backward(y), BRG_ERR_IO, "ends 3000 bytes");
    assert_null(brg_tensor_grad(x));
}

static void test_offload__ends_in_order(void **state)
{
    (void)state;
    assert_brg_fails_with(brg_offload_end(), BRG_ERR_STATE, "no offload");
    brg_pack_hooks hooks = BRG_PACK_HOOKS_INIT;
    hooks.pack = plain_pack;
    hooks.unpack = plain_unpack;
    hooks.free = plain_free;
    assert_brg_ok(brg_offload_begin(NULL));
    assert_brg_ok(brg_pack_hooks_push(&hooks));
    assert_brg_fails_with(brg_offload_end(), BRG_ERR_STATE, "still in force");
    assert_brg_ok(brg_pack_hooks_pop());
    assert_brg_ok(brg_offload_end());
}

/* ---- Out of memory ------------------------------------------------------------------- */

static brg_status train(void *user)
{
    brg_status status = brg_offload_begin(user);
    if (status != BRG_OK)
        return status;
    brg_scope *scope = brg_scope_begin();
    brg_tensor *x = brg_ones(BRG_DTYPE_F32, BRG_SHAPE(20, 20));
    if (!x)
        status = brg_error_code();
    if (status == BRG_OK)
        status = brg_set_requires_grad(x, true);
    if (status == BRG_OK) {
        brg_tensor *h = brg_exp(brg_transpose(brg_sin(x), 0, 1));
        status = brg_backward(brg_sum_all(brg_mul(h, h)));
    }
    brg_scope_end(scope);
    brg_status ended = brg_offload_end();
    return status == BRG_OK ? ended : status;
}

static void test_offload__out_of_memory(void **state)
{
    (void)state;
    brg_offload_options options = disk();
    assert_oom_clean(train, &options);
    options.kind = BRG_OFFLOAD_HOST_MEMORY;
    assert_oom_clean(train, &options);
    assert_int_equal(file_in_use(), -1);
}

int main(void)
{
    fail_alloc_install();
    const struct CMUnitTest tests[] = {
        scoped_test(test_offload__same_gradients),
        scoped_test(test_offload__disk_file_grows_and_goes),
        scoped_test(test_offload__each_tensor_gives_its_space_back),
        scoped_test(test_offload__memory_of_activations_is_given_back),
        scoped_test(test_offload__parameters_and_small_tensors_stay),
        scoped_test(test_offload__nothing_is_left_by_a_killed_process),
        scoped_test(test_offload__folder_must_be_there),
        scoped_test(test_offload__full_disk),
        scoped_test(test_offload__a_file_cut_short_is_detected),
        scoped_test(test_offload__ends_in_order),
        cmocka_unit_test(test_offload__out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
