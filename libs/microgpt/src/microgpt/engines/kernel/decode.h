// One token at a time: logits from a cache, the choice of the next token, and whole samples.
//
// Weights are used as they lie, so nothing has to be prepared and any number of threads may decode
// from one model, each with a cache of its own. Keys and values are kept feature by feature, so
// that attention looks at LANES positions at once.

#ifndef MICROGPT_DECODE_H
#define MICROGPT_DECODE_H

#include <stdlib.h>

#include "layout.h"
#include "network.h"

double exp(double);
double nextafter(double, double);

// Space that decoding one token needs: zeros at first, each padded to whole cache lines.
typedef struct {
    real *x, *normed, *mixed;  // (C)
    real *qkv, *hidden;        // (3C), (4C)
    real *scores;              // (cache_stride)
} Row;

INLINE long padded(long n) { return round_up(n, 64 / (long)sizeof(real)); }

// Lays a row out at `memory` and returns its size in bytes; only counts if `memory` is NULL.
static long lay_out_row(Row *row, void *memory, const Model *m, long cache_stride) {
    Arena arena = {memory, 0};
    row->x = take_reals(&arena, padded(m->n_embd));
    row->normed = take_reals(&arena, padded(m->n_embd));
    row->mixed = take_reals(&arena, padded(m->n_embd));
    row->qkv = take_reals(&arena, padded(3 * m->n_embd));
    row->hidden = take_reals(&arena, padded(4 * m->n_embd));
    row->scores = take_reals(&arena, cache_stride);
    return arena.n_bytes;
}

// y (LANES) = or += the next LANES rows of w (.., K) @ x (K)
INLINE void dots(const real *w, long K, const real *x, real *y, int accumulate) {
    vector sums[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) sums[i] = splat(0);
    long k = 0;
    for (; k + LANES <= K; k += LANES) {
        const vector x_k = load(x + k);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) sums[i] += load(w + i * K + k) * x_k;
    }
    vector sum = sums_of(sums);
    for (; k < K; k++)
        for (int i = 0; i < LANES; i++) sum[i] += w[i * K + k] * x[k];
    store(y, accumulate ? load(y) + sum : sum);
}

// y (n) = or += w (n, K) @ x (K)
static void matvec(const real *w, long n, long K, const real *x, real *y, int accumulate) {
    long row = 0;
    for (; row + LANES <= n; row += LANES) dots(w + row * K, K, x, y + row, accumulate);
    for (; row < n; row++) {
        vector sums = splat(0);
        long k = 0;
        for (; k + LANES <= K; k += LANES) sums += load(w + row * K + k) * load(x + k);
        real sum = sum_of(sums);
        for (; k < K; k++) sum += w[row * K + k] * x[k];
        y[row] = accumulate ? y[row] + sum : sum;
    }
}

// scores of n_vectors * LANES positions: q (D) with as many columns of keys (D, cache_stride)
INLINE void score(int n_vectors, const real *q, const real *keys, long D, long cache_stride,
                  real *scores) {
    const real scale = 1 / sqrt_of_real((real)D);
    vector sums[8];
#pragma GCC unroll 8
    for (int v = 0; v < n_vectors; v++) sums[v] = splat(0);
    for (long d = 0; d < D; d++)
#pragma GCC unroll 8
        for (int v = 0; v < n_vectors; v++)
            sums[v] += load(keys + d * cache_stride + v * LANES) * (q[d] * scale);
#pragma GCC unroll 8
    for (int v = 0; v < n_vectors; v++) store(scores + v * LANES, sums[v]);
}

// mixed (D) of one head from q (D) and caches of D rows, positions 0..n-1
static void attend(const real *q, const real *keys, const real *values, long D, long cache_stride,
                   long n, real *scores, real *mixed) {
    long j = 0;
    for (; j + 8 * LANES <= n; j += 8 * LANES)  // wide, since rows of a cache lie far apart
        score(8, q, keys + j, D, cache_stride, scores + j);
    for (; j < n; j += LANES) score(1, q, keys + j, D, cache_stride, scores + j);
    for (j = n; j < round_up(n, LANES); j++) scores[j] = minus_infinity;
    vector tops = splat(minus_infinity);
    for (j = 0; j < n; j += LANES) tops = larger(load(scores + j), tops);
    const real top = max_of(tops);
    vector sums = splat(0);
    for (j = 0; j < n; j += LANES) {
        const vector e = exp_of(load(scores + j) - top);
        store(scores + j, e);
        sums += e;
    }
    const real inverse = 1 / sum_of(sums);
    for (long d = 0; d < D; d++) {
        vector sum = splat(0);
        for (j = 0; j < n; j += LANES)
            sum += load(scores + j) * load(values + d * cache_stride + j);
        mixed[d] = sum_of(sum) * inverse;
    }
}

