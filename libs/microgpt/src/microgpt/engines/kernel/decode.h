// One token at a time: logits of the next token from a cache.
//
// Weights are read where they are, so nothing has to be prepared, and any number of threads may
// decode from one model, each with a stream of its own.

#ifndef MICROGPT_DECODE_H
#define MICROGPT_DECODE_H

#include "rows.h"

// y (LANES) = or += the next LANES rows of w (.., K) @ x (K)
INLINE void dots(const real *w, isize K, const real *x, real *y, int accumulate) {
    vector sums[LANES];
    UNROLL for (int i = 0; i < LANES; i++) sums[i] = splat(0);
    isize k = 0;
    for (; k + LANES <= K; k += LANES) {
        const vector x_k = load(x + k);
        UNROLL for (int i = 0; i < LANES; i++) sums[i] += load(w + i * K + k) * x_k;
    }
    vector sum = sums_of(sums);
    for (; k < K; k++)
        for (int i = 0; i < LANES; i++) sum[i] += w[i * K + k] * x[k];
    store(y, accumulate ? load(y) + sum : sum);
}

// y (n) = or += w (n, K) @ x (K)
static void matvec(const real *w, isize n, isize K, const real *x, real *y, int accumulate) {
    isize row = 0;
    for (; row + LANES <= n; row += LANES) dots(w + row * K, K, x, y + row, accumulate);
    for (; row < n; row++) {
        vector sums = splat(0);
        isize k = 0;
        for (; k + LANES <= K; k += LANES) sums += load(w + row * K + k) * load(x + k);
        real sum = sum_of(sums);
        for (; k < K; k++) sum += w[row * K + k] * x[k];
        y[row] = accumulate ? y[row] + sum : sum;
    }
}

// scores of n_vectors * LANES positions: q (D) @ as many columns of keys (D, stride)
INLINE void score(int n_vectors, const real *q, const real *keys, isize D, isize stride,
                  real *scores) {
    const real scale = 1 / sqrt_of_real((real)D);
    vector sums[8];
    UNROLL for (int v = 0; v < n_vectors; v++) sums[v] = splat(0);
    for (isize d = 0; d < D; d++)
        UNROLL for (int v = 0; v < n_vectors; v++)
            sums[v] += load(keys + d * stride + v * LANES) * (q[d] * scale);
    UNROLL for (int v = 0; v < n_vectors; v++) store(scores + v * LANES, sums[v]);
}

// mixed (D) of one head from q (D) and positions 0..n-1 of keys, values (D, stride)
static void attend(const Cache *cache, const real *keys, const real *values, isize D, isize n,
                   const real *q, real *mixed) {
    const isize stride = cache->stride;
    real *scores = cache->scores;
    isize j = 0;
    for (; j + 8 * LANES <= n; j += 8 * LANES)  // wide, because rows of a cache are far apart
        score(8, q, keys + j, D, stride, scores + j);
    for (; j < n; j += LANES) score(1, q, keys + j, D, stride, scores + j);
    for (j = n; j < round_up(n, LANES); j++) scores[j] = MINUS_INFINITY;
    vector tops = splat(MINUS_INFINITY);
    for (j = 0; j < n; j += LANES) tops = larger(load(scores + j), tops);
    const real top = max_of(tops);
    vector sums = splat(0);
    for (j = 0; j < n; j += LANES) {
        const vector e = exp_of(load(scores + j) - top);
        store(scores + j, e);
        sums += e;
    }
    const real inverse = 1 / sum_of(sums);
    for (isize d = 0; d < D; d++) {
        vector sum = splat(0);
        for (j = 0; j < n; j += LANES) sum += load(scores + j) * load(values + d * stride + j);
        mixed[d] = sum_of(sum) * inverse;
    }
}

// logits (V) after `token` at `position`, whose keys and values are added to the cache
static void decode_token(const Model *m, const Cache *cache, isize token, isize position,
                         real *logits) {
    const isize C = m->n_embd, D = head_dim(m), stride = cache->stride;
    const real *wte = m->weights + token * C, *wpe = m->weights + wpe_at(m) + position * C;
    real *x = cache->x, *normed = cache->normed, *qkv = cache->qkv, *hidden = cache->hidden;
    real scale;
    for (isize c = 0; c < C; c++) normed[c] = wte[c] + wpe[c];
    rmsnorm(normed, 1, C, C, x, &scale);
    for (isize layer = 0; layer < m->n_layer; layer++) {
        real *keys = cache->keys + layer * C * stride, *values = cache->values + layer * C * stride;
        rmsnorm(x, 1, C, C, normed, &scale);
        matvec(m->weights + qkv_at(m, layer), 3 * C, C, normed, qkv, 0);
        for (isize c = 0; c < C; c++) {
            keys[c * stride + position] = qkv[C + c];
            values[c * stride + position] = qkv[2 * C + c];
        }
        for (isize c = 0; c < C; c += D)
            attend(cache, keys + c * stride, values + c * stride, D, position + 1, qkv + c,
                   cache->mixed + c);
        matvec(m->weights + wo_at(m, layer), C, C, cache->mixed, x, 1);
        rmsnorm(x, 1, C, C, normed, &scale);
        matvec(m->weights + fc1_at(m, layer), 4 * C, C, normed, hidden, 0);
        relu(hidden, 4 * C);
        matvec(m->weights + fc2_at(m, layer), C, 4 * C, hidden, x, 1);
    }
    matvec(m->weights + head_at(m), m->vocab_size, C, x, logits, 0);
}

#endif
