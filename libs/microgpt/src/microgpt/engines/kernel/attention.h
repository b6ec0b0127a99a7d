// Causal attention of one head over one document, forward and backward; and of one query alone.
//
// Queries are processed PANEL at a time, one per lane. Scores are (key, query), so that softmax
// runs down the columns and every step is a vector operation. Keys after the last query of a panel
// are skipped. Probabilities are not stored: backward computes them again from the largest score
// and the sum of each query (Dao et al. 2022, arXiv:2205.14135).

#ifndef MICROGPT_ATTENTION_H
#define MICROGPT_ATTENTION_H

#include "layout.h"

// The activations of one head and one document of T positions. In inference, keys and values come
// from a cache, which holds `start` positions before the first query; backward has no cache.
typedef struct {
    isize T, D, start;
    const real *q, *k, *v;        // (T, D), rows `stride` apart, as are those of d_q, d_k, d_v
    isize kv_stride;              // between rows of k and v: of a cache, or `stride`
    real *d_q, *d_k, *d_v;        // (T, D)
    real *mixed;                  // (T, D), rows mixed_stride apart, as are those of d_mixed
    const real *d_mixed;          // (T, D)
    isize stride, mixed_stride;
    Left keys;                    // (start + T, D), unless the keys are panels: see `scores_of`
    Left values_t;                // (D, start + T)
    real *largest, *inverse;      // (T)
} Head;

// to (n, D) = x (D, PANEL)^T, row i times scale[i]
static void transpose_out(const real *x, isize n, isize D, const real *scale, real *to,
                          isize stride) {
    isize d = 0;
    for (; d + LANES <= D; d += LANES)
        for (isize first = 0; first < n; first += LANES) {
            vector rows[LANES];
            UNROLL for (int i = 0; i < LANES; i++) rows[i] = load(x + (d + i) * PANEL + first);
            transpose(rows);
            UNROLL for (int i = 0; i < LANES; i++)
                if (first + i < n) store(to + (first + i) * stride + d, rows[i] * scale[first + i]);
        }
    for (; d < D; d++)
        for (isize i = 0; i < n; i++) to[i * stride + d] = scale[i] * x[d * PANEL + i];
}

// Lanes whose query, number `first` + lane, sees key number `key`.
INLINE ivector may_see(isize key, isize first) { return lane_numbers() >= (integer)(key - first); }

// scores (n_keys, PANEL) become exp(score - largest); largest (n), inverse (n): 1 / sum of exp.
// The first query has number `first`.
static void softmax_columns(real *scores, isize n_keys, isize first, isize n, real *largest,
                            real *inverse) {
    real lanes[PANEL], inverse_lanes[PANEL];
    for (isize v = 0; v * LANES < n; v++) {
        real *column = scores + v * LANES;
        const isize first_query = first + v * LANES;
        const isize n_seen = min_of(first_query + 1, n_keys);  // keys that all lanes see
        vector top = load(column);
        for (isize j = 1; j < n_keys; j++) {
            const vector s = load(column + j * PANEL);
            const vector larger_one = larger(s, top);
            top = j < n_seen ? larger_one : choose(may_see(j, first_query), larger_one, top);
        }
        vector sum = splat(0);
        for (isize j = 0; j < n_keys; j++) {
            vector e = exp_of(load(column + j * PANEL) - top);
            if (j >= n_seen) e = choose(may_see(j, first_query), e, splat(0));
            store(column + j * PANEL, e);
            sum += e;
        }
        store(lanes + v * LANES, top);
        store(inverse_lanes + v * LANES, 1 / sum);
    }
    for (isize i = 0; i < n; i++) {
        largest[i] = lanes[i];
        inverse[i] = inverse_lanes[i];
    }
}

