// Vectors of `real`, as wide as the instruction set allows, and the functions on them.
//
// The compiler's command line sets REAL_BITS (32 or 64) and VECTOR_BYTES (16, 32 or 64); the same
// source is compiled once for each pair.

#ifndef MICROGPT_VECTOR_H
#define MICROGPT_VECTOR_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

// Sizes, indices and strides inside the kernel; int64_t at its boundary. Not `long`, which has
// 32 bits on Windows.
typedef ptrdiff_t isize;

#if REAL_BITS == 32
typedef float real;
typedef int32_t integer;
typedef uint32_t bits;
#define REAL(x) x##f
#define sqrt_of_real sqrtf
#else
typedef double real;
typedef int64_t integer;
typedef uint64_t bits;
#define REAL(x) x
#define sqrt_of_real sqrt
#endif

#define MINUS_INFINITY (-(real)INFINITY)

#define VECTOR __attribute__((vector_size(VECTOR_BYTES)))
typedef real vector VECTOR;
typedef integer ivector VECTOR;  // lane numbers; comparisons: -1 where true, 0 where false
typedef bits uvector VECTOR;     // bit patterns: shifts and sums that may wrap
typedef real vector_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define LANES ((int)(VECTOR_BYTES / sizeof(real)))

// Vectors of double, whatever `real` is: for the choice of tokens.
typedef double wide VECTOR;
typedef int64_t iwide VECTOR;
typedef uint64_t uwide VECTOR;
typedef double wide_in_memory
    __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(double)), may_alias));
#define WIDE_LANES ((int)(VECTOR_BYTES / sizeof(double)))
typedef real narrow_in_memory  // as many numbers as a wide vector has
    __attribute__((vector_size(VECTOR_BYTES / sizeof(double) * sizeof(real)),
                   aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))

// Unrolls the next loop, so that an array of vectors that it walks is kept in registers. Clang
// would unroll a loop with a count only after it has placed the array in memory.
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

INLINE vector load(const real *x) { return *(const vector_in_memory *)x; }
INLINE void store(real *x, vector v) { *(vector_in_memory *)x = v; }
INLINE vector splat(real x) { return x - (vector){0}; }
INLINE wide load_wide(const double *x) { return *(const wide_in_memory *)x; }
INLINE void store_wide(double *x, wide v) { *(wide_in_memory *)x = v; }
INLINE wide widened(const real *x) {
    return __builtin_convertvector(*(const narrow_in_memory *)x, wide);
}

INLINE vector choose(ivector mask, vector yes, vector no) {
    return (vector)((mask & (ivector)yes) | (~mask & (ivector)no));
}

INLINE vector larger(vector a, vector b) { return choose(a > b, a, b); }

INLINE vector sqrt_of(vector x) {
    vector root;
    UNROLL for (int i = 0; i < LANES; i++) root[i] = sqrt_of_real(x[i]);
    return root;
}

// The lane numbers 0, 1, 2, ...; written out, so that vectors computed from them are constants.
#if VECTOR_BYTES == 64
#define WIDE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#define MORE_NUMBERS 8, 9, 10, 11, 12, 13, 14, 15
#elif VECTOR_BYTES == 32
#define WIDE_NUMBERS 0, 1, 2, 3
#define MORE_NUMBERS 4, 5, 6, 7
#else
#define WIDE_NUMBERS 0, 1
#define MORE_NUMBERS 2, 3
#endif
INLINE iwide wide_lane_numbers(void) { return (iwide){WIDE_NUMBERS}; }
INLINE ivector lane_numbers(void) {
#if REAL_BITS == 64
    return wide_lane_numbers();
#else
    return (ivector){WIDE_NUMBERS, MORE_NUMBERS};
#endif
}

