// Muon: the update of a layer's matrices, each made nearly orthogonal; engines/muon.py defines it.
//
// One task computes the update of one matrix from its gradient to its weights, so threads wait for
// each other only at the end, and no sum depends on their number. The work is products of small
// matrices, in the tile of matmul.h. A matrix is held so that it has at least as many rows as
// columns: x (R, C), fc2 transposed. Then x^T x (C, C) is the smaller of the two Gram matrices, and
// both of its factors are read where they are, without packing. Gram matrices and their squares are
// symmetric: only blocks on and above the diagonal are computed, the others are copied.

#ifndef MICROGPT_MUON_H
#define MICROGPT_MUON_H

#include "layout.h"
#include "team.h"

#define MUON_EPS 1e-7      // added to the norm of a matrix: zeros stay zeros
#define GRAM_ITERATIONS 3  // on the Gram matrix of a matrix with more rows than columns

typedef struct {
    double learning_rate, weight_decay, momentum;
    int64_t iterations;
    int64_t first, every;  // of the matrices, in the order of matrix_of
} Muon;

// A matrix of a layer, (rows, columns), at an offset of the flat buffers.
typedef struct {
    isize at, rows, columns;
} Matrix;

#define LAYER_MATRICES 6

// Matrix number `i` of all layers, large ones first, so that threads end together: fc1 and fc2 of
// each layer, then wq, wk, wv and wo of each layer. The order is that of muon_matrices in muon.py.
static Matrix matrix_of(const Model *m, isize i) {
    const isize C = m->n_embd, square = i - 2 * m->n_layer;
    if (square >= 0) return (Matrix){layer_at(m, square / 4) + square % 4 * C * C, C, C};
    return i % 2 ? (Matrix){fc2_at(m, i / 2), C, 4 * C} : (Matrix){fc1_at(m, i / 2), 4 * C, C};
}

// to (n_columns, n_rows) = from (n_rows, n_columns)^T
static void transpose_into(const real *from, isize stride, isize n_rows, isize n_columns, real *to,
                           isize to_stride) {
    for (isize i = 0; i < n_rows; i += LANES) {
        const isize n = min_of(LANES, n_rows - i);
        isize j = 0;
        for (; n == LANES && j + LANES <= n_columns; j += LANES) {
            vector rows[LANES];
            UNROLL for (int k = 0; k < LANES; k++) rows[k] = load(from + (i + k) * stride + j);
            transpose(rows);
            UNROLL for (int k = 0; k < LANES; k++) store(to + (j + k) * to_stride + i, rows[k]);
        }
        for (; j < n_columns; j++)
            for (isize k = 0; k < n; k++) to[j * to_stride + i + k] = from[(i + k) * stride + j];
    }
}

// ---------------------------------------------------------------- one matrix

// to (C, C) = a^T b, where that is symmetric; a, b (K, C)
static void symmetric_product(const real *a, const real *b, isize K, isize C, isize ld, real *to) {
    for (isize first = 0; first < C; first += PANEL) {
        const isize n = min_of(PANEL, C - first), next = first + n;
        matmul(n, C - first, K, columns_of(a + first, ld), unpacked(b + first, ld),
               into(to + first * ld + first, ld));
        transpose_into(to + first * ld + next, ld, n, C - next, to + next * ld + first, ld);
    }
}

// to (C, C) = 3.4445 I - 4.7750 gram + 2.0315 gram gram; gram (C, C)
static void polynomial(const real *gram, isize C, isize ld, real *to) {
    symmetric_product(gram, gram, C, C, ld, to);
    for (isize i = 0; i < C; i++) {
        for (isize j = 0; j < C; j++)
            to[i * ld + j] = REAL(2.0315) * to[i * ld + j] - REAL(4.7750) * gram[i * ld + j];
        to[i * ld + i] += REAL(3.4445);
    }
}

// The factor (C, C) by which n iterations multiply a matrix whose Gram matrix is in s->gram.
//
// An iteration multiplies x by p, a polynomial of its Gram matrix g, and g so becomes p g p. All of
// them are polynomials of the first g: they commute, and their products are symmetric.
static const real *factor_of(const MuonScratch *s, isize C, int64_t n) {
    const isize ld = s->ld;
    real *factor = s->factor, *gram = s->gram, *p = s->polynomial, *product = s->product;
    polynomial(gram, C, ld, factor);
    for (int64_t i = 1; i < n; i++) {
        const real *last = i == 1 ? factor : p;
        symmetric_product(last, gram, C, C, ld, product);
        symmetric_product(product, last, C, C, ld, gram);
        polynomial(gram, C, ld, p);
        symmetric_product(factor, p, C, C, ld, product);
        real *swapped = factor;
        factor = product;
        product = swapped;
    }
    return factor;
}