// scores (n_keys, PANEL) become probabilities, and d_probs the gradient of q @ k.
static void softmax_columns_backward(real *scores, real *d_probs, isize n_keys, isize first,
                                     isize n, const real *largest, const real *inverse,
                                     real scale) {
    real lanes[PANEL] = {0}, inverse_lanes[PANEL] = {0};
    for (isize i = 0; i < n; i++) {
        lanes[i] = largest[i];
        inverse_lanes[i] = inverse[i];
    }
    for (isize v = 0; v * LANES < n; v++) {
        real *s = scores + v * LANES, *d = d_probs + v * LANES;
        const isize first_query = first + v * LANES;
        const vector top = load(lanes + v * LANES), factor = load(inverse_lanes + v * LANES);
        vector projection = splat(0);
        for (isize j = 0; j < n_keys; j++) {
            vector p = exp_of(load(s + j * PANEL) - top) * factor;
            if (j > first_query) p = choose(may_see(j, first_query), p, splat(0));
            store(s + j * PANEL, p);
            projection += p * load(d + j * PANEL);
        }
        for (isize j = 0; j < n_keys; j++) {
            const vector p = load(s + j * PANEL) * scale;
            store(d + j * PANEL, p * (load(d + j * PANEL) - projection));
        }
    }
}

// scores (n_keys, PANEL) = keys @ q, q (D, PANEL) packed; without `keys`, k has panels of a cache
static void scores_of(const Head *h, isize n_keys, isize n_lanes, const real *q, real *scores) {
    const isize D = h->D, step = h->keys.data ? n_keys : PANEL;
    for (isize j = 0; j < n_keys; j += step)
        matmul(min_of(step, n_keys - j), n_lanes, D,
               h->keys.data ? h->keys : columns_of(h->k + j * D, PANEL), packed(q, D),
               into(scores + j * PANEL, PANEL));
}

// mixed = softmax(q @ keys^T / sqrt(D)) @ values
static void attention(const Head *h, const Scratch *scratch) {
    const isize D = h->D;
    const real scale = 1 / sqrt_of_real((real)D);
    for (isize i = 0; i < h->T; i += PANEL) {
        const isize n = min_of(PANEL, h->T - i), n_lanes = round_up(n, LANES);
        const isize first = h->start + i, n_keys = first + n;
        pack_transposed(h->q + i * h->stride, h->stride, D, n, scale, scratch->q);
        scores_of(h, n_keys, n_lanes, scratch->q, scratch->scores);
        softmax_columns(scratch->scores, n_keys, first, n, h->largest + i, h->inverse + i);
        matmul(D, n_lanes, n_keys, h->values_t, packed(scratch->scores, n_keys),
               into(scratch->product, PANEL));
        transpose_out(scratch->product, n, D, h->inverse + i, h->mixed + i * h->mixed_stride,
                      h->mixed_stride);
    }
}

// sums (n_vectors of columns) of all j < n: weights[v][j] times row j of values, in vector v
INLINE void mix(int n_vectors, isize n, const real *const *weights, const real *values, isize ld,
                real *to) {
    for (isize first = 0; first < n; first += K_BLOCK) {
        vector sums[ROW_VECTORS];
        UNROLL for (int v = 0; v < n_vectors; v++) sums[v] = splat(0);
        for (isize j = first; j < min_of(n, first + K_BLOCK); j++)
            UNROLL for (int v = 0; v < n_vectors; v++)
                sums[v] += weights[v][j] * load(values + j * ld + v * LANES);
        UNROLL for (int v = 0; v < n_vectors; v++)
            store(to + v * LANES, first > 0 ? load(to + v * LANES) + sums[v] : sums[v]);
    }
}

// to (C) = for each of H heads, exp (H, stride) of its n scores @ its columns of values (n, C)
static void mix_heads(isize H, isize D, isize n, const real *exp, isize stride,
                      const real *values, isize ld, real *to) {
    if (D % LANES) {  // a vector would end in another head
        for (isize h = 0; h < H; h++)
            matmul(1, D, n, rows_of(exp + h * stride, stride), unpacked(values + h * D, ld),
                   into(to + h * D, D));
        return;
    }
    for (isize c = 0, n_vectors; c < H * D; c += n_vectors * LANES) {
        const real *weights[ROW_VECTORS];
        n_vectors = (H * D - c) / LANES >= ROW_VECTORS ? ROW_VECTORS : 1;
        for (isize v = 0; v < n_vectors; v++) weights[v] = exp + (c + v * LANES) / D * stride;
        if (n_vectors > 1)
            mix(ROW_VECTORS, n, weights, values + c, ld, to + c);
        else
            mix(1, n, weights, values + c, ld, to + c);
    }
}

#define HEADS_TOGETHER 4  // sums that hide the time of one addition

