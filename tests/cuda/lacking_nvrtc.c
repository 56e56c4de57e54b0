/* SPDX-License-Identifier: Apache-2.0
 * A libnvrtc that has the functions which say what it is, and lacks the ones
 * that compile: what test_no_nvrtc.c finds in place of the real one. */
int nvrtcVersion(int *major, int *minor);

int nvrtcVersion(int *major, int *minor)
{
    *major = *minor = 0;
    return 0;
}
