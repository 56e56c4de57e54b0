/* SPDX-License-Identifier: Apache-2.0
 * Rows, signatures and descriptions of collectives. */
#include "comm/call.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"

const brg__coll_row brg__coll_rows[BRG_N_COLLS] = {
#define COLL_ROW(id, value, text, send, recv, reduces, peer)                   \
    [BRG_COLL_##id] = {text, send, recv, reduces, peer},
    BRG_COLL_MAP(COLL_ROW)
#undef COLL_ROW
};

void brg__call_sign(const brg_call *call, int rank, brg_signature *filled)
{
    bool reduces = brg__coll_rows[call->coll].reduces;
    *filled = (brg_signature){
        .seq = call->seq,
        .count = call->count,
        .coll = (int8_t)call->coll,
        .dtype = (int8_t)call->dtype,
        .op = reduces ? (int8_t)call->op : -1,
        .reducer = call->reducer,
        .plan = call->plan,
        .n_leaves = (uint16_t)call->n_leaves,
        .peer = call->peer,
        .rank = rank,
        .bucket = call->bucket,
        .pace = call->pace,
    };
}

bool brg__signatures_match(const brg_signature *a, const brg_signature *b)
{
    if (a->count != b->count || a->dtype != b->dtype)
        return false;
    /* A send meets a recv, in order between the two: each has a number of its
     * own rank's. Every other call meets its like. */
    if (brg__coll_is_p2p((brg_coll)a->coll))
        return brg__coll_is_p2p((brg_coll)b->coll) && a->coll != b->coll;
    const uint32_t pace = a->pace & ~BRG_PACE_FAILED;
    const uint32_t other = b->pace & ~BRG_PACE_FAILED;
    bool are_at_pace = pace == other || pace == 0 || other == 0;
    return a->seq == b->seq && a->coll == b->coll && a->peer == b->peer &&
           a->op == b->op && a->n_leaves == b->n_leaves &&
           a->reducer == b->reducer && a->plan == b->plan &&
           a->bucket == b->bucket && are_at_pace;
}

static void describe_detail(const brg_signature *s, char *text, size_t size)
{
    text[0] = '\0';
    switch (s->coll) {
    case BRG_COLL_BROADCAST:
        snprintf(text, size, ", root %d", (int)s->peer);
        break;
    case BRG_COLL_SEND:
        snprintf(text, size, ", to rank %d", (int)s->peer);
        break;
    case BRG_COLL_RECV:
        snprintf(text, size, ", from rank %d", (int)s->peer);
        break;
    case BRG_COLL_SUM_LEAVES:
        snprintf(text, size, ", %d leaves", (int)s->n_leaves);
        break;
    default:
        break;
    }
}

void brg__signature_describe(const brg_signature *s, char *text, size_t size)
{
    if (s->coll < 0 || s->coll >= BRG_N_COLLS) {
        snprintf(text, size, "an unknown collective (%d)", s->coll);
        return;
    }
    const brg__coll_row *row = &brg__coll_rows[s->coll];
    char peer[32], reducer[128] = "", bucket[24] = "", pace[32] = "";
    const uint32_t switched = s->pace & ~BRG_PACE_FAILED;
    describe_detail(s, peer, sizeof peer);
    if (s->reducer && s->bucket >= 0)
        snprintf(bucket, sizeof bucket, ", bucket %d", (int)s->bucket);
    if (switched > 1)
        snprintf(pace, sizeof pace, ", switched %u times",
                 (unsigned)switched - 1);
    if (s->reducer)
        snprintf(reducer, sizeof reducer, ", reducer %d, plan %04x%s%s%s",
                 (int)s->reducer, (unsigned)s->plan, bucket, pace,
                 s->pace & BRG_PACE_FAILED ? ", its backward has failed" : "");
    unsigned long long seq = (unsigned long long)s->seq;
    if (s->coll == BRG_COLL_BARRIER)
        snprintf(text, size, "%s #%llu", row->name, seq);
    else
        snprintf(text, size, "%s #%llu (%llu %s%s%s%s%s)", row->name, seq,
                 (unsigned long long)s->count,
                 brg_dtype_name((brg_dtype)s->dtype), s->op >= 0 ? ", " : "",
                 s->op >= 0 ? brg_reduce_op_name((brg_reduce_op)s->op) : "",
                 peer, reducer);
}

void brg__call_describe(const brg_call *call, char *text, size_t size)
{
    brg_signature signature;
    brg__call_sign(call, -1, &signature);
    brg__signature_describe(&signature, text, size);
}

bool brg__mismatch_read(const char *text, int side, uint8_t reducer,
                        brg__mismatch *filled)
{
    static const char begin[] = "ranks disagree: ", next[] = "), ";
    int number;
    unsigned label;
    const char *at = strstr(text, begin);
    at = at ? at + sizeof begin - 1 : NULL;
    if (at && side > 0 && (at = strstr(at, next)) != NULL)
        at += sizeof next - 1;
    const char *end = at ? strchr(at, ')') : NULL;
    const char *signer = at ? strstr(at, ", reducer ") : NULL;
    *filled = (brg__mismatch){0};
    if (!signer || !end || signer > end ||
        sscanf(at, "rank %d", &filled->rank) != 1 ||
        sscanf(signer, ", reducer %d, plan %4x", &number, &label) != 2)
        return false;
    const char *pace = strstr(signer, ", switched ");
    if (pace && pace < end)
        (void)sscanf(pace, ", switched %u", &filled->n_switches);
    filled->plan = (uint16_t)label;
    return number == reducer;
}

brg_status brg__fail_mismatch(const brg_signature *mine,
                              const brg_signature *theirs)
{
    char expected[160], found[160];
    brg__signature_describe(mine, expected, sizeof expected);
    brg__signature_describe(theirs, found, sizeof found);
    return BRG_FAIL(BRG_ERR_MISMATCH,
                    "ranks disagree: rank %d called %s, rank %d called %s",
                    (int)mine->rank, expected, (int)theirs->rank, found);
}
