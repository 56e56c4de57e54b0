/* SPDX-License-Identifier: Apache-2.0
 * A program outside the project, linked to the installed nccl component. A
 * machine without a GPU is told so. */
#include <stdio.h>

#include <brigade/ext/backend.h>
#include <brigade/nccl.h>

int main(void)
{
    brg_pg *self = NULL, *pg = NULL;
    const brg_device device = {BRG_DEVICE_CUDA, 0};
    if (brg_backend_register(brg_comm_nccl()) != BRG_OK ||
        brg_pg_create(&self, "self", NULL) != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return 1;
    }
    brg_status status = brg_device_load("cuda");
    if (status == BRG_OK)
        status = brg_nccl_create(&pg, self, device);
    brg_pg_destroy(pg);
    brg_pg_destroy(self);
    if (status == BRG_ERR_DEVICE || status == BRG_ERR_NOT_FOUND) {
        printf("no GPU was used: %s\n", brg_error_message());
        return 0;
    }
    if (status != BRG_OK)
        fprintf(stderr, "%s\n", brg_error_message());
    return status == BRG_OK ? 0 : 1;
}
