// One update of the weights along the gradient: its norm, clipping, Adam, perhaps Muon.

#ifndef MICROGPT_OPTIMIZER_H
#define MICROGPT_OPTIMIZER_H

#include "muon.h"
#include "team.h"

typedef struct {
    double learning_rate, weight_decay;
    int64_t n_updates;  // before this one
    double beta1, beta2, eps;
} Adam;

// Tasks of n elements of a flat buffer: slabs of SLAB elements.
INLINE isize slabs(isize n) { return (n + SLAB - 1) / SLAB; }
INLINE isize slab_end(isize n, isize slab) { return min_of((slab + 1) * SLAB, n); }

// squares (slabs): summed squares of the gradient
static void norm_phase(Member *member, const Model *m, double *squares) {
    const isize n = slabs(n_params(m));
    for (isize slab; (slab = next_task(member, n)) >= 0;) {
        double sums[8] = {0};
        for (isize i = slab * SLAB; i < slab_end(n_params(m), slab); i++)
            sums[i % 8] += (double)m->grads[i] * (double)m->grads[i];
        squares[slab] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                        ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    end_phase(member, n);
}

// The norm of the gradient; every member adds the slabs up in the same order.
static double gradient_norm(const Model *m, const double *squares) {
    double sum = 0;
    for (isize slab = 0; slab < slabs(n_params(m)); slab++) sum += squares[slab];
    return sqrt(sum);
}

// Multiplies the first n_elements of the gradient by `scale` and updates as many weights.
//
// Source: Kingma & Ba 2015, arXiv:1412.6980; weight decay as in Loshchilov & Hutter 2019,
// arXiv:1711.05101.
static void adam_phase(Member *member, const Model *m, const Adam *adam, double scale,
                       isize n_elements) {
    const double t = (double)(adam->n_updates + 1);
    const real keep = (real)(1 - adam->learning_rate * adam->weight_decay);
    const real beta1 = (real)adam->beta1, beta2 = (real)adam->beta2, eps = (real)adam->eps;
    const real rest1 = (real)(1 - adam->beta1), rest2 = (real)(1 - adam->beta2);
    const real step = (real)(adam->learning_rate / (1 - pow(adam->beta1, t)));
    const real correction = (real)(1 / (1 - pow(adam->beta2, t)));
    const real factor = (real)scale;
    const isize n = slabs(n_elements);
    for (isize slab; (slab = next_task(member, n)) >= 0;) {
        real *weights = m->weights, *grads = m->grads, *moments = m->adam_m, *squares = m->adam_v;
        isize i = slab * SLAB;
        for (; i + LANES <= slab_end(n_elements, slab); i += LANES) {
            const vector g = load(grads + i) * factor;
            const vector mean = load(moments + i) * beta1 + g * rest1;
            const vector square = load(squares + i) * beta2 + g * g * rest2;
            store(grads + i, g);
            store(moments + i, mean);
            store(squares + i, square);
            store(weights + i, load(weights + i) * keep -
                                   mean * step / (sqrt_of(square * correction) + eps));
        }
        for (; i < slab_end(n_elements, slab); i++) {
            const real g = grads[i] *= factor;
            moments[i] = moments[i] * beta1 + g * rest1;
            squares[i] = squares[i] * beta2 + g * g * rest2;
            weights[i] = weights[i] * keep -
                         moments[i] * step / (sqrt_of_real(squares[i] * correction) + eps);
        }
    }
    end_phase(member, n);
}

// Clips the gradient to a norm of `clip`, unless that is 0, and takes one step along it: by Adam or,
// if Muon has iterations, the layers' matrices by Muon. The norm is written to *norm.
static void update(Member *member, const Model *m, const Adam *adam, const Muon *muon, double clip,
                   const Workspace *w, double *norm) {
    double scale = 1;
    if (clip > 0) {
        norm_phase(member, m, w->squares);
        const double length = gradient_norm(m, w->squares);
        if (length > clip) scale = clip / length;
        if (member->number == 0) *norm = length;
    }
    const int has_muon = muon->iterations > 0;
    if (has_muon) muon_phase(member, m, muon, scale, &w->muon[member->number]);
    adam_phase(member, m, adam, scale, has_muon ? layer_at(m, 0) : n_params(m));
}

#endif
