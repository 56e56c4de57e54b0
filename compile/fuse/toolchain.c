/* SPDX-License-Identifier: Apache-2.0
 * The system's C compiler: see toolchain.h. */
#include "compile/fuse/toolchain.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"
#include "core/base/env.h"
#include "core/base/error.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/ops/isa.h"
#include "core/ops/pointwise.h"

extern char **environ;

#define MAX_ARGS 32
#define IDENTITY_S 10 /* that it may take to say who it is */

/* ---- Running a program ---------------------------------------------------------- */

static void pause_ms(long ms)
{
    struct timespec t = {0, ms * 1000000};
    (void)nanosleep(&t, NULL);
}

/* Its own process group, so that what it starts can be stopped too. */
static int spawn(pid_t *pid, char *const *args, const char *words)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t none;
    sigemptyset(&none);
    if (posix_spawn_file_actions_init(&files) != 0)
        return ENOMEM;
    if (posix_spawnattr_init(&attr) != 0) {
        posix_spawn_file_actions_destroy(&files);
        return ENOMEM;
    }
    int e =
        posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
    if (e == 0)
        e = posix_spawn_file_actions_addopen(
            &files, 1, words, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (e == 0)
        e = posix_spawn_file_actions_adddup2(&files, 1, 2);
    if (e == 0)
        e = posix_spawnattr_setpgroup(&attr, 0);
    if (e == 0)
        e = posix_spawnattr_setsigmask(&attr, &none);
    if (e == 0)
        e = posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETPGROUP |
                                                POSIX_SPAWN_SETSIGMASK);
    if (e == 0)
        e = posix_spawnp(pid, args[0], &files, &attr, args, environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    return e;
}

/* Waits for it, polling, at most so long; kills it then. */
static brg_status wait_for(pid_t pid, const char *name, double seconds)
{
    uint64_t end = brg__clock_ns() + (uint64_t)(seconds * 1e9);
    int status, n_polls = 0;
    for (;;) {
        pid_t got = waitpid(pid, &status, WNOHANG);
        if (got == pid)
            break;
        if (got < 0 && errno != EINTR)
            return BRG_FAIL(BRG_ERR_IO, "waiting for %s: %s", name,
                            strerror(errno));
        if (brg__clock_ns() > end) {
            (void)kill(-pid, SIGKILL);
            (void)kill(pid, SIGKILL);
            while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
                continue;
            return BRG_FAIL(BRG_ERR_TIMEOUT, "%s took longer than %g s", name,
                            seconds);
        }
        brg__progress_poll();
        pause_ms(n_polls++ < 20 ? 1 : 5);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return BRG_OK;
    if (WIFSIGNALED(status))
        return BRG_FAIL(BRG_ERR_IO, "%s was ended by signal %d", name,
                        WTERMSIG(status));
    return BRG_FAIL(BRG_ERR_IO, "%s ended with status %d", name,
                    WEXITSTATUS(status));
}

static void first_line(const char *path, char *filled, size_t size)
{
    FILE *file = fopen(path, "re");
    filled[0] = '\0';
    if (!file)
        return;
    if (!fgets(filled, (int)size, file))
        filled[0] = '\0';
    filled[strcspn(filled, "\n")] = '\0';
    fclose(file);
}

static brg_status run(char *const *args, const char *words, double seconds)
{
    pid_t pid;
    char line[200];
    int e = spawn(&pid, args, words);
    if (e != 0)
        return BRG_FAIL(BRG_ERR_IO, "cannot start the C compiler %s: %s",
                        args[0], strerror(e));
    brg_status status = wait_for(pid, args[0], seconds);
    if (status == BRG_OK)
        return BRG_OK;
    first_line(words, line, sizeof line);
    return line[0] ? brg__error_prefix("%s; ", line) : status;
}

/* ---- Which one --------------------------------------------------------------------- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    char name[BRG__TOOLCHAIN_TEXT]; /* that was asked */
    char identity[BRG__TOOLCHAIN_TEXT];
    bool works;
} known;