// logits (V) after `token` at `position`; keys, values (n_layer, C, cache_stride) are extended
static void decode_token(const Model *m, const Row *row, long token, long position, real *keys,
                         real *values, long cache_stride, real *logits) {
    const long C = m->n_embd, D = head_dim(m), ld = padded(C);
    const real *wte = m->weights + wte_at(m) + token * C, *wpe = m->weights + wpe_at(m) + position * C;
    real scale;
    for (long c = 0; c < C; c++) row->normed[c] = wte[c] + wpe[c];
    rmsnorm(row->normed, 1, C, ld, row->x, &scale);
    for (long layer = 0; layer < m->n_layer; layer++) {
        real *k = keys + layer * C * cache_stride, *v = values + layer * C * cache_stride;
        rmsnorm(row->x, 1, C, ld, row->normed, &scale);
        matvec(m->weights + qkv_at(m, layer), 3 * C, C, row->normed, row->qkv, 0);
        for (long c = 0; c < C; c++) {
            k[c * cache_stride + position] = row->qkv[C + c];
            v[c * cache_stride + position] = row->qkv[2 * C + c];
        }
        for (long c = 0; c < C; c += D)
            attend(row->qkv + c, k + c * cache_stride, v + c * cache_stride, D, cache_stride,
                   position + 1, row->scores, row->mixed + c);
        matvec(m->weights + wo_at(m, layer), C, C, row->mixed, row->x, 1);
        rmsnorm(row->x, 1, C, ld, row->normed, &scale);
        matvec(m->weights + fc1_at(m, layer), 4 * C, C, row->normed, row->hidden, 0);
        for (long i = 0; i < 4 * C; i++) row->hidden[i] = row->hidden[i] < 0 ? 0 : row->hidden[i];
        matvec(m->weights + fc2_at(m, layer), C, 4 * C, row->hidden, row->x, 1);
    }
    matvec(m->weights + head_at(m), m->vocab_size, C, row->x, logits, 0);
}

// ---------------------------------------------------------------- sampling, as in sampling.py

typedef struct {
    double temperature, top_p;
    int64_t top_k;           // 0 for all
    const uint8_t *forbidden;  // (V)
} Sampling;

typedef struct {
    double weight;
    long token;
} Candidate;

static int by_falling_weight(const void *a, const void *b) {
    const Candidate *left = a, *right = b;
    if (left->weight != right->weight) return left->weight < right->weight ? 1 : -1;
    return left->token < right->token ? -1 : 1;
}

// The candidates whose weight remains are the first ones of a falling order.
static void filter(const Sampling *sampling, Candidate *candidates, long V, double *weights) {
    for (long i = 0; i < V; i++) candidates[i] = (Candidate){weights[i], i};
    qsort(candidates, (size_t)V, sizeof(Candidate), by_falling_weight);
    long n_kept = sampling->top_k > 0 && sampling->top_k < V ? sampling->top_k : V;
    if (sampling->top_p < 1) {
        double total = 0, reached = 0;
        for (long i = 0; i < n_kept; i++) total += candidates[i].weight;
        const double threshold = sampling->top_p * total;
        for (long i = 0; i < n_kept; i++)
            if ((reached += candidates[i].weight) >= threshold) n_kept = i + 1;
    }
    for (long i = n_kept; i < V; i++) weights[candidates[i].token] = 0;
}

// The next token, or -1 if a logit is not finite; weights, candidates (V) are space to work in.
static long choose_token(const Sampling *sampling, const real *logits, long V, double uniform,
                         double *weights, Candidate *candidates) {
    double sum = 0;
    for (long i = 0; i < V; i++) sum += (double)logits[i];
    if (!(sum - sum == 0)) return -1;
    long best = -1;
    for (long i = 0; i < V; i++)
        if (!sampling->forbidden[i] && (best < 0 || logits[i] > logits[best])) best = i;
    if (best < 0) best = 0;
    if (sampling->temperature == 0) return best;
    const double top = (double)logits[best];
    for (long i = 0; i < V; i++)
        weights[i] = sampling->forbidden[i]
                         ? 0
                         : exp(((double)logits[i] - top) / sampling->temperature);
    if ((sampling->top_k > 0 && sampling->top_k < V) || sampling->top_p < 1)
        filter(sampling, candidates, V, weights);
    double total = 0, reached = 0;
    for (long i = 0; i < V; i++) total += weights[i];
    // Rounding can put the product at the total itself: then the last token that has weight.
    const double threshold = uniform * total, below_total = nextafter(total, 0);
    for (long i = 0; i < V; i++) {
        reached += weights[i];
        if (reached > threshold || reached > below_total) return i;
    }
    return V - 1;
}

#endif
