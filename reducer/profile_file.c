/* SPDX-License-Identifier: Apache-2.0
 * Profiles as text. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "core/base/alloc.h"
#include "reducer/profile.h"
#include "reducer/schedule.h"

#define FIRST_LINE "brigade-profile 1"
#define MAX_BYTES ((size_t)64 << 20)

static brg_status fail_io(const char *what, const char *path)
{
    return BRG_FAIL(BRG_ERR_IO, "%s: %s: %s", what, path, strerror(errno));
}

static void write_lines(const brg_profile *p, FILE *file)
{
    fprintf(file, FIRST_LINE "\nstep\t%" PRIu64 "\t%" PRIu64 "\t%" PRIu64 "\n",
            p->step_ns, p->backward_ns, p->tail_nbytes);
    for (size_t i = 0; i < p->n; i++) {
        const brg_profile_grad *g = &p->grads[i];
        fprintf(file, "grad\t%s\t%" PRIu64 "\t%" PRIu64 "\t",
                brg_dtype_name(g->dtype), g->nbytes, g->ready_ns);
        for (const char *c = g->name; *c; c++)
            fputc((unsigned char)*c < ' ' ? '?' : *c, file);
        fputc('\n', file);
        if (g->group)
            fprintf(file, "group\t%" PRIu32 "\n", g->group);
    }
}

brg_status brg_profile_write(const brg_profile *profile, const char *path)
{
    BRG_CHECK_ARG(profile && path, "brg_profile_write: argument is NULL");
    FILE *file = fopen(path, "w");
    if (!file)
        return fail_io("brg_profile_write", path);
    write_lines(profile, file);
    bool is_written = ferror(file) == 0;
    if (fclose(file) != 0 || !is_written)
        return fail_io("brg_profile_write", path);
    return BRG_OK;
}

/* ---- Reading ---------------------------------------------------------------------- */

/* The whole file, terminated; owned. */
static brg_status load(char **out, const char *path)
{
    FILE *file = fopen(path, "r");
    if (!file)
        return fail_io("brg_profile_read", path);
    long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
    brg_status status = BRG_OK;
    char *text = NULL;
    if (size < 0 || fseek(file, 0, SEEK_SET) != 0)
        status = fail_io("brg_profile_read", path);
    else if ((size_t)size > MAX_BYTES)
        status = BRG_FAIL(BRG_ERR_FORMAT,
                          "brg_profile_read: %s has %ld bytes, that is no "
                          "profile",
                          path, size);
    else if (!(text = brg__mem_alloc((size_t)size + 1, "a profile")))
        status = BRG_ERR_NOMEM;
    else if (fread(text, 1, (size_t)size, file) != (size_t)size)
        status = fail_io("brg_profile_read", path);
    fclose(file);
    if (status == BRG_OK)
        *out = text;
    else
        brg__mem_free(text);
    return status;
}

static bool find_dtype(const char *name, brg_dtype *dtype)
{
    for (int d = 0; d < BRG_N_DTYPES; d++)
        if (strcmp(brg_dtype_name((brg_dtype)d), name) == 0) {
            *dtype = (brg_dtype)d;
            return true;
        }
    return false;
}

/* One line; its name goes to *names. */
static bool parse_grad(const char *line, brg_profile_grad *g, char **names)
{
    char dtype[16];
    int at = 0;
    if (sscanf(line, "grad\t%15s\t%" SCNu64 "\t%" SCNu64 "\t%n", dtype,
               &g->nbytes, &g->ready_ns, &at) != 3 ||
        at == 0 || line[at - 1] != '\t' || !find_dtype(dtype, &g->dtype) ||
        g->nbytes >= BRG__SCHEDULE_MOST)
        return false;
    g->name = strcpy(*names, line + at);
    *names += strlen(g->name) + 1;
    return true;
}

/* Of the gradient before. */
static bool parse_group(const char *line, brg_profile_grad *g)
{
    static const char key[] = "group\t";
    const char *digits = line + strlen(key);
    char end;
    return g->group == 0 && strncmp(line, key, strlen(key)) == 0 &&
           *digits >= '1' && *digits <= '9' &&
           sscanf(digits, "%" SCNu32 "%c", &g->group, &end) == 1;
}

static bool parse(brg__profile *p, char *text)
{
    char *rest, *names = p->names;
    const char *line = strtok_r(text, "\n", &rest);
    size_t n = 0;
    uint64_t last = 0;
    brg_profile *filled = &p->public;
    if (!line || strcmp(line, FIRST_LINE) != 0)
        return false;
    line = strtok_r(NULL, "\n", &rest);
    if (!line ||
        sscanf(line, "step\t%" SCNu64 "\t%" SCNu64 "\t%" SCNu64,
               &filled->step_ns, &filled->backward_ns,
               &filled->tail_nbytes) != 3 ||
        filled->step_ns >= BRG__SCHEDULE_MOST ||
        filled->backward_ns >= BRG__SCHEDULE_MOST ||
        filled->tail_nbytes >= BRG__SCHEDULE_MOST)
        return false;
    while ((line = strtok_r(NULL, "\n", &rest)) != NULL) {
        if (n > 0 && parse_group(line, &p->grads[n - 1]))
            continue;
        if (n == filled->n || !parse_grad(line, &p->grads[n], &names) ||
            p->grads[n].ready_ns < last)
            return false;
        last = p->grads[n++].ready_ns;
    }
    return n > 0 && n == filled->n && last <= filled->backward_ns;
}

brg_status brg_profile_read(brg_profile **out, const char *path)
{
    BRG_CHECK_ARG(out && path, "brg_profile_read: argument is NULL");
    *out = NULL;
    char *text = NULL;
    size_t n = 0;
    BRG_TRY(load(&text, path));
    for (const char *c = text; (c = strstr(c, "\ngrad\t")) != NULL; c++)
        n++;
    brg__profile *p;
    size_t size = strlen(text) + 1;
    brg_status status = brg__profile_new(&p, n, size);
    if (status == BRG_OK && parse(p, text))
        *out = &p->public;
    else if (status == BRG_OK)
        status = BRG_FAIL(BRG_ERR_FORMAT,
                          "brg_profile_read: %s is no profile: expected '%s', "
                          "a line 'step', and lines 'grad' in order of time",
                          path, FIRST_LINE);
    if (status != BRG_OK)
        brg_profile_destroy(p ? &p->public : NULL);
    brg__mem_free(text);
    return status;
}
