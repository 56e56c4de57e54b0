/* SPDX-License-Identifier: Apache-2.0
 * The recording device, which also compiles the CUDA C of plans: with the C
 * compiler, for the host. A block's threads take turns as coroutines, from one
 * __syncthreads to the next. Anything can be made to fail. */
#ifndef BRG_TESTS_SUPPORT_COMPILING_DEVICE_H
#define BRG_TESTS_SUPPORT_COMPILING_DEVICE_H

#include <dlfcn.h>
#include <stdio.h>
#include <ucontext.h>
#include <unistd.h>

#include "tests/support/recording_device.h"
#include "tests/support/temp_dir.h"

static struct {
    bool is_missing;    /* there is no compiler */
    bool refuses;       /* the source, */
    bool is_slow;       /* too slow for it, */
    bool cannot_load;   /* the binary, */
    bool cannot_launch; /* the kernel */
    int n_compiled, n_loaded, n_unloaded;
    int n_launched; /* or recorded */
    double seconds; /* that the last compilation was given */
} compiling;

/* What stands for CUDA in front of the source. */
static const char host_cuda[] =
    "#define CUDA_HOST\n"
    "#include <math.h>\n#include <stdbool.h>\n#include <stdint.h>\n"
    "#include <string.h>\n"
    "struct { uint32_t x, y, z; } threadIdx, blockIdx, gridDim;\n"
    "void (*sync_threads)(void);\n"
    "#define KERNEL(name) void name\n"
    "#define DEVICE static inline __attribute__((unused))\n"
    "#define SHARED static\n#define GLOBAL static __attribute__((unused))\n"
    "#define PARAM const\n#define ALIGNED(n) __attribute__((aligned(n)))\n"
    "#define UNROLL\n#define UNROLL_8\n#define OF_OTHERS(p) (*(p))\n"
    "#define FENCE()\n"
    "#define SYNC() sync_threads()\n#define ADD_ONE(p) ((*(p))++)\n";

/* ---- Compiling and loading ---------------------------------------------------- */

static brg_status compiling_compiler(brg_device device,
                                     brg_device_compiler *filled)
{
    (void)device;
    if (compiling.is_missing)
        return brg_error_set(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                             "there is no compiler, the test says");
    snprintf(filled->identity, sizeof filled->identity, "cc of a test");
    filled->n_units = 4;
    return BRG_OK;
}

static brg_status compiling_compile(brg_device device, const char *source,
                                    double seconds, void **binary,
                                    size_t *nbytes)
{
    static int n;
    char name[64], command[9000];
    (void)device;
    compiling.seconds = seconds;
    if (compiling.refuses)
        return brg_error_set(BRG_ERR_UNSUPPORTED, __FILE__, __LINE__,
                             "brigade.cu(1): error: the test says so");
    if (compiling.is_slow)
        return brg_error_set(BRG_ERR_TIMEOUT, __FILE__, __LINE__,
                             "it took longer than %g s", seconds);
    compiling.n_compiled++;
    snprintf(name, sizeof name, "cuda%d.c", n++);
    char c[4096];
    snprintf(c, sizeof c, "%s", temp_path(name));
    FILE *file = fopen(c, "w");
    if (!file)
        abort();
    fprintf(file, "%s%s", host_cuda, source);
    fclose(file);
    snprintf(command, sizeof command,
             "cc -std=gnu11 -O1 -ffp-contract=off -shared -fPIC -w -o '%s.so' "
             "'%s' -lm",
             c, c);
    if (system(command) != 0)
        abort();
    snprintf(command, sizeof command, "%s.so", c);
    file = fopen(command, "r");
    if (!file || fseek(file, 0, SEEK_END) != 0)
        abort();
    *nbytes = (size_t)ftell(file);
    rewind(file);
    *binary = brg_device_host_get()->alloc(*nbytes, "a test's kernel");
    if (fread(*binary, 1, *nbytes, file) != *nbytes)
        abort();
    fclose(file);
    return BRG_OK;
}

static brg_status compiling_load(brg_device device, const void *binary,
                                 size_t nbytes, void **module)
{
    static int n;
    char name[64];
    (void)device;
    *module = NULL;
    if (compiling.cannot_load)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                             "a kernel image that is no good");
    snprintf(name, sizeof name, "module%d.so", n++);
    const char *path = temp_file(name, binary, nbytes);
    *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!*module)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__, "%s",
                             dlerror());
    compiling.n_loaded++;
    return BRG_OK;
}

static void compiling_unload(brg_device device, void *module)
{
    (void)device;
    compiling.n_unloaded++;
    dlclose(module);
}

/* ---- Launching ------------------------------------------------------------------- */

