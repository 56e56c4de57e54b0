/* SPDX-License-Identifier: Apache-2.0
 * What a collective is: the rows of BRG_COLL_MAP, signatures of calls, and
 * the words for them in messages. Pure. */
#ifndef BRG_COMM_CALL_H
#define BRG_COMM_CALL_H

#include <brigade/ext/backend.h>

typedef struct brg__coll_row {
    const char *name;
    int send; /* buffer sizes in counts; BRG_COLL_W: world size */
    int recv;
    bool reduces;
    const char *peer;
} brg__coll_row;

extern const brg__coll_row brg__coll_rows[BRG_N_COLLS];

static inline bool brg__coll_is_p2p(brg_coll coll)
{
    return coll == BRG_COLL_SEND || coll == BRG_COLL_RECV;
}

void brg__call_sign(const brg_call *call, int rank, brg_signature *filled);
bool brg__signatures_match(const brg_signature *a, const brg_signature *b);
void brg__signature_describe(const brg_signature *signature, char *text,
                             size_t size);

/* "all_reduce #3 (1024 f32, sum)" */
void brg__call_describe(const brg_call *call, char *text, size_t size);

brg_status brg__fail_mismatch(const brg_signature *mine,
                              const brg_signature *theirs);
/* What stands in its message on one side (0 or 1): the message is what reaches
 * every rank. False: no call of this reducer. */
typedef struct brg__mismatch {
    int rank;
    uint16_t plan;
    unsigned n_switches; /* of the reducer */
} brg__mismatch;
bool brg__mismatch_read(const char *text, int side, uint8_t reducer,
                        brg__mismatch *filled);

#endif
