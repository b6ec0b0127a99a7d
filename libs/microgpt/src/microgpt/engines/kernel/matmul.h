// Matrix products: one register tile, and the loops around it.
//
// C (M, N) = A (M, K) @ B (K, N), where A may be stored either way round and B lies in panels of
// PANEL columns. Every element of C sums over k in order, in one accumulator, whatever the tile; so
// results do not depend on how rows are divided among threads.

#ifndef MICROGPT_MATMUL_H
#define MICROGPT_MATMUL_H

#include "vector.h"

// Rows of a register tile: as many as leave room for two vectors of B and one of A.
#if VECTOR_BYTES == 64
#define TILE_ROWS 8
#elif VECTOR_BYTES == 32
#define TILE_ROWS 6
#else
#define TILE_ROWS 4
#endif
#define PANEL (2 * LANES)

INLINE long min_of(long a, long b) { return a < b ? a : b; }
INLINE long round_up(long n, long step) { return (n + step - 1) / step * step; }

// A matrix whose element (row, k) is data[row * row_stride + k * k_stride].
typedef struct {
    const real *data;
    long row_stride, k_stride;
} Left;

// Panel p, of columns p * PANEL and on: element (k, column) is
// data[p * panel_stride + k * k_stride + column]. What a vector reads beyond the last column does
// not matter, but it must be there to be read.
typedef struct {
    const real *data;
    long panel_stride, k_stride;
} Right;

INLINE Left rows_of(const real *x, long stride) { return (Left){x, stride, 1}; }
INLINE Left columns_of(const real *x, long stride) { return (Left){x, 1, stride}; }
INLINE Right unpacked(const real *x, long stride) { return (Right){x, PANEL, stride}; }
INLINE Right packed(const real *x, long K) { return (Right){x, K * PANEL, PANEL}; }

// c (n_rows, n_vectors * LANES, of which the first n_columns are stored) = or += a @ b
INLINE void tile(int n_rows, int n_vectors, long K, const real *a, long row_stride, long k_stride,
                 const real *b, long b_stride, real *c, long c_stride, int n_columns,
                 int accumulate) {
    vector sums[TILE_ROWS][2];
#pragma GCC unroll 16
    for (int i = 0; i < n_rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; v++) sums[i][v] = splat(0);
    for (long k = 0; k < K; k++) {
        vector b_k[2];
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; v++) b_k[v] = load(b + k * b_stride + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < n_rows; i++) {
            const vector a_ik = splat(a[i * row_stride + k * k_stride]);
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; v++) sums[i][v] += a_ik * b_k[v];
        }
    }
    if (n_columns == n_vectors * LANES) {
#pragma GCC unroll 16
        for (int i = 0; i < n_rows; i++)
#pragma GCC unroll 2
            for (int v = 0; v < n_vectors; v++) {
                real *to = c + i * c_stride + v * LANES;
                store(to, accumulate ? load(to) + sums[i][v] : sums[i][v]);
            }
        return;
    }
    real lanes[PANEL] = {0};
#pragma GCC unroll 16
    for (int i = 0; i < n_rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < n_vectors; v++) store(lanes + v * LANES, sums[i][v]);
        real *to = c + i * c_stride;
        for (int j = 0; j < n_columns; j++) to[j] = accumulate ? to[j] + lanes[j] : lanes[j];
    }
}

// One tile of up to TILE_ROWS rows: picks the code compiled for that many.
static void any_tile(int n_rows, int n_vectors, long K, const real *a, long row_stride,
                     long k_stride, const real *b, long b_stride, real *c, long c_stride,
                     int n_columns, int accumulate) {
#define CASE(rows)                                                                           \
    case rows:                                                                               \
        if (n_vectors == 1)                                                                  \
            tile(rows, 1, K, a, row_stride, k_stride, b, b_stride, c, c_stride, n_columns,   \
                 accumulate);                                                                \
        else                                                                                 \
            tile(rows, 2, K, a, row_stride, k_stride, b, b_stride, c, c_stride, n_columns,   \
                 accumulate);                                                                \
        return;
    switch (n_rows) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
#if TILE_ROWS >= 6
        CASE(5)
        CASE(6)
#endif
#if TILE_ROWS >= 8
        CASE(7)
        CASE(8)
#endif
    }
#undef CASE
}

// c (M, N) = a (M, K) @ b (K, N), or c += where `accumulate`. Only N columns of c are written.
static void matmul(long M, long N, long K, Left a, Right b, real *c, long c_stride,
                   int accumulate) {
    const long n_tiles = (M + TILE_ROWS - 1) / TILE_ROWS;
    const long K_block = 256;  // so that a panel of B stays in the first-level cache
    for (long k = 0; k < K; k += K_block) {
        const long n_k = K - k < K_block ? K - k : K_block;
        for (long column = 0; column < N; column += PANEL) {
            const real *b_panel = b.data + column / PANEL * b.panel_stride + k * b.k_stride;
            const int n_columns = N - column < PANEL ? (int)(N - column) : PANEL;
            const int n_vectors = n_columns > LANES ? 2 : 1;
            for (long t = 0; t < n_tiles; t++) {  // tiles of nearly equal heights
                const long row = t * M / n_tiles, next = (t + 1) * M / n_tiles;
                any_tile((int)(next - row), n_vectors, n_k,
                         a.data + row * a.row_stride + k * a.k_stride, a.row_stride, a.k_stride,
                         b_panel, b.k_stride, c + row * c_stride + column, c_stride, n_columns,
                         accumulate || k > 0);
            }
        }
    }
}

INLINE long panels(long n_columns) { return (n_columns + PANEL - 1) / PANEL; }

// Where packed columns first..first+LANES-1 of a (K, N) matrix begin.
INLINE real *in_panel(real *panels_of_w, long K, long first) {
    return panels_of_w + first / PANEL * PANEL * K + first % PANEL;
}

// Pack w (K, N) for products x @ w.
static void pack(const real *w, long K, long N, real *to) {
    for (long first = 0; first < N; first += LANES) {
        real *panel = in_panel(to, K, first);
        if (first + LANES <= N)
            for (long k = 0; k < K; k++) store(panel + k * PANEL, load(w + k * N + first));
        else
            for (long k = 0; k < K; k++)
                for (long j = 0; j < N - first; j++) panel[k * PANEL + j] = w[k * N + first + j];
    }
}

// Pack the transpose of scale * w (N, K), with zeros up to the next whole vector of columns.
static void pack_transposed(const real *w, long stride, long K, long N, real scale, real *to) {
    for (long first = 0; first < N; first += LANES) {
        real *panel = in_panel(to, K, first);
        const real *from = w + first * stride;
        const long n = min_of(LANES, N - first);
        long k = 0;
        for (; k + LANES <= K; k += LANES) {
            vector rows[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++)
                rows[i] = i < n ? load(from + i * stride + k) * scale : splat(0);
            transpose(rows);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) store(panel + (k + i) * PANEL, rows[i]);
        }
        for (; k < K; k++)
            for (long j = 0; j < LANES; j++)
                panel[k * PANEL + j] = j < n ? from[j * stride + k] * scale : 0;
    }
}

#endif
