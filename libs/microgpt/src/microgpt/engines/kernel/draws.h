// The draws of many seeds: for each seed, the numbers of Python's random.Random(seed).random().
//
// The generator is the Mersenne Twister MT19937 (Matsumoto & Nishimura 1998). Seeding computes each
// word of a state from the word before it, so a lane of a vector holds the state of one seed. A
// group of seeds fills several vectors: while one waits for a product, others use the processor.

#ifndef MICROGPT_DRAWS_H
#define MICROGPT_DRAWS_H

#include "layout.h"

#define STATE_WORDS 624
#define STATE_SHIFT 397
#define SEED_LANES ((isize)(VECTOR_BYTES / sizeof(uint32_t)))
#define SEED_VECTORS (VECTOR_BYTES < 64 ? 4 : 2)  // states of at most 80 kB: they are on the stack
#define GROUP_SEEDS (SEED_VECTORS * SEED_LANES)

typedef uint32_t words VECTOR;
typedef words GroupWord[SEED_VECTORS];  // one word of the state of each seed

INLINE words splat_word(uint32_t x) { return x - (words){0}; }
INLINE words mixed(words x, uint32_t factor) { return (x ^ (x >> 30)) * factor; }

// The state that seeding starts from, the same for all seeds; init_genrand of the paper's code.
static void start_state(uint32_t start[STATE_WORDS]) {
    start[0] = 19650218;
    for (uint32_t i = 1; i < STATE_WORDS; i++)
        start[i] = 1812433253 * (start[i - 1] ^ (start[i - 1] >> 30)) + i;
}

// The states of seeds; init_by_array of the paper's code. It adds the words of a seed in turn.
static void seed_group(GroupWord state[STATE_WORDS], const uint32_t start[STATE_WORDS],
                       const GroupWord added[2]) {
    GroupWord last;
    UNROLL for (int v = 0; v < SEED_VECTORS; v++) last[v] = splat_word(start[0]);
    for (int i = 1; i < STATE_WORDS; i++)
        UNROLL for (int v = 0; v < SEED_VECTORS; v++)
            state[i][v] = last[v] = (start[i] ^ mixed(last[v], 1664525)) + added[(i - 1) % 2][v];
    UNROLL for (int v = 0; v < SEED_VECTORS; v++)
        state[1][v] = last[v] = (state[1][v] ^ mixed(last[v], 1664525)) + added[1][v];
    for (uint32_t i = 2; i < STATE_WORDS; i++)
        UNROLL for (int v = 0; v < SEED_VECTORS; v++)
            state[i][v] = last[v] = (state[i][v] ^ mixed(last[v], 1566083941)) - i;
    UNROLL for (int v = 0; v < SEED_VECTORS; v++) {
        state[1][v] = (state[1][v] ^ mixed(last[v], 1566083941)) - 1;
        state[0][v] = splat_word(0x80000000);
    }
}

// Advances word i of the states in vector v, and returns it tempered. Words advance one by one, as
// they are drawn: a few draws cost a few words, not the 624 of a whole state.
INLINE words next_word(GroupWord state[STATE_WORDS], isize i, int v) {
    const words upper = state[i][v] & 0x80000000;
    const words x = upper | (state[(i + 1) % STATE_WORDS][v] & 0x7fffffff);
    words y = state[(i + STATE_SHIFT) % STATE_WORDS][v] ^ (x >> 1) ^ (-(x & 1) & 0x9908b0df);
    state[i][v] = y;
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return y ^ (y >> 18);
}

// The first n_draws numbers of each seed; `to` is (n_seeds, n_draws), n_seeds <= GROUP_SEEDS.
static void draw_group(const uint32_t start[STATE_WORDS], const uint64_t *seeds, isize n_seeds,
                       isize n_draws, double *to) {
    GroupWord state[STATE_WORDS], added[2] = {0};
    for (isize i = 0; i < n_seeds; i++) {
        const uint32_t low = (uint32_t)seeds[i], high = (uint32_t)(seeds[i] >> 32);
        added[0][i / SEED_LANES][i % SEED_LANES] = low;
        // A word's number is added with it: 1 to the second. Seeds below 2^32 have only one word.
        added[1][i / SEED_LANES][i % SEED_LANES] = high ? high + 1 : low;
    }
    seed_group(state, start, added);
    for (isize draw = 0; draw < n_draws; draw++) {
        const isize i = 2 * draw % STATE_WORDS;
        for (int v = 0; v < SEED_VECTORS; v++) {
            const words upper = next_word(state, i, v) >> 5;
            const words lower = next_word(state, i + 1, v) >> 6;
            const isize first = v * SEED_LANES, n = min_of(n_seeds - first, SEED_LANES);
            double *row = to + first * n_draws + draw;
            for (isize lane = 0; lane < n; lane++)  // 53 bits: 27 and 26
                row[lane * n_draws] = (upper[lane] * 0x1p26 + lower[lane]) * 0x1p-53;
        }
    }
}

#endif
