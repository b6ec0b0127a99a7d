// Vectors of `real`, as wide as the instruction set allows, and the few functions on them.
//
// REAL_BITS (32 or 64) and VECTOR_BYTES (16, 32 or 64) come from the compiler's command line; the
// same source is compiled once for each pair. Nothing here depends on how many threads run.

#ifndef MICROGPT_VECTOR_H
#define MICROGPT_VECTOR_H

#include <stdint.h>

#if REAL_BITS == 32
typedef float real;
typedef int32_t integer;
#define REAL(x) x##f
#else
typedef double real;
typedef int64_t integer;
#define REAL(x) x
#endif

typedef real vector __attribute__((vector_size(VECTOR_BYTES)));
typedef integer ivector __attribute__((vector_size(VECTOR_BYTES)));
typedef real vector_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define LANES ((int)(VECTOR_BYTES / sizeof(real)))
#define INLINE static inline __attribute__((always_inline))

INLINE vector load(const real *x) { return *(const vector_in_memory *)x; }
INLINE void store(real *x, vector v) { *(vector_in_memory *)x = v; }
INLINE vector splat(real x) { return x - (vector){0}; }

INLINE vector choose(ivector mask, vector yes, vector no) {
    return (vector)((mask & (ivector)yes) | (~mask & (ivector)no));
}

INLINE vector larger(vector a, vector b) { return choose(a > b, a, b); }

// The lane numbers 0, 1, 2, ...; written out, so that what is computed from them is constant.
INLINE ivector lane_numbers(void) {
#if VECTOR_BYTES * 8 / REAL_BITS == 16
    return (ivector){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif VECTOR_BYTES * 8 / REAL_BITS == 8
    return (ivector){0, 1, 2, 3, 4, 5, 6, 7};
#elif VECTOR_BYTES * 8 / REAL_BITS == 4
    return (ivector){0, 1, 2, 3};
#else
    return (ivector){0, 1};
#endif
}

// Lane i is lane from[i] of a and b, one after the other.
#if defined(__clang__)
INLINE vector shuffle(vector a, vector b, ivector from) {
    vector result;
    for (int i = 0; i < LANES; i++) result[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return result;
}
#else
#define shuffle __builtin_shuffle
#endif

INLINE real sum_of(vector v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2) v += shuffle(v, v, lane_numbers() ^ half);
    return v[0];
}

INLINE real max_of(vector v) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
        v = larger(v, shuffle(v, v, lane_numbers() ^ half));
    return v[0];
}

// Of two vectors, the lanes without bit `half` of their number (or, if `upper`, those with it):
// a's where the result has a lane without that bit, b's where it has one with it.
INLINE vector interleave(vector a, vector b, int half, int upper) {
    const ivector lane = lane_numbers(), is_b = (lane & half) != 0;
    return shuffle(a, b, (is_b & (lane + LANES - (upper ? 0 : half))) |
                             (~is_b & (lane + (upper ? half : 0))));
}

// The sum of each of LANES vectors, as the lanes of one; `vectors` is used up.
INLINE vector sums_of(vector vectors[LANES]) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++)
            vectors[i] = interleave(vectors[i], vectors[i + half], half, 0) +
                         interleave(vectors[i], vectors[i + half], half, 1);
    return vectors[0];
}

// Transposes LANES rows in place: swaps off-diagonal blocks, ever smaller ones.
INLINE void transpose(vector rows[LANES]) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) {
            if (i & half) continue;
            const vector a = rows[i], b = rows[i + half];
            rows[i] = interleave(a, b, half, 0);
            rows[i + half] = interleave(a, b, half, 1);
        }
}

// e to the power of x, for x <= 0 (softmax shifts its logits there); NaN stays NaN, and what would
// hardly be a normal number is 0.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; a Taylor polynomial for e^r, to below the last bit; the
// exponent field for 2^n, which the sum with `shifter` leaves in the low bits.
INLINE vector exp_of(vector x) {
#if REAL_BITS == 32
    const real shifter = 0x1.8p23f, smallest = -87.0f;
    const real ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
    const int bias = 127, mantissa_bits = 23;
    static const real coefficients[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24,
                                        1.0f / 6,    1.0f / 2,   1.0f,       1.0f};
#else
    const real shifter = 0x1.8p52, smallest = -708.0;
    const real ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
    const int64_t bias = 1023, mantissa_bits = 52;
    static const real coefficients[] = {
        1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
        1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
        1.0 / 6,          1.0 / 2,         1.0,            1.0};
#endif
    const int n_coefficients = sizeof(coefficients) / sizeof(coefficients[0]);
    const ivector is_tiny = x < smallest;
    x = choose(is_tiny, splat(smallest), x);
    const vector shifted = x * REAL(1.44269504088896340736) + shifter;
    const vector n = shifted - shifter;
    const vector r = (x - n * ln2_high) - n * ln2_low;
    vector power = splat(coefficients[0]);
    for (int i = 1; i < n_coefficients; i++) power = power * r + coefficients[i];
    const ivector exponent = (ivector)shifted - (ivector)splat(shifter) + bias;
    return choose(is_tiny, splat(0), power * (vector)(exponent << mantissa_bits));
}

#if REAL_BITS == 32
#define sqrt_of_real __builtin_sqrtf
#define minus_infinity (-__builtin_inff())
#else
#define sqrt_of_real __builtin_sqrt
#define minus_infinity (-__builtin_inf())
#endif

INLINE vector sqrt_of(vector x) {
    vector root;
    for (int i = 0; i < LANES; i++) root[i] = sqrt_of_real(x[i]);
    return root;
}

#endif
