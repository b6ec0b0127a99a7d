// Matrix products: one register tile, and the loops around it.
//
// C (M, N) = A (M, K) @ B (K, N). A may be stored by rows or by columns; B is stored in panels of
// PANEL columns. The sum of an element of C does not depend on the tile that computes it, so
// results do not depend on how threads divide the rows.

#ifndef MICROGPT_MATMUL_H
#define MICROGPT_MATMUL_H

#include "vector.h"

// Rows of a register tile: as many as leave registers for two vectors of B and one of A.
#if VECTOR_BYTES == 64 || defined(__aarch64__)  // 32 registers
#define TILE_ROWS 8
#elif VECTOR_BYTES == 32
#define TILE_ROWS 6
#else
#define TILE_ROWS 4
#endif
#define PANEL (2 * LANES)
#define K_BLOCK 512  // rows of B in one pass: a panel of them stays in the second-level cache

INLINE isize min_of(isize a, isize b) { return a < b ? a : b; }
INLINE isize round_up(isize n, isize step) { return (n + step - 1) / step * step; }
INLINE isize panels(isize n_columns) { return (n_columns + PANEL - 1) / PANEL; }

// A: element (row, k) is data[row * row_stride + k * k_stride].
typedef struct {
    const real *data;
    isize row_stride, k_stride;
} Left;

// B: element (k, column) of panel p is data[p * panel_stride + k * k_stride + column]. Values
// beyond the last column do not matter, but the memory up to the next whole vector is read.
typedef struct {
    const real *data;
    isize panel_stride, k_stride;
} Right;

// C: element (row, column) is data[row * stride + column]; the product is added if `accumulate`.
typedef struct {
    real *data;
    isize stride;
    int accumulate;
} Output;

INLINE Left rows_of(const real *x, isize stride) { return (Left){x, stride, 1}; }
INLINE Left columns_of(const real *x, isize stride) { return (Left){x, 1, stride}; }
INLINE Right unpacked(const real *x, isize stride) { return (Right){x, PANEL, stride}; }
INLINE Right packed(const real *x, isize K) { return (Right){x, K * PANEL, PANEL}; }
INLINE Output into(real *y, isize stride) { return (Output){y, stride, 0}; }
INLINE Output added_to(real *y, isize stride) { return (Output){y, stride, 1}; }

// The part of a product that one register tile computes: up to TILE_ROWS rows, K products per
// element, and one or two vectors of columns, of which the first n_columns are stored.
typedef struct {
    Left a;
    Right b;
    Output c;
    isize K;
    int n_columns;
} Tile;

// to (n) = or += from (n); not inlined, because few tiles end in a part of a vector
__attribute__((noinline)) static void store_part(const real *from, int n, int accumulate,
                                                 real *to) {
    for (int j = 0; j < n; j++) to[j] = accumulate ? to[j] + from[j] : from[j];
}

// Code for a constant number of rows and vectors: all sums stay in registers.
INLINE void tile(int n_rows, int n_vectors, const Tile *t) {
    const Left a = t->a;
    const Right b = t->b;
    vector sums[TILE_ROWS][2];
    UNROLL for (int i = 0; i < n_rows; i++)
        UNROLL for (int v = 0; v < n_vectors; v++) {
            sums[i][v] = splat(0);
            __builtin_prefetch(t->c.data + i * t->c.stride + v * LANES, 1);  // often not in a cache
        }
    for (isize k = 0; k < t->K; k++) {
        vector b_k[2];
        const real *row = b.data + k * b.k_stride;
        UNROLL for (int v = 0; v < n_vectors; v++) b_k[v] = load(row + v * LANES);
        UNROLL for (int i = 0; i < n_rows; i++) {
            const vector a_ik = splat(a.data[i * a.row_stride + k * a.k_stride]);
            UNROLL for (int v = 0; v < n_vectors; v++) sums[i][v] += a_ik * b_k[v];
        }
    }
    const int accumulate = t->c.accumulate, is_whole = t->n_columns == n_vectors * LANES;
    real *to = t->c.data, lanes[PANEL];
    UNROLL for (int i = 0; i < n_rows; i++, to += t->c.stride) {
        UNROLL for (int v = 0; v < n_vectors; v++) {
            real *part = is_whole ? to + v * LANES : lanes + v * LANES;
            store(part, is_whole && accumulate ? load(part) + sums[i][v] : sums[i][v]);
        }
        if (!is_whole) store_part(lanes, t->n_columns, accumulate, to);
    }
}

