/* SPDX-License-Identifier: Apache-2.0
 * The heap of ready nodes. */
#include "core/autograd/engine.h"

/* Later recorded first; accumulate nodes have the greatest number. */
static bool comes_before(const brg__ready *a, const brg__ready *b)
{
    if (a->sequence != b->sequence)
        return a->sequence > b->sequence;
    return a->arrival < b->arrival;
}

static void swap(brg__ready *a, brg__ready *b)
{
    brg__ready t = *a;
    *a = *b;
    *b = t;
}

brg_status brg__ready_push(brg__task *task, uint32_t visit)
{
    brg__ready item = {task->visits.at[visit].node->sequence,
                       task->n_arrivals++, visit};
    BRG_TRY(brg__array_push(&task->heap, item));
    brg__ready *heap = task->heap.at;
    size_t i = task->heap.n - 1;
    while (i > 0 && comes_before(&heap[i], &heap[(i - 1) / 2])) {
        swap(&heap[i], &heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    return BRG_OK;
}

bool brg__ready_pop(brg__task *task, uint32_t *visit)
{
    if (task->heap.n == 0)
        return false;
    brg__ready *heap = task->heap.at;
    *visit = heap[0].visit;
    heap[0] = heap[--task->heap.n];
    size_t i = 0, n = task->heap.n;
    for (;;) {
        size_t best = i;
        for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (comes_before(&heap[child], &heap[best]))
                best = child;
        if (best == i)
            return true;
        swap(&heap[i], &heap[best]);
        i = best;
    }
}
