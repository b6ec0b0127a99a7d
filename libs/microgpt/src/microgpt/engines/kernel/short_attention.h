// Causal attention over short documents, forward and backward, for all heads at once.
//
// A vector holds LANES / D whole heads side by side, as they are in a row of activations: nothing
// is transposed, and no lanes idle, as they would if the few queries of a short document were the
// lanes (attention.h). Scores are sums over the lanes of a head, which leave the same number in
// each of these lanes. All that follows is therefore computed D times over, at a lower cost than
// that of rearranging the scores.

#ifndef MICROGPT_SHORT_ATTENTION_H
#define MICROGPT_SHORT_ATTENTION_H

#include "attention.h"

// In every lane the sum over the D lanes of its head.
INLINE vector sum_by_head(vector v, int D) {
    UNROLL for (int half = 1; half < D; half *= 2) v += shuffle(v, v, lane_numbers() ^ half);
    return v;
}

// probs (start + t + 1) of query number t, for the heads from column c on; `h` is the first head.
INLINE void short_probs(const Head *h, int D, isize c, isize t, vector *probs) {
    const vector q = load(h->q + t * h->stride + c) * (1 / sqrt_of_real((real)D));
    vector top = splat(MINUS_INFINITY), sum = splat(0);
    for (isize j = 0; j <= h->start + t; j++) {
        probs[j] = sum_by_head(q * load(h->k + j * h->kv_stride + c), D);
        top = larger(probs[j], top);
    }
    for (isize j = 0; j <= h->start + t; j++) sum += probs[j] = exp_of(probs[j] - top);
    const vector inverse = 1 / sum;
    for (isize j = 0; j <= h->start + t; j++) probs[j] *= inverse;
}

INLINE void short_forward(const Head *h, int D, isize C) {
    for (isize c = 0; c < C; c += LANES)
        for (isize t = 0; t < h->T; t++) {
            vector probs[MAX_SHORT], mixed = splat(0);
            short_probs(h, D, c, t, probs);
            for (isize j = 0; j <= h->start + t; j++)
                mixed += probs[j] * load(h->v + j * h->kv_stride + c);
            store(h->mixed + t * h->mixed_stride + c, mixed);
        }
}

INLINE void short_backward(const Head *h, int D, isize C) {
    const real scale = 1 / sqrt_of_real((real)D);
    for (isize c = 0; c < C; c += LANES)
        for (isize t = h->T - 1; t >= 0; t--) {  // the last query sees all keys: it sets the sums
            vector probs[MAX_SHORT], d_probs[MAX_SHORT], projection = splat(0), d_q = splat(0);
            short_probs(h, D, c, t, probs);
            const vector d_mixed = load(h->d_mixed + t * h->mixed_stride + c);
            const vector q = load(h->q + t * h->stride + c);
            for (isize j = 0; j <= t; j++) {
                d_probs[j] = sum_by_head(d_mixed * load(h->v + j * h->stride + c), D);
                projection += probs[j] * d_probs[j];
            }
            for (isize j = 0; j <= t; j++) {
                const isize at = j * h->stride + c;
                const vector d_score = probs[j] * (d_probs[j] - projection) * scale;
                const vector d_k = d_score * q, d_v = probs[j] * d_mixed;
                d_q += d_score * load(h->k + at);
                store(h->d_k + at, t + 1 < h->T ? load(h->d_k + at) + d_k : d_k);
                store(h->d_v + at, t + 1 < h->T ? load(h->d_v + at) + d_v : d_v);
            }
            store(h->d_q + t * h->stride + c, d_q);
        }
}

// Calls the code compiled for the width of a head.
#define FOR_WIDTH(function)                 \
    switch (h->D) {                         \
        case 1: function(h, 1, C); break;   \
        case 2: function(h, 2, C); break;   \
        case 4: function(h, 4, C); break;   \
        case 8: function(h, 8, C); break;   \
        case 16: function(h, 16, C); break; \
    }
// All heads of one document of at most MAX_SHORT positions; `h` is the first of them.
static void short_attention(const Head *h, isize C) { FOR_WIDTH(short_forward) }
static void short_attention_backward(const Head *h, isize C) { FOR_WIDTH(short_backward) }
#undef FOR_WIDTH

#endif