/* As the library's own kernels. */
static const char flags[] = "-std=c11 -O3 -shared -fPIC -w -fno-math-errno "
                            "-fno-trapping-math";

/* A build without optimisation rounds products before it adds to them, whatever
 * the processor could do; results shall be the same. */
static const char *contraction(void)
{
    const float a = -(1 + 0x1p-11f), b = 1 + 0x1p-12f;
    const double scale[2] = {1 + 0x1p-12, 0};
    float sum; /* 0, as the product is rounded to -a; else 2^-24 */
    brg__pw_kernel(&brg__op_add_scaled,
                   BRG__F32)(1, &sum, (const void *const[]){&a, &b}, scale);
    return sum == 0 ? "-ffp-contract=off" : "-ffp-contract=fast";
}

static const char *isa_flags(void)
{
#if defined(BRG_HAVE_ISA_AVX512)
    if (brg__isa() == BRG__ISA_AVX512)
        return "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c "
               "-mprefer-vector-width=512";
    if (brg__isa() == BRG__ISA_AVX2)
        return "-mavx2 -mfma -mf16c";
#endif
    return "";
}

static brg_status ask(const char *name)
{
    char words[] = "/tmp/brigade-cc-XXXXXX", version[200];
    int fd = mkstemp(words);
    if (fd < 0)
        return BRG_FAIL(BRG_ERR_IO, "cannot make a file in /tmp: %s",
                        strerror(errno));
    close(fd);
    char *args[] = {known.name, "--version", NULL};
    brg_status status = run(args, words, IDENTITY_S);
    first_line(words, version, sizeof version);
    (void)unlink(words);
    BRG_TRY(status);
    snprintf(known.identity, sizeof known.identity, "%s | %s | %s %s %s", name,
             version, flags, contraction(), isa_flags());
    return BRG_OK;
}

static void look(const char *name)
{
    snprintf(known.name, sizeof known.name, "%s", name);
    known.works = false;
    if (name[0] == '\0')
        return;
    known.works = ask(name) == BRG_OK;
    if (known.works)
        return;
    brg__log(BRG_LOG_WARN, "compile",
             "fused groups are interpreted: %s (BRG_COMPILE_CC)",
             brg_error_message());
    brg_error_clear();
}

bool brg__toolchain_identity(char text[BRG__TOOLCHAIN_TEXT])
{
    static bool has_looked;
    pthread_mutex_lock(&lock);
    const char *name = brg__env_text(BRG__ENV_COMPILE_CC);
    if (!has_looked || strcmp(name, known.name) != 0)
        look(name);
    has_looked = true;
    bool works = known.works;
    memcpy(text, known.identity, BRG__TOOLCHAIN_TEXT);
    pthread_mutex_unlock(&lock);
    return works;
}

/* ---- Compiling ---------------------------------------------------------------------- */

brg_status brg__toolchain_run(const char *source, const char *object,
                              const char *words)
{
    char words_of[256], *rest = NULL, *args[MAX_ARGS];
    char name[BRG__TOOLCHAIN_TEXT];
    int n = 0;
    pthread_mutex_lock(&lock);
    memcpy(name, known.name, sizeof name);
    pthread_mutex_unlock(&lock);
    args[n++] = name;
    snprintf(words_of, sizeof words_of, "%s %s %s", flags, contraction(),
             isa_flags());
    for (char *flag = strtok_r(words_of, " ", &rest); flag;
         flag = strtok_r(NULL, " ", &rest))
        args[n++] = flag;
    args[n++] = "-o";
    args[n++] = (char *)(uintptr_t)object;
    args[n++] = (char *)(uintptr_t)source;
    args[n++] = "-lm";
    args[n] = NULL;
    return run(args, words, brg__env_double(BRG__ENV_COMPILE_TIMEOUT_S));
}
