/* SPDX-License-Identifier: Apache-2.0
 * A libcuda.so.1 that supports CUDA 11.4, as the CUDA runtime asks it. */
int cuDriverGetVersion(int *version);
int cuInit(unsigned flags);

int cuDriverGetVersion(int *version)
{
    *version = 11040;
    return 0;
}

int cuInit(unsigned flags)
{
    (void)flags;
    return 0;
}
