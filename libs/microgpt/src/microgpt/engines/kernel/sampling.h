// The choice of the next token: temperature, top-k, top-p, one draw; as in decoding.py.

#ifndef MICROGPT_SAMPLING_H
#define MICROGPT_SAMPLING_H

#include <stdlib.h>

#include "layout.h"

typedef struct {
    double weight;
    isize token;
} Candidate;

// The memory of a call that generates samples.
typedef struct {
    real *logits;           // (V)
    double *weights;        // (V)
    Candidate *candidates;  // (V)
} SamplingSpace;

// Lays the space out at `memory`, as `lay_out` does a workspace.
static isize lay_out_sampling(SamplingSpace *space, void *memory, const Model *m) {
    Arena arena = {memory, 0};
    space->logits = take_reals(&arena, m->vocab_size);
    space->weights = take(&arena, m->vocab_size * (isize)sizeof(double));
    space->candidates = take(&arena, m->vocab_size * (isize)sizeof(Candidate));
    return arena.n_bytes;
}

// By falling weight; tokens of equal weight by number.
static int compare(const void *a, const void *b) {
    const Candidate *left = a, *right = b;
    if (left->weight != right->weight) return left->weight < right->weight ? 1 : -1;
    return left->token < right->token ? -1 : 1;
}

// Sets the weights to 0 of all tokens but the likeliest ones that top-k and top-p leave.
static void filter(const Generation *g, isize V, const SamplingSpace *space) {
    Candidate *candidates = space->candidates;
    for (isize i = 0; i < V; i++) candidates[i] = (Candidate){space->weights[i], i};
    qsort(candidates, (size_t)V, sizeof(Candidate), compare);
    isize n_kept = g->top_k > 0 && g->top_k < V ? g->top_k : V;
    if (g->top_p < 1) {
        double total = 0, reached = 0;
        for (isize i = 0; i < n_kept; i++) total += candidates[i].weight;
        const double threshold = g->top_p * total;
        for (isize i = 0; i < n_kept; i++)
            if ((reached += candidates[i].weight) >= threshold) n_kept = i + 1;
    }
    for (isize i = n_kept; i < V; i++) space->weights[candidates[i].token] = 0;
}

// The next token from logits (V), or -1 if a logit is not finite.
static isize choose_token(const Generation *g, const real *logits, isize V, double uniform,
                          const SamplingSpace *space) {
    double *weights = space->weights, sum = 0;
    for (isize i = 0; i < V; i++) sum += (double)logits[i];
    if (!isfinite(sum)) return -1;
    isize best = -1;
    for (isize i = 0; i < V; i++)
        if (!g->forbidden[i] && (best < 0 || logits[i] > logits[best])) best = i;
    if (best < 0) best = 0;
    if (g->temperature == 0) return best;
    const double top = (double)logits[best];
    for (isize i = 0; i < V; i++)
        weights[i] = g->forbidden[i] ? 0 : exp(((double)logits[i] - top) / g->temperature);
    if ((g->top_k > 0 && g->top_k < V) || g->top_p < 1) filter(g, V, space);
    double total = 0, reached = 0;
    for (isize i = 0; i < V; i++) total += weights[i];
    // Rounding can make the product equal to the total: then choose the last token with a weight.
    const double threshold = uniform * total, below_total = nextafter(total, 0);
    for (isize i = 0; i < V; i++) {
        reached += weights[i];
        if (reached > threshold || reached > below_total) return i;
    }
    return V - 1;
}

#endif
