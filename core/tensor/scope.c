/* SPDX-License-Identifier: Apache-2.0
 * Scopes: who owns the result of an expression.
 *
 * A thread has one stack of references and a stack of scopes; a scope is the
 * index where its references start. Both keep their memory, so a steady step
 * does not allocate. */
#include <pthread.h>

#include "core/base/array.h"
#include "core/tensor/tensor.h"

struct brg_scope {
    brg_scope *outer;
    size_t first; /* index of its first reference */
};

typedef struct scope_stack {
    BRG__ARRAY(brg_tensor *) refs;
    brg_scope *innermost;
    bool is_registered;
} scope_stack;

static _Thread_local scope_stack mine;
static pthread_key_t exit_key;
static pthread_once_t exit_once = PTHREAD_ONCE_INIT;

static void end_innermost(scope_stack *stack)
{
    brg_scope *scope = stack->innermost;
    while (stack->refs.n > scope->first)
        brg_release(stack->refs.at[--stack->refs.n]);
    stack->innermost = scope->outer;
    brg__obj_free(scope, sizeof *scope);
}

static void on_thread_exit(void *ptr)
{
    scope_stack *stack = ptr;
    while (stack->innermost)
        end_innermost(stack);
    brg__array_deinit(&stack->refs);
    stack->is_registered = false;
    brg__obj_trim();
}

static void make_exit_key(void)
{
    (void)pthread_key_create(&exit_key, on_thread_exit);
}

static void register_thread(void)
{
    pthread_once(&exit_once, make_exit_key);
    (void)pthread_setspecific(exit_key, &mine);
    mine.is_registered = true;
}

brg_scope *brg_scope_begin(void)
{
    if (!mine.is_registered)
        register_thread();
    brg_scope *scope = brg__obj_alloc(sizeof *scope, "a scope");
    if (!scope)
        return NULL;
    scope->outer = mine.innermost;
    scope->first = mine.refs.n;
    mine.innermost = scope;
    return scope;
}

void brg_scope_end(brg_scope *scope)
{
    if (!scope)
        return;
    while (mine.innermost && mine.innermost != scope)
        end_innermost(&mine);
    if (mine.innermost == scope)
        end_innermost(&mine);
}

brg_tensor *brg_scope_return(brg_scope *scope, brg_tensor *t)
{
    brg_retain(t);
    brg_scope_end(scope);
    return t ? brg__scope_adopt(t) : NULL;
}

brg_tensor *brg__scope_adopt(brg_tensor *t)
{
    if (!mine.innermost) {
        (void)BRG_FAIL(BRG_ERR_STATE,
                       "no scope is open on this thread to own the result: "
                       "call brg_scope_begin first");
        brg_release(t);
        return NULL;
    }
    if (brg__array_push(&mine.refs, t) != BRG_OK) {
        brg_release(t);
        return NULL;
    }
    return t;
}
