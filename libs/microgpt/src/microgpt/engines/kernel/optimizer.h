// What happens once per step: packing the weights for the products, the gradient's norm, Adam.

#ifndef MICROGPT_OPTIMIZER_H
#define MICROGPT_OPTIMIZER_H

#include "network.h"

// Packs one matrix: task 8 i + k is the k-th of layer i, the last two are lm_head's.
static void pack_matrix(const Model *m, const Workspace *w, long task) {
    const long C = m->n_embd, V = m->vocab_size, layer = task / 8;
    if (layer == m->n_layer) {
        const real *head = m->weights + head_at(m);
        if (task % 8 == 0)
            pack_transposed(head, C, C, V, 1, w->head_forward);
        else
            pack(head, V, C, w->head_backward);
        return;
    }
    const Packed *f = &w->forward[layer], *b = &w->backward[layer];
    switch (task % 8) {
        case 0: pack_transposed(m->weights + qkv_at(m, layer), C, C, 3 * C, 1, f->qkv); break;
        case 1: pack_transposed(m->weights + wo_at(m, layer), C, C, C, 1, f->wo); break;
        case 2: pack_transposed(m->weights + fc1_at(m, layer), C, C, 4 * C, 1, f->fc1); break;
        case 3: pack_transposed(m->weights + fc2_at(m, layer), 4 * C, 4 * C, C, 1, f->fc2); break;
        case 4: pack(m->weights + qkv_at(m, layer), 3 * C, C, b->qkv); break;
        case 5: pack(m->weights + wo_at(m, layer), C, C, b->wo); break;
        case 6: pack(m->weights + fc1_at(m, layer), 4 * C, C, b->fc1); break;
        case 7: pack(m->weights + fc2_at(m, layer), C, 4 * C, b->fc2); break;
    }
}

static void pack_phase(Member *member, const Pass *pass) {
    const Model *m = pass->model;
    const int is_training = pass->targets != NULL;
    const long n = 8 * m->n_layer + (is_training ? 2 : 1);
    for (long task; (task = next_task(member, n)) >= 0;)
        if (is_training || task % 8 < 4) pack_matrix(m, pass->workspace, task);
    end_phase(member, n);
}

typedef struct {
    double learning_rate, weight_decay;
    int64_t n_updates;  // before this one
    double beta1, beta2, eps;
} Adam;

INLINE long n_slabs(const Model *m) { return (n_params(m) + SLAB - 1) / SLAB; }
INLINE long slab_end(const Model *m, long slab) { return min_of((slab + 1) * SLAB, n_params(m)); }

static void norm_phase(Member *member, const Pass *pass) {
    const Model *m = pass->model;
    const long n = n_slabs(m);
    for (long slab; (slab = next_task(member, n)) >= 0;) {
        double sums[8] = {0};
        for (long i = slab * SLAB; i < slab_end(m, slab); i++)
            sums[i % 8] += (double)m->grads[i] * (double)m->grads[i];
        pass->workspace->squares[slab] = ((sums[0] + sums[1]) + (sums[2] + sums[3])) +
                                         ((sums[4] + sums[5]) + (sums[6] + sums[7]));
    }
    end_phase(member, n);
}

// The gradient's norm, which every member adds up for itself in the same order.
static double gradient_norm(const Pass *pass) {
    double sum = 0;
    for (long slab = 0; slab < n_slabs(pass->model); slab++) sum += pass->workspace->squares[slab];
    return __builtin_sqrt(sum);
}

double pow(double, double);

// One update of all weights; the gradient is first multiplied by `scale`.
//
// Source: Kingma & Ba 2015, arXiv:1412.6980; weight decay as in Loshchilov & Hutter 2019,
// arXiv:1711.05101.
static void adam_phase(Member *member, const Model *m, const Adam *adam, double scale) {
    const double t = (double)(adam->n_updates + 1);
    const real keep = (real)(1 - adam->learning_rate * adam->weight_decay);
    const real beta1 = (real)adam->beta1, beta2 = (real)adam->beta2, eps = (real)adam->eps;
    const real rest1 = (real)(1 - adam->beta1), rest2 = (real)(1 - adam->beta2);
    const real step = (real)(adam->learning_rate / (1 - pow(adam->beta1, t)));
    const real correction = (real)(1 / (1 - pow(adam->beta2, t)));
    const real factor = (real)scale;
    const long n = n_slabs(m);
    for (long slab; (slab = next_task(member, n)) >= 0;) {
        real *weights = m->weights, *grads = m->grads, *moments = m->adam_m, *squares = m->adam_v;
        long i = slab * SLAB;
        for (; i + LANES <= slab_end(m, slab); i += LANES) {
            const vector g = load(grads + i) * factor;
            const vector mean = load(moments + i) * beta1 + g * rest1;
            const vector square = load(squares + i) * beta2 + g * g * rest2;
            store(grads + i, g);
            store(moments + i, mean);
            store(squares + i, square);
            store(weights + i, load(weights + i) * keep -
                                   mean * step / (sqrt_of(square * correction) + eps));
        }
        for (; i < slab_end(m, slab); i++) {
            const real g = grads[i] *= factor;
            moments[i] = moments[i] * beta1 + g * rest1;
            squares[i] = squares[i] * beta2 + g * g * rest2;
            weights[i] = weights[i] * keep -
                         moments[i] * step / (sqrt_of_real(squares[i] * correction) + eps);
        }
    }
    end_phase(member, n);
}

// Clips the gradient to a norm of `clip` unless that is 0, and takes one step along it.
static void update(Member *member, const Pass *pass, const Adam *adam, double clip, double *norm) {
    double scale = 1;
    if (clip > 0) {
        norm_phase(member, pass);
        const double length = gradient_norm(pass);
        if (length > clip) scale = clip / length;
        if (member->number == 0) *norm = length;
    }
    adam_phase(member, pass->model, adam, scale);
}

#endif