// sums (n_heads) of as many rows of n numbers, each from its first number to its last
INLINE void add_up(int n_heads, const real *rows, isize stride, isize n, real *sums) {
    for (isize j = 0; j < n; j++)
        UNROLL for (int i = 0; i < n_heads; i++) sums[i] += rows[i * stride + j];
}

// All H heads of one query; `h` is the first of them. The sums are those of `attention`.
static void attend(const Head *h, isize H, const Cache *cache, const Scratch *scratch) {
    const isize D = h->D, n = h->start + 1, n_lanes = round_up(n, LANES);
    const isize stride = cache->head_keys / D;
    const real scale = 1 / sqrt_of_real((real)D);
    real *scores = scratch->scores, *q = scratch->q;
    for (isize c = 0; c < H * D; c++) q[c] = h->q[c] * scale;
    for (isize i = 0; i < H; i++) {
        real *row = scores + i * stride;
        matmul(1, n_lanes, D, rows_of(q + i * D, D), packed(h->k + i * cache->head_keys, D),
               into(row, stride));
        for (isize j = n; j < n_lanes; j++) row[j] = MINUS_INFINITY;
        vector tops = load(row);
        for (isize j = LANES; j < n; j += LANES) tops = larger(load(row + j), tops);
        const real top = max_of(tops);
        for (isize j = 0; j < n; j += LANES) store(row + j, exp_of(load(row + j) - top));
    }
    mix_heads(H, D, n, scores, stride, h->values_t.data, cache->ld, scratch->product);
    for (isize i = 0; i < H; i += HEADS_TOGETHER) {
        real sums[HEADS_TOGETHER] = {0};
        const isize n_heads = min_of(HEADS_TOGETHER, H - i);
        if (n_heads == HEADS_TOGETHER)
            add_up(HEADS_TOGETHER, scores + i * stride, stride, n, sums);
        else
            for (isize k = 0; k < n_heads; k++)
                add_up(1, scores + (i + k) * stride, stride, n, sums + k);
        for (isize k = 0; k < n_heads; k++)
            for (isize at = (i + k) * D; at < (i + k + 1) * D; at++)
                h->mixed[at] = scratch->product[at] * (1 / sums[k]);
    }
}

// d_q, d_k, d_v from d_mixed
static void attention_backward(const Head *h, const Scratch *scratch) {
    const isize T = h->T, D = h->D, stride = h->stride;
    const real scale = 1 / sqrt_of_real((real)D);
    real ones[PANEL];
    for (int i = 0; i < PANEL; i++) ones[i] = 1;
    // The last panel of queries sees all keys: it comes first and sets the sums of d_k and d_v.
    for (isize i = (T - 1) / PANEL * PANEL; i >= 0; i -= PANEL) {
        const isize n = min_of(PANEL, T - i), n_lanes = round_up(n, LANES), n_keys = i + n;
        const real *q = h->q + i * stride, *d_mixed = h->d_mixed + i * h->mixed_stride;
        real *probs = scratch->scores, *d_scores = scratch->d_scores;  // (n_keys, PANEL)
        pack_transposed(q, stride, D, n, scale, scratch->q);
        pack_transposed(d_mixed, h->mixed_stride, D, n, 1, scratch->d_mixed);
        matmul(n_keys, n_lanes, D, h->keys, packed(scratch->q, D), into(probs, PANEL));
        matmul(n_keys, n_lanes, D, rows_of(h->v, stride), packed(scratch->d_mixed, D),
               into(d_scores, PANEL));
        softmax_columns_backward(probs, d_scores, n_keys, i, n, h->largest + i, h->inverse + i,
                                 scale);
        matmul(D, n_lanes, n_keys, columns_of(h->k, stride), packed(d_scores, n_keys),
               into(scratch->product, PANEL));
        transpose_out(scratch->product, n, D, ones, h->d_q + i * stride, stride);
        const int accumulate = n_keys < T;
        matmul(n_keys, D, n, rows_of(d_scores, PANEL), unpacked(q, stride),
               (Output){h->d_k, stride, accumulate});
        matmul(n_keys, D, n, rows_of(probs, PANEL), unpacked(d_mixed, h->mixed_stride),
               (Output){h->d_v, stride, accumulate});
    }
}

#endif
