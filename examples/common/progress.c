/* SPDX-License-Identifier: Apache-2.0
 * The progress line. */
#include "common/progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_NS 100000000u /* on a terminal */
#define LINE_NS 5000000000u  /* elsewhere */
#define BAR_WIDTH 20

uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Open MPI gives its processes a terminal of their own and passes on what
 * they write: what counts is where mpirun's output goes. */
static bool is_output_terminal(void)
{
    if (getenv("OMPI_COMM_WORLD_RANK") == NULL)
        return isatty(STDOUT_FILENO) == 1;
    char path[64];
    char target[64];
    snprintf(path, sizeof path, "/proc/%d/fd/1", (int)getppid());
    ssize_t n = readlink(path, target, sizeof target - 1);
    if (n < 0)
        return false;
    target[n] = '\0';
    return strncmp(target, "/dev/pts/", 9) == 0 ||
           strncmp(target, "/dev/tty", 8) == 0;
}

void progress_begin(progress *p, bool is_shown, int64_t first_step,
                    int64_t n_steps, int64_t n_samples_per_step)
{
    *p = (progress){.is_shown = is_shown,
                    .is_terminal = is_shown && is_output_terminal(),
                    .n_steps = n_steps,
                    .step = first_step,
                    .n_samples_per_step = n_samples_per_step,
                    .started_ns = now_ns()};
    p->shown_ns = p->started_ns;
}

static void format_time(char *out, size_t size, double seconds)
{
    long s = seconds > 0 ? (long)(seconds + 0.5) : 0;
    if (s >= 3600)
        snprintf(out, size, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(out, size, "%ld:%02ld", s / 60, s % 60);
}

static void format_bar(char out[BAR_WIDTH + 1], int64_t step, int64_t n_steps)
{
    int64_t filled = n_steps > 0 ? step * BAR_WIDTH / n_steps : 0;
    for (int i = 0; i < BAR_WIDTH; i++)
        out[i] = i < filled ? '#' : '-';
    out[BAR_WIDTH] = '\0';
}

static void show(progress *p, double loss, int64_t epoch)
{
    char left[32];
    char bar[BAR_WIDTH + 1];
    format_time(left, sizeof left,
                (double)(p->n_steps - p->step) * p->recent_ns * 1e-9);
    format_bar(bar, p->step, p->n_steps);
    printf("%sepoch %lld [%s] %lld/%lld  loss %.4f  %.2f ms/step  "
           "%.0f samples/s  wait %.0f%%  left %s%s",
           p->is_terminal ? "\r" : "", (long long)epoch + 1, bar,
           (long long)p->step, (long long)p->n_steps, loss, p->recent_ns * 1e-6,
           (double)p->n_samples_per_step / (p->recent_ns * 1e-9),
           100 * p->recent_wait, left, p->is_terminal ? "\033[K" : "\n");
    fflush(stdout);
    p->is_line_open = p->is_terminal;
}

void progress_step(progress *p, uint64_t step_ns, uint64_t wait_ns, double loss,
                   int64_t epoch)
{
    p->step++;
    p->n_measured++;
    if (p->n_measured <= PROGRESS_WARM_UP || p->recent_ns == 0) {
        p->recent_ns = (double)step_ns;
        p->recent_wait = 0;
    }
    if (p->n_measured > PROGRESS_WARM_UP) {
        p->step_ns += step_ns;
        p->wait_ns += wait_ns;
        p->recent_ns += 0.05 * ((double)step_ns - p->recent_ns);
        double share = (double)wait_ns / (double)(step_ns > 0 ? step_ns : 1);
        p->recent_wait += 0.05 * (share - p->recent_wait);
    }
    if (!p->is_shown)
        return;
    uint64_t now = now_ns();
    if (now - p->shown_ns < (p->is_terminal ? REDRAW_NS : LINE_NS))
        return;
    p->shown_ns = now;
    show(p, loss, epoch);
}

void progress_line(progress *p, const char *format, ...)
{
    if (p->is_line_open)
        fputs("\r\033[K", stdout);
    p->is_line_open = false;
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

void progress_end(progress *p)
{
    if (p->is_line_open)
        putchar('\n');
    p->is_line_open = false;
    fflush(stdout);
}

double progress_step_ms(const progress *p)
{
    int64_t n = p->n_measured - PROGRESS_WARM_UP;
    return n > 0 ? (double)p->step_ns * 1e-6 / (double)n : p->recent_ns * 1e-6;
}

double progress_wait_share(const progress *p)
{
    return p->step_ns > 0 ? (double)p->wait_ns / (double)p->step_ns : 0.0;
}