// Lane i of the result is lane from[i] of the lanes of `a` followed by the lanes of `b`.
#if defined(__clang__)
INLINE vector shuffle(vector a, vector b, ivector from) {
    vector result;
    UNROLL for (int i = 0; i < LANES; i++)
        result[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return result;
}
#else
#define shuffle __builtin_shuffle
#endif

INLINE real sum_of(vector v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        v += shuffle(v, v, lane_numbers() ^ half);
    return v[0];
}

INLINE real max_of(vector v) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        v = larger(v, shuffle(v, v, lane_numbers() ^ half));
    return v[0];
}

// The lanes of `a` and `b` whose number has bit `half` clear or, if `upper`, set. Lanes of `a` fill
// the lanes of the result whose number has that bit clear, lanes of `b` the others.
INLINE vector interleave(vector a, vector b, int half, int upper) {
    const ivector lane = lane_numbers(), is_b = (lane & half) != 0;
    return shuffle(a, b, (is_b & (lane + LANES - (upper ? 0 : half))) |
                             (~is_b & (lane + (upper ? half : 0))));
}

// Transposes LANES rows in place: swaps off-diagonal blocks of LANES / 2, LANES / 4, ..., 1 rows.
INLINE void transpose(vector rows[LANES]) {
    UNROLL for (int half = LANES / 2; half > 0; half /= 2)
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & half) continue;
            const vector a = rows[i], b = rows[i + half];
            rows[i] = interleave(a, b, half, 0);
            rows[i + half] = interleave(a, b, half, 1);
        }
}

// e to the power of x, for x <= 0: softmax subtracts the largest logit first. NaN stays NaN; a
// result near or below the smallest normal number is 0.
//
// x = n ln 2 + r with |r| <= ln 2 / 2. A Taylor polynomial gives e^r, with an error below the last
// bit; n is shifted into the exponent field of 2^n. Adding `shifter` leaves n in the low bits.
#define DEFINE_EXP(NAME, NUMBER, VEC, IVEC, UVEC, SHIFTER, SMALLEST, LN2_HIGH, LN2_LOW, BIAS,     \
                   MANTISSA_BITS, ...)                                                           \
    INLINE VEC NAME(VEC x) {                                                                     \
        static const NUMBER coefficients[] = {__VA_ARGS__};                                      \
        const int n_coefficients = sizeof(coefficients) / sizeof(coefficients[0]);               \
        const VEC zeros = {0}, smallest = zeros + (NUMBER)SMALLEST, shifter = zeros + SHIFTER;   \
        const IVEC is_tiny = x < smallest;                                                       \
        x = (VEC)((is_tiny & (IVEC)smallest) | (~is_tiny & (IVEC)x));                            \
        const VEC shifted = x * (NUMBER)1.44269504088896340736 + shifter;                        \
        const VEC n = shifted - shifter;                                                         \
        const VEC r = (x - n * LN2_HIGH) - n * LN2_LOW;                                          \
        VEC power = zeros + coefficients[0];                                                     \
        UNROLL for (int i = 1; i < n_coefficients; i++) power = power * r + coefficients[i];     \
        const UVEC exponent = (UVEC)shifted - (UVEC)shifter + BIAS;                              \
        return (VEC)(~is_tiny & (IVEC)(power * (VEC)(exponent << MANTISSA_BITS)));               \
    }

DEFINE_EXP(exp_of_wide, double, wide, iwide, uwide, 0x1.8p52, -708.0, 0x1.62e42fefa38p-1,
           0x1.ef35793c7673p-45, 1023, 52, 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800,
           1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24,
           1.0 / 6, 1.0 / 2, 1.0, 1.0)
#if REAL_BITS == 32
DEFINE_EXP(exp_of, float, vector, ivector, uvector, 0x1.8p23f, -87.0f, 0x1.62e4p-1f,
           0x1.7f7d1cp-20f, 127, 23, 1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6,
           1.0f / 2, 1.0f, 1.0f)
#else
#define exp_of exp_of_wide
#endif

#endif
