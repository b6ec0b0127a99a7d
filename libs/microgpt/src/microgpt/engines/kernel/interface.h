// Structures that cross the boundary to Python, field for field as in library.py.
//
// Python checks sizes, token ids and pointers before each call; the kernel does not check them
// again. It compares the sizes of these structures with its own when it opens the library.

#ifndef MICROGPT_INTERFACE_H
#define MICROGPT_INTERFACE_H

#include <stdatomic.h>

#include "vector.h"

// Flat buffers have n_params elements, in the order of `parameter_shapes`.
typedef struct {
    int64_t vocab_size, n_embd, n_head, n_layer, block_size;
    real *weights, *grads, *adam_m, *adam_v;  // Muon's mean of the gradients is in adam_m
} Model;

// Arguments and results of `train` and `update`.
typedef struct {
    void *workspace;  // training_bytes; zeros, or left by an earlier call with the same sizes
    int64_t n_members;
    const int32_t *inputs, *targets;  // (n_rows): all documents of all steps
    const int64_t *starts;            // (n_documents + 1): their first rows, and the end
    int64_t n_steps;
    const int64_t *first_documents;  // (n_steps + 1): first document of each step, and the end
    const int64_t *n_targets;        // (n_steps): targets that count
    const double *learning_rates;    // (n_steps); NULL: only the gradient of the summed loss
    int64_t loss_only;               // without learning rates: compute no gradient either
    double weight_decay, clip;       // clip 0: do not clip
    int64_t n_updates;               // before the first step
    double beta1, beta2, eps;
    double muon_ratio, muon_momentum;  // learning rate of Muon: ratio times that of Adam
    int64_t muon_iterations;           // 0: Adam for the layers' matrices too
    int64_t muon_first, muon_every;    // of the matrices: the first to update, and every how many
    double *losses;  // out (n_steps): mean per target; the sum without learning rates
    double *norms;   // out (n_steps): norms of the gradients before clipping; unset without clip
    int64_t n_done;  // in and out: steps taken, all of them with a finite loss
} Training;

// A stream of text: its cache of keys and values.
typedef struct {
    void *memory;    // stream_bytes; zeros at first
    int64_t length;  // positions in the cache
} Stream;

// Arguments and results of `generate`.
typedef struct {
    void *memory;  // generation_bytes
    double temperature, top_p;
    int64_t top_k;             // 0: all
    const uint8_t *forbidden;  // (V)
    int64_t stop;              // the token that ends a sample
    int64_t n_samples, max_tokens;
    const double *uniforms;    // (n_samples, max_tokens)
    const real *first_logits;  // (V): logits after the prompt
    int32_t *tokens;           // out (n_samples, max_tokens)
    int64_t *lengths;          // out (n_samples); -1 where logits were not finite
    _Atomic int64_t *ended;    // any thread may set it, to end all samples where they are
} Generation;

#endif