// Brings the singular values of x (R, C), of norm 1, near 1. Returns the result, which is in x or
// in s->other.
//
// Several iterations on the Gram matrix of a tall x take fewer operations than as many on x. More
// than GRAM_ITERATIONS would amplify the rounding of small singular values, which it squares.
static real *orthogonalize(real *x, isize R, isize C, int64_t iterations, const MuonScratch *s) {
    const isize ld = s->ld;
    real *other = s->other;
    for (int64_t n; iterations > 0; iterations -= n) {
        n = min_of(R > C ? GRAM_ITERATIONS : 1, iterations);
        symmetric_product(x, x, R, C, ld, s->gram);
        const Right factor = unpacked(factor_of(s, C, n), ld);
        for (isize row = 0; row < R; row += BLOCK_ROWS)  // which stay in the second-level cache
            matmul(min_of(BLOCK_ROWS, R - row), C, C, rows_of(x + row * ld, ld), factor,
                   into(other + row * ld, ld));
        real *swapped = x;
        x = other;
        other = swapped;
    }
    return x;
}

// Moves the mean of the gradients of a matrix on; direction (rows, columns), at a stride of ld: the
// mean after the same gradient again (Nesterov). Returns the direction's norm.
static double move_momentum(const Model *m, Matrix matrix, real scale, real momentum,
                            real *direction, isize ld) {
    const real rest = 1 - momentum;
    double squares = 0;
    for (isize i = 0; i < matrix.rows; i++) {
        real *grads = m->grads + matrix.at + i * matrix.columns;
        real *means = m->adam_m + matrix.at + i * matrix.columns;
        vector sums = splat(0);
        isize j = 0;
        for (; j + LANES <= matrix.columns; j += LANES) {
            const vector g = load(grads + j) * scale;
            const vector mean = load(means + j) * momentum + g * rest;
            const vector ahead = mean * momentum + g * rest;
            store(grads + j, g);
            store(means + j, mean);
            store(direction + i * ld + j, ahead);
            sums += ahead * ahead;
        }
        for (; j < matrix.columns; j++) {
            const real g = grads[j] *= scale;
            means[j] = means[j] * momentum + g * rest;
            const real ahead = direction[i * ld + j] = means[j] * momentum + g * rest;
            squares += (double)ahead * (double)ahead;
        }
        squares += (double)sum_of(sums);
    }
    return sqrt(squares);
}

static void update_matrix(const Model *m, Matrix matrix, const Muon *muon, double scale,
                          const MuonScratch *s) {
    const isize rows = matrix.rows, columns = matrix.columns, ld = s->ld;
    const int is_wide = columns > rows;
    const isize R = is_wide ? columns : rows, C = is_wide ? rows : columns;
    const isize ld_direction = is_wide ? s->ld_wide : ld;
    real *direction = is_wide ? s->wide : s->x, *x = s->x;
    const double norm =
        move_momentum(m, matrix, (real)scale, (real)muon->momentum, direction, ld_direction);
    if (is_wide) transpose_into(direction, ld_direction, rows, columns, x, ld);
    const real inverse = (real)(1 / (norm + MUON_EPS));
    for (isize i = 0; i < R; i++)
        for (isize j = 0; j < C; j++) x[i * ld + j] *= inverse;
    x = orthogonalize(x, R, C, muon->iterations, s);
    if (is_wide)
        transpose_into(x, ld, R, C, direction, ld_direction);
    else
        direction = x;
    const double stretch = rows > columns ? sqrt((double)rows / (double)columns) : 1;
    const real keep = (real)(1 - muon->learning_rate * muon->weight_decay);
    const real step = (real)(muon->learning_rate * stretch);
    for (isize i = 0; i < rows; i++) {
        real *weights = m->weights + matrix.at + i * columns;
        const real *update = direction + i * ld_direction;
        for (isize j = 0; j < columns; j++) weights[j] = weights[j] * keep - step * update[j];
    }
}

// Multiplies the gradients of the layers' matrices, or of a share of them, by `scale` and updates
// their weights.
//
// Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
static void muon_phase(Member *member, const Model *m, const Muon *muon, double scale,
                       const MuonScratch *scratch) {
    const isize n = (LAYER_MATRICES * m->n_layer - muon->first + muon->every - 1) / muon->every;
    for (isize task; (task = next_task(member, n)) >= 0;)
        update_matrix(m, matrix_of(m, muon->first + task * muon->every), muon, scale, scratch);
    end_phase(member, n);
}

#endif
