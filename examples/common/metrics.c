/* SPDX-License-Identifier: Apache-2.0
 * Comma-separated values of a run. */
#include "common/metrics.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct metrics {
    FILE *file;
    char path[]; /* for messages */
};

static brg_status fail(const char *path)
{
    return brg_error_set(BRG_ERR_IO, __FILE__, __LINE__, "cannot write %s: %s",
                         path, strerror(errno));
}

brg_status metrics_open(metrics **out, const char *path)
{
    *out = NULL;
    if (path == NULL)
        return BRG_OK;
    metrics *m = malloc(sizeof *m + strlen(path) + 1);
    if (m == NULL)
        return brg_error_set(BRG_ERR_NOMEM, __FILE__, __LINE__,
                             "out of memory for metrics");
    strcpy(m->path, path);
    m->file = fopen(path, "w");
    if (m->file == NULL ||
        fprintf(m->file, "step,epoch,loss,lr,step_ms,wait_ms\n") < 0) {
        brg_status status = fail(path);
        metrics_close(m);
        return status;
    }
    *out = m;
    return BRG_OK;
}

brg_status metrics_write(metrics *m, const metrics_row *row)
{
    if (m == NULL)
        return BRG_OK;
    int n = fprintf(m->file, "%" PRId64 ",%" PRId64 ",%.9g,%.9g,%.4f,%.4f\n",
                    row->step, row->epoch, row->loss, row->lr, row->step_ms,
                    row->wait_ms);
    return n < 0 || fflush(m->file) != 0 ? fail(m->path) : BRG_OK;
}

void metrics_close(metrics *m)
{
    if (m == NULL)
        return;
    if (m->file != NULL)
        fclose(m->file);
    free(m);
}
