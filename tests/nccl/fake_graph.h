/* SPDX-License-Identifier: Apache-2.0
 * Stream capture on made-up GPUs. What is pushed to a captured stream is
 * written down, with all that comes before it; events carry the capture to other
 * streams. As with CUDA, it ends well only if all of it comes before what the
 * first stream would do next, and events of it can be neither asked for nor
 * waited for outside. One thread captures. */
#ifndef BRG_TESTS_NCCL_FAKE_GRAPH_H
#define BRG_TESTS_NCCL_FAKE_GRAPH_H

#include <cuda_runtime_api.h>

#include "tests/nccl/fake_stream.h"

/* True: the stream is captured, and this is written down. */
bool fake_graph_push(fake_stream *s, void (*run)(void *), const void *args,
                     size_t nbytes);
/* Where the stream is in its capture; NULL: it is in none. */
const fake_place *fake_graph_place(const fake_stream *s);
/* The stream waits for that place, which draws it into the capture. */
cudaError_t fake_graph_wait(fake_stream *s, const fake_place *p);
/* The host asks for something that is not allowed while `s` is captured. */
cudaError_t fake_graph_forbid(fake_stream *s);

#endif
