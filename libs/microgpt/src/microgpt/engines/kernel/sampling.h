// The choice of the next token: temperature, top-k, top-p, one draw; as in decoding.py.

#ifndef MICROGPT_SAMPLING_H
#define MICROGPT_SAMPLING_H

#include <stdlib.h>

#include "layout.h"

typedef struct {
    double weight;
    isize token;
} Candidate;

// The memory for one choice.
typedef struct {
    double *weights;        // (V), and up to a whole vector
    Candidate *candidates;  // (V)
} SamplingSpace;

static SamplingSpace take_sampling_space(Arena *arena, const Model *m) {
    SamplingSpace space;
    space.weights = take(arena, round_up(m->vocab_size, LANES) * (isize)sizeof(double));
    space.candidates = take(arena, m->vocab_size * (isize)sizeof(Candidate));
    return space;
}

// By falling weight; tokens of equal weight by number.
static int compare(const void *a, const void *b) {
    const Candidate *left = a, *right = b;
    if (left->weight != right->weight) return left->weight < right->weight ? 1 : -1;
    return left->token < right->token ? -1 : 1;
}

// Sets the weights to 0 of all tokens but the likeliest ones that top-k and top-p leave.
static void filter(const Text *t, isize V, const SamplingSpace *space) {
    Candidate *candidates = space->candidates;
    for (isize i = 0; i < V; i++) candidates[i] = (Candidate){space->weights[i], i};
    qsort(candidates, (size_t)V, sizeof(Candidate), compare);
    isize n_kept = t->top_k > 0 && t->top_k < V ? t->top_k : V;
    if (t->top_p < 1) {
        double total = 0, reached = 0;
        for (isize i = 0; i < n_kept; i++) total += candidates[i].weight;
        const double threshold = t->top_p * total;
        for (isize i = 0; i < n_kept; i++)
            if ((reached += candidates[i].weight) >= threshold) n_kept = i + 1;
    }
    for (isize i = n_kept; i < V; i++) space->weights[candidates[i].token] = 0;
}

// The next token from logits (V, and memory up to a whole vector), or -1 if one is not finite.
static isize choose_token(const Text *t, const real *logits, isize V, double uniform,
                          const SamplingSpace *space) {
    double *weights = space->weights, sum = 0, top = -INFINITY;
    const isize end = round_up(V, WIDE_LANES);
    wide sums = {0}, tops = sums - INFINITY;
    for (isize i = 0; i < end; i += WIDE_LANES) {
        const iwide is_token = wide_lane_numbers() < V - i;
        const iwide w = (iwide)widened(logits + i) & is_token;
        sums += (wide)w;
        store_wide(weights + i, (wide)(w | (~is_token & (iwide)tops)));
    }
    for (int i = 0; i < WIDE_LANES; i++) sum += sums[i];
    if (!isfinite(sum)) return -1;
    for (isize i = 0; i < t->n_forbidden; i++) weights[t->forbidden[i]] = -INFINITY;
    for (isize i = 0; i < end; i += WIDE_LANES) {
        const wide w = load_wide(weights + i);
        const iwide is_larger = w > tops;
        tops = (wide)((is_larger & (iwide)w) | (~is_larger & (iwide)tops));
    }
    for (int i = 0; i < WIDE_LANES; i++) top = tops[i] > top ? tops[i] : top;
    if (t->temperature == 0) {
        isize best = 0;
        while (best + 1 < V && weights[best] != top) best++;
        return best;
    }
    const double inverse = fmin(1 / t->temperature, 1e300);  // finite: times 0 it is 0
    for (isize i = 0; i < end; i += WIDE_LANES)
        store_wide(weights + i, exp_of_wide((load_wide(weights + i) - top) * inverse));
    if ((t->top_k > 0 && t->top_k < V) || t->top_p < 1) filter(t, V, space);
    double total = 0;
    for (isize i = 0; i < end; i++) weights[i] = total += weights[i];
    // Rounding can make the product equal to the total: then choose the last token with a weight.
    const double limit = fmin(uniform * total, nextafter(total, 0));
    iwide is_passed = {0};
    for (isize i = 0; i < end; i += WIDE_LANES) is_passed += load_wide(weights + i) <= limit;
    isize n_passed = 0;
    for (int i = 0; i < WIDE_LANES; i++) n_passed -= is_passed[i];
    return min_of(n_passed, V - 1);
}

#endif
