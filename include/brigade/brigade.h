/* SPDX-License-Identifier: Apache-2.0
 * Everything of libbrigade. Components (mpi.h) have headers of their own. */
#ifndef BRG_BRIGADE_H
#define BRG_BRIGADE_H

#include <brigade/autocast.h>
#include <brigade/autograd.h>
#include <brigade/average.h>
#include <brigade/comm.h>
#include <brigade/comm_hook.h>
#include <brigade/compile.h>
#include <brigade/composite.h>
#include <brigade/control.h>
#include <brigade/debug.h>
#include <brigade/device.h>
#include <brigade/export.h>
#include <brigade/file.h>
#include <brigade/function.h>
#include <brigade/io.h>
#include <brigade/nn.h>
#include <brigade/offload.h>
#include <brigade/ops.h>
#include <brigade/optim.h>
#include <brigade/params.h>
#include <brigade/places.h>
#include <brigade/random.h>
#include <brigade/recompute.h>
#include <brigade/recover.h>

#include <brigade/reducer.h>
#include <brigade/runtime.h>
#include <brigade/schedule.h>
#include <brigade/shard.h>
#include <brigade/sim.h>
#include <brigade/sparse.h>
#include <brigade/status.h>
#include <brigade/sync_norm.h>
#include <brigade/tensor.h>
#include <brigade/trace.h>
#include <brigade/types.h>
#include <brigade/version.h>

#endif
