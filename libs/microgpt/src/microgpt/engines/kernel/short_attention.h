// Causal attention over short documents, forward and backward, for all heads at once.
//
// A vector holds LANES / D whole heads side by side, as they lie in a row: nothing is transposed,
// and no lane idles as it would if a document's few queries were the lanes (see attention.h).
// Scores are sums over a head's lanes, which leave the same number in each of them; so everything
// after them is computed D times over, which costs less than bringing it into another order.

#ifndef MICROGPT_SHORT_ATTENTION_H
#define MICROGPT_SHORT_ATTENTION_H

#include "layout.h"

#define MAX_SHORT 16  // positions; longer documents are left to attention.h

// All heads of one document. Rows are `stride` apart, those of `mixed` and `d_mixed` mixed_stride.
typedef struct {
    long T, C, D, stride, mixed_stride;
    const real *q, *k, *v;    // (T, C)
    real *mixed;              // (T, C)
    const real *d_mixed;      // (T, C)
    real *d_q, *d_k, *d_v;    // (T, C)
} Heads;

// Whether vectors hold whole heads, and rows whole vectors.
INLINE int heads_fill_vectors(const Model *m) {
    return LANES % head_dim(m) == 0 && m->n_embd % LANES == 0;
}

// In every lane the sum over the D lanes of its head.
INLINE vector sum_by_head(vector v, int D) {
#pragma GCC unroll 4
    for (int half = 1; half < D; half *= 2) v += shuffle(v, v, lane_numbers() ^ half);
    return v;
}

// probs (t + 1) of the query at t, for the heads from column c on
INLINE void short_probs(const Heads *h, int D, long c, long t, vector *probs) {
    const vector q = load(h->q + t * h->stride + c) * (1 / sqrt_of_real((real)D));
    vector top = splat(minus_infinity), sum = splat(0);
    for (long j = 0; j <= t; j++) {
        probs[j] = sum_by_head(q * load(h->k + j * h->stride + c), D);
        top = larger(probs[j], top);
    }
    for (long j = 0; j <= t; j++) sum += probs[j] = exp_of(probs[j] - top);
    const vector inverse = 1 / sum;
    for (long j = 0; j <= t; j++) probs[j] *= inverse;
}

INLINE void short_forward(const Heads *h, int D) {
    for (long c = 0; c < h->C; c += LANES)
        for (long t = 0; t < h->T; t++) {
            vector probs[MAX_SHORT], mixed = splat(0);
            short_probs(h, D, c, t, probs);
            for (long j = 0; j <= t; j++) mixed += probs[j] * load(h->v + j * h->stride + c);
            store(h->mixed + t * h->mixed_stride + c, mixed);
        }
}

INLINE void short_backward(const Heads *h, int D) {
    const real scale = 1 / sqrt_of_real((real)D);
    for (long c = 0; c < h->C; c += LANES)
        for (long t = h->T - 1; t >= 0; t--) {  // the last sees all keys, and sets what others add to
            vector probs[MAX_SHORT], d_probs[MAX_SHORT], projection = splat(0), d_q = splat(0);
            short_probs(h, D, c, t, probs);
            const vector d_mixed = load(h->d_mixed + t * h->mixed_stride + c);
            const vector q = load(h->q + t * h->stride + c);
            for (long j = 0; j <= t; j++) {
                d_probs[j] = sum_by_head(d_mixed * load(h->v + j * h->stride + c), D);
                projection += probs[j] * d_probs[j];
            }
            for (long j = 0; j <= t; j++) {
                const long at = j * h->stride + c;
                const vector d_score = probs[j] * (d_probs[j] - projection) * scale;
                const vector d_k = d_score * q, d_v = probs[j] * d_mixed;
                d_q += d_score * load(h->k + at);
                store(h->d_k + at, t + 1 < h->T ? load(h->d_k + at) + d_k : d_k);
                store(h->d_v + at, t + 1 < h->T ? load(h->d_v + at) + d_v : d_v);
            }
            store(h->d_q + t * h->stride + c, d_q);
        }
}

// Picks the code compiled for the width of a head.
#define FOR_WIDTH(function)             \
    switch (h->D) {                     \
        case 1: function(h, 1); break;  \
        case 2: function(h, 2); break;  \
        case 4: function(h, 4); break;  \
        case 8: function(h, 8); break;  \
        case 16: function(h, 16); break;\
    }
static void short_attention(const Heads *h) { FOR_WIDTH(short_forward) }
static void short_attention_backward(const Heads *h) { FOR_WIDTH(short_backward) }
#undef FOR_WIDTH

#endif