// One tile of n_rows rows: calls the code compiled for that many.
static void any_tile(isize n_rows, const Tile *t) {
#define CASE(rows)               \
    case rows:                   \
        if (t->n_columns > LANES) \
            tile(rows, 2, t);    \
        else                     \
            tile(rows, 1, t);    \
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

#define ROW_VECTORS 8  // of columns of one row: sums that hide the time of one addition

// As `tile` for one row, across panels.
INLINE void row_tile(int n_vectors, const Tile *t) {
    const Left a = t->a;
    const Right b = t->b;
    vector sums[ROW_VECTORS];
    UNROLL for (int v = 0; v < n_vectors; v++) sums[v] = splat(0);
    for (isize k = 0; k < t->K; k++) {
        const vector a_k = splat(a.data[k * a.k_stride]);
        const real *row = b.data + k * b.k_stride;
        UNROLL for (int v = 0; v < n_vectors; v++)
            sums[v] += a_k * load(row + v / 2 * b.panel_stride + v % 2 * LANES);
    }
    const int accumulate = t->c.accumulate, n_left = t->n_columns % LANES;
    real *to = t->c.data, lanes[LANES];
    UNROLL for (int v = 0; v < n_vectors; v++, to += LANES) {
        if (v + 1 < n_vectors || n_left == 0) {
            store(to, accumulate ? load(to) + sums[v] : sums[v]);
        } else {
            store(lanes, sums[v]);
            store_part(lanes, n_left, accumulate, to);
        }
    }
}

// c (1, N) = or += a (1, K) @ b (K, N), with the same sums as `matmul`
static void row_matmul(isize N, isize K, Left a, Right b, Output c) {
    for (isize k = 0; k < K; k += K_BLOCK) {
        for (isize column = 0; column < N;) {
            const isize n_vectors = (N - column + LANES - 1) / LANES;
            Tile t = {.a = a, .b = b, .c = c, .K = min_of(K - k, K_BLOCK)};
            t.a.data += k * a.k_stride;
            t.b.data += column / PANEL * b.panel_stride + column % PANEL + k * b.k_stride;
            t.c.data += column;
            t.c.accumulate = c.accumulate || k > 0;
            t.n_columns = (int)min_of(N - column, ROW_VECTORS * LANES);
#define CASE(n)            \
    case n:                \
        row_tile(n, &t);   \
        break;
            switch (n_vectors) {
                CASE(1)
                CASE(2)
                CASE(3)
                CASE(4)
                CASE(5)
                CASE(6)
                CASE(7)
                default: row_tile(ROW_VECTORS, &t);
            }
#undef CASE
            column += t.n_columns;
        }
    }
}

// c (M, N) = or += a (M, K) @ b (K, N); writes no column beyond N.
static void matmul(isize M, isize N, isize K, Left a, Right b, Output c) {
    if (M == 1) {
        row_matmul(N, K, a, b, c);
        return;
    }
    const isize n_tiles = (M + TILE_ROWS - 1) / TILE_ROWS;
    for (isize k = 0; k < K; k += K_BLOCK) {
        for (isize column = 0; column < N; column += PANEL) {
            const real *panel = b.data + column / PANEL * b.panel_stride + k * b.k_stride;
            Tile t = {.a = a, .b = {panel, b.panel_stride, b.k_stride}, .c = c};
            t.c.accumulate = c.accumulate || k > 0;
            t.K = min_of(K - k, K_BLOCK);
            t.n_columns = (int)min_of(N - column, PANEL);
            for (isize i = 0; i < n_tiles; i++) {  // tiles of nearly equal heights
                const isize row = i * M / n_tiles, next = (i + 1) * M / n_tiles;
                t.a.data = a.data + row * a.row_stride + k * a.k_stride;
                t.c.data = c.data + row * c.stride + column;
                any_tile(next - row, &t);
            }
        }
    }
}

// Address of packed column `first` of a (K, N) matrix.
INLINE real *in_panel(real *panels_of_w, isize K, isize first) {
    return panels_of_w + first / PANEL * PANEL * K + first % PANEL;
}

// Packs w (K, N) for products x @ w.
static void pack(const real *w, isize K, isize N, real *to) {
    for (isize first = 0; first < N; first += LANES) {
        real *panel = in_panel(to, K, first);
        if (first + LANES <= N)
            for (isize k = 0; k < K; k++) store(panel + k * PANEL, load(w + k * N + first));
        else
            for (isize k = 0; k < K; k++)
                for (isize j = 0; j < N - first; j++) panel[k * PANEL + j] = w[k * N + first + j];
    }
}

// Packs the transpose of scale * w (N, K), with zeros up to the next whole vector of columns.
static void pack_transposed(const real *w, isize stride, isize K, isize N, real scale, real *to) {
    for (isize first = 0; first < N; first += LANES) {
        real *panel = in_panel(to, K, first);
        const real *from = w + first * stride;
        const isize n = min_of(LANES, N - first);
        isize k = 0;
        for (; k + LANES <= K; k += LANES) {
            vector rows[LANES];
            UNROLL for (int i = 0; i < LANES; i++)
                rows[i] = i < n ? load(from + i * stride + k) * scale : splat(0);
            transpose(rows);
            UNROLL for (int i = 0; i < LANES; i++) store(panel + (k + i) * PANEL, rows[i]);
        }
        for (; k < K; k++)
            for (isize j = 0; j < LANES; j++)
                panel[k * PANEL + j] = j < n ? from[j * stride + k] * scale : 0;
    }
}

#endif
