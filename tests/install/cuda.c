/* SPDX-License-Identifier: Apache-2.0
 * A program outside the project, linked to the installed cuda component. A
 * machine without a GPU is told so. */
#include <stdio.h>

#include <brigade/cuda.h>
#include <brigade/device.h>

int main(void)
{
    brg_device_type type;
    const brg_device_vtable *vtable;
    brg_status status = brg_device_cuda(brg_device_host_get(), &type, &vtable);
    if (status == BRG_OK)
        status = brg_device_register(type, vtable);
    if (status == BRG_ERR_DEVICE) {
        printf("no GPU was used: %s\n", brg_error_message());
        return 0;
    }
    if (status != BRG_OK) {
        fprintf(stderr, "%s\n", brg_error_message());
        return 1;
    }
    printf("%d GPUs\n", brg_device_count(type));
    return brg_device_count(type) > 0 ? 0 : 1;
}
