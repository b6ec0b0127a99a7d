// Causal attention of one head over one document, forward and backward.
//
// Queries go PANEL at a time, one per lane: scores are (key, query), so that softmax runs down the
// columns and every step is a vector operation. Keys beyond the last query of a panel are skipped.
// Probabilities are not kept: backward computes them again from each query's largest score and
// sum (Dao et al. 2022, arXiv:2205.14135).

#ifndef MICROGPT_ATTENTION_H
#define MICROGPT_ATTENTION_H

#include "layout.h"

// A head's part of the activations. Keys and values may come from a cache, with `start` positions
// before the first query.
typedef struct {
    long n_queries, start;
    const real *q;  // (T, D)
    long q_stride;
    Left keys;       // (start + T, D)
    Left values_t;   // (D, start + T)
    real *mixed;     // (T, D)
    long mixed_stride;
    real *largest, *inverse;  // (T)
} Head;

// to (n, D) = x (D, PANEL)^T, row i times scale[i]
static void transpose_out(const real *x, long n, long D, const real *scale, real *to, long stride) {
    long d = 0;
    for (; d + LANES <= D; d += LANES)
        for (long first = 0; first < n; first += LANES) {
            vector rows[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) rows[i] = load(x + (d + i) * PANEL + first);
            transpose(rows);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                if (first + i < n) store(to + (first + i) * stride + d, rows[i] * scale[first + i]);
        }
    for (; d < D; d++)
        for (long i = 0; i < n; i++) to[i * stride + d] = scale[i] * x[d * PANEL + i];
}

// Lanes whose query, number `first` + lane, may look at key `key`.
INLINE ivector may_see(long key, long first) { return lane_numbers() >= (integer)(key - first); }

// largest (n), inverse (n): of scores (n_keys, PANEL), which become exp(score - largest)
static void softmax_columns(real *scores, long n_keys, long first, long n, real *largest,
                            real *inverse) {
    real lanes[PANEL], inverse_lanes[PANEL];
    for (long v = 0; v * LANES < n; v++) {
        real *column = scores + v * LANES;
        const long first_query = first + v * LANES;
        const long n_seen = min_of(first_query + 1, n_keys);  // keys that all lanes may see
        vector top = load(column);
        for (long j = 1; j < n_keys; j++) {
            const vector s = load(column + j * PANEL);
            const vector larger_one = larger(s, top);
            top = j < n_seen ? larger_one : choose(may_see(j, first_query), larger_one, top);
        }
        vector sum = splat(0);
        for (long j = 0; j < n_keys; j++) {
            vector e = exp_of(load(column + j * PANEL) - top);
            if (j >= n_seen) e = choose(may_see(j, first_query), e, splat(0));
            store(column + j * PANEL, e);
            sum += e;
        }
        store(lanes + v * LANES, top);
        store(inverse_lanes + v * LANES, 1 / sum);
    }
    for (long i = 0; i < n; i++) {
        largest[i] = lanes[i];
        inverse[i] = inverse_lanes[i];
    }
}

static void attention(const Head *head, long D, const Scratch *scratch) {
    const real scale = 1 / sqrt_of_real((real)D);
    for (long i = 0; i < head->n_queries; i += PANEL) {
        const long n = min_of(PANEL, head->n_queries - i), n_lanes = round_up(n, LANES);
        const long first = head->start + i, n_keys = first + n;
        pack_transposed(head->q + i * head->q_stride, head->q_stride, D, n, scale, scratch->q);
        matmul(n_keys, n_lanes, D, head->keys, packed(scratch->q, D), scratch->scores, PANEL, 0);
        softmax_columns(scratch->scores, n_keys, first, n, head->largest + i, head->inverse + i);
        matmul(D, n_lanes, n_keys, head->values_t, packed(scratch->scores, n_keys),
               scratch->product, PANEL, 0);
        transpose_out(scratch->product, n, D, head->inverse + i,
                      head->mixed + i * head->mixed_stride, head->mixed_stride);
    }
}

// scores (n_keys, PANEL) become probabilities; d_probs becomes the gradient of what q @ k is
static void softmax_columns_backward(real *scores, real *d_probs, long n_keys, long first, long n,
                                     const real *largest, const real *inverse, real scale) {
    real lanes[PANEL] = {0}, inverse_lanes[PANEL] = {0};
    for (long i = 0; i < n; i++) {
        lanes[i] = largest[i];
        inverse_lanes[i] = inverse[i];
    }
    for (long v = 0; v * LANES < n; v++) {
        real *s = scores + v * LANES, *d = d_probs + v * LANES;
        const long first_query = first + v * LANES;
        const vector top = load(lanes + v * LANES), factor = load(inverse_lanes + v * LANES);
        vector projection = splat(0);
        for (long j = 0; j < n_keys; j++) {
            vector p = exp_of(load(s + j * PANEL) - top) * factor;
            if (j > first_query) p = choose(may_see(j, first_query), p, splat(0));
            store(s + j * PANEL, p);
            projection += p * load(d + j * PANEL);
        }
        for (long j = 0; j < n_keys; j++) {
            const vector p = load(s + j * PANEL) * scale;
            store(d + j * PANEL, p * (load(d + j * PANEL) - projection));
        }
    }
}

// d_q, d_k, d_v (T, D) with stride d_stride, from d_mixed (T, D); k, v (T, D) with the stride of q
static void attention_backward(const Head *head, const real *k, const real *v, long D,
                               const real *d_mixed, real *d_q, real *d_k, real *d_v,
                               long d_stride, const Scratch *scratch) {
    const real scale = 1 / sqrt_of_real((real)D);
    const long T = head->n_queries, stride = head->q_stride, mixed_stride = head->mixed_stride;
    real ones[PANEL];
    for (int i = 0; i < PANEL; i++) ones[i] = 1;
    // The last panel of queries sees all keys, so it comes first, and sets what others add to.
    for (long i = (T - 1) / PANEL * PANEL; i >= 0; i -= PANEL) {
        const long n = min_of(PANEL, T - i), n_lanes = round_up(n, LANES), n_keys = i + n;
        const int accumulate = n_keys < T;
        real *probs = scratch->scores, *d_scores = scratch->d_scores;  // (n_keys, PANEL)
        pack_transposed(head->q + i * stride, stride, D, n, scale, scratch->q);
        pack_transposed(d_mixed + i * mixed_stride, mixed_stride, D, n, 1, scratch->d_mixed);
        matmul(n_keys, n_lanes, D, head->keys, packed(scratch->q, D), probs, PANEL, 0);
        matmul(n_keys, n_lanes, D, rows_of(v, stride), packed(scratch->d_mixed, D), d_scores,
               PANEL, 0);
        softmax_columns_backward(probs, d_scores, n_keys, i, n, head->largest + i,
                                 head->inverse + i, scale);
        matmul(D, n_lanes, n_keys, columns_of(k, stride), packed(d_scores, n_keys),
               scratch->product, PANEL, 0);
        transpose_out(scratch->product, n, D, ones, d_q + i * d_stride, d_stride);
        matmul(n_keys, D, n, rows_of(d_scores, PANEL), unpacked(head->q + i * stride, stride), d_k,
               d_stride, accumulate);
        matmul(n_keys, D, n, rows_of(probs, PANEL), unpacked(d_mixed + i * mixed_stride,
               mixed_stride), d_v, d_stride, accumulate);
    }
}

#endif