typedef struct params_by_value {
    char bytes[4096];
} params_by_value;

typedef struct host_index {
    uint32_t x, y, z;
} host_index;

typedef struct host_kernel {
    void (*run)(params_by_value);
    host_index *thread, *block, *grid;
    void (**sync)(void);
    bool has_syncs;
} host_kernel;

static brg_status compiling_find(brg_device device, void *module,
                                 const char *name, void **kernel)
{
    static host_kernel kernels[1024];
    static int n;
    (void)device;
    if (n == 1024)
        abort();
    host_kernel *k = &kernels[n++];
    *(void **)&k->run = dlsym(module, name);
    k->thread = dlsym(module, "threadIdx");
    k->block = dlsym(module, "blockIdx");
    k->grid = dlsym(module, "gridDim");
    k->sync = dlsym(module, "sync_threads");
    k->has_syncs = strncmp(name, "brg_columns", 11) == 0;
    *kernel = k;
    return k->run ? BRG_OK
                  : brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                                  "there is no kernel %s", name);
}

enum { MAX_THREADS = 256, STACK = 65536 };

static struct {
    ucontext_t main, thread[MAX_THREADS];
    char *stack[MAX_THREADS];
    bool is_done[MAX_THREADS];
    int now, n_done;
    const host_kernel *kernel;
    const params_by_value *params;
} turns;

static void wait_turn(void)
{
    swapcontext(&turns.thread[turns.now], &turns.main);
}

static void run_thread(void)
{
    turns.kernel->run(*turns.params);
    turns.is_done[turns.now] = true;
}

static void begin_turns(int i)
{
    ucontext_t *t = &turns.thread[i];
    getcontext(t);
    t->uc_stack.ss_sp = turns.stack[i];
    t->uc_stack.ss_size = STACK;
    t->uc_link = &turns.main;
    makecontext(t, run_thread, 0);
}

/* Up and down the threads, so that a missing barrier shows. */
static void run_in_turns(const host_kernel *kernel, const uint32_t threads[2],
                         const params_by_value *params)
{
    const int n = (int)(threads[0] * threads[1]);
    turns.n_done = 0;
    turns.kernel = kernel;
    turns.params = params;
    *kernel->sync = wait_turn;
    for (int i = 0; i < n; i++) {
        if (!turns.stack[i])
            turns.stack[i] = malloc(STACK);
        begin_turns(i);
        turns.is_done[i] = false;
    }
    for (bool forward = true; turns.n_done < n; forward = !forward)
        for (int k = 0; k < n; k++) {
            const int i = forward ? k : n - 1 - k;
            if (turns.is_done[i])
                continue;
            *kernel->thread = (host_index){(uint32_t)i % threads[0],
                                           (uint32_t)i / threads[0], 0};
            turns.now = i;
            swapcontext(&turns.main, &turns.thread[i]);
            turns.n_done += turns.is_done[i];
        }
}

typedef struct host_launch {
    brg_device_launch l;
    params_by_value params;
} host_launch;

static void run_launch(const void *bytes)
{
    const host_launch *h = bytes;
    const host_kernel *k = h->l.kernel;
    *k->grid = (host_index){h->l.blocks[0], h->l.blocks[1], 1};
    for (uint32_t y = 0; y < h->l.blocks[1]; y++)
        for (uint32_t x = 0; x < h->l.blocks[0]; x++) {
            *k->block = (host_index){x, y, 0};
            if (k->has_syncs) {
                run_in_turns(k, h->l.threads, &h->params);
                continue;
            }
            for (uint32_t t = 0; t < h->l.threads[0]; t++) {
                *k->thread = (host_index){t, 0, 0};
                k->run(h->params);
            }
        }
}

static brg_status compiling_launch(brg_device device,
                                   const brg_device_launch *l)
{
    host_launch h = {.l = *l};
    (void)device;
    if (compiling.cannot_launch)
        return brg_error_set(BRG_ERR_DEVICE, __FILE__, __LINE__,
                             "too many resources, the test says");
    compiling.n_launched++;
    memcpy(&h.params, l->params[0], sizeof h.params);
    if (recording)
        record_work(run_launch, &h, sizeof h);
    else
        run_launch(&h);
    return BRG_OK;
}

static inline const brg_device_vtable *compiling_device(void)
{
    static brg_device_vtable table;
    table = recording_device;
    table.kernel_compiler = compiling_compiler;
    table.kernel_compile = compiling_compile;
    table.kernel_load = compiling_load;
    table.kernel_find = compiling_find;
    table.kernel_launch = compiling_launch;
    table.kernel_unload = compiling_unload;
    return &table;
}

#endif
