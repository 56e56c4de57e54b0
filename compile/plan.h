/* SPDX-License-Identifier: Apache-2.0
 * An executable: a captured backward made concrete for certain sizes.
 *
 *   root    a piece of memory: an input, a constant, a stretch of the arena, a
 *           tensor of its own (heap), or a result of user code (given)
 *   value   a view of a root, with its sizes worked out
 *   step    one node of the IR with its operands in place
 *
 * A value that user code or a leaf may keep lies in a heap root: a fresh
 * tensor each run. So does a large one: its block comes from the cache of
 * blocks when it is made and goes back after its last use, when the activations
 * of an eager backward would. An arena would hold its memory beside activations
 * that are still there, and between runs. All others lie in one arena, where
 * roots that do not live at the same time share bytes. Each root is let go after
 * its last use, inputs too. */
#ifndef BRG_COMPILE_PLAN_H
#define BRG_COMPILE_PLAN_H

#include "compile/collect.h"
#include "compile/fuse/cuda_group.h"
#include "compile/ir.h"
#include "compile/products.h"

typedef enum brg__root_kind {
    BRG__ROOT_NONE, /* shape only */
    BRG__ROOT_INPUT,
    BRG__ROOT_CONST,
    BRG__ROOT_ARENA,
    BRG__ROOT_HEAP,
    BRG__ROOT_GIVEN
} brg__root_kind;

typedef struct brg__root {
    brg__root_kind kind;
    brg__storage storage; /* what values point to; its data set for each run */
    brg__layout layout;   /* of the whole */
    size_t nbytes;
    size_t offset;        /* in the arena */
    int first, last;      /* steps that make and last use it */
    int input;            /* INPUT */
    brg_tensor *constant; /* CONST; borrowed from the IR */
    brg_tensor *real;     /* this run's tensor; owned */
    bool is_undefined;    /* this run */
} brg__root;

typedef struct brg__value {
    brg_tensor t; /* what kernels see */
    int root;
} brg__value;

typedef struct brg__step {
    const brg__ir_node *node; /* of the plan's IR */
    brg_op_call call;         /* OP; in and out point into the arrays below */
    brg_tensor *in[BRG__GROUP_MAX_IN];
    brg_attrs attrs;
    brg_tensor *out[BRG__GROUP_MAX_OUT]; /* FUSED */
    brg__fused *fused;      /* FUSED; NULL: its ops run one by one */
    brg__cuda_group *there; /* the same on a device */
    bool is_view;           /* nothing to run */
    bool is_copy;           /* the strides of this run allow no view: copied */
    bool frees_saved;       /* UNPACK: the last of its node */
} brg__step;

/* What a run has besides a task and inputs. */
typedef struct brg__run_io {
    brg_tensor **outputs; /* filled; owned by the caller */
    brg_attrs *draws;     /* of random numbers: filled where they are drawn */
    bool is_drawn;        /* or filled by the caller */
} brg__run_io;

typedef struct brg__exec_again brg__exec_again;

typedef struct brg__exec {
    const brg__ir *ir;
    const brg__run_io *io; /* of the next run; NULL: it needs none */
    brg__value *values;    /* as many as the IR has */
    brg__root *roots;
    size_t n_roots;
    brg__step *steps;
    size_t n_steps;
    int *dying;       /* roots by last step: dying[first_dying[s]..] */
    int *first_dying; /* n_steps + 1 */
    void *arena;
    size_t arena_bytes;
    void *workspace; /* of the group that runs */
    size_t workspace_bytes;
    size_t bytes_moved; /* read and written by the ops of a run */
    size_t bytes_unfused;
    brg__kernels *kernels;           /* that groups run; NULL: interpreted */
    brg__cuda_kernels *there;        /* the same on a device; or NULL */
    brg_device device;               /* that one */
    const brg__gemm_maker *products; /* of its ops; NULL: the library's */
    bool is_judged;         /* whether it can be replayed has been counted */
    brg__exec_again *again; /* relaunch_exec.h; or NULL */
    bool is_launched;       /* the next run by it, if it serves */
} brg__exec;

/* For the sizes of what was collected. Owned. */
brg_status brg__exec_create(brg__exec **out, const brg__ir *ir,
                            const brg__task *task, const brg__collected *c);
void brg__exec_destroy(brg__exec *exec);

/* Kernels for the groups of a plan on a device (specialise_there.c). */
brg_status brg__exec_load_there(brg__exec *exec, const brg__collected *c);

/* Runs it. Takes over the collected inputs. */
brg_status brg__exec_run(brg__exec *exec, brg__task *task, brg__collected *c);

#endif
