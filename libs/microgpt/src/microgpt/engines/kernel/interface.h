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

// A stream of text: its cache of keys and values, and the arguments of `extend`.
typedef struct {
    void *memory;        // stream_bytes
    int64_t length;      // in and out: positions in the cache
    const void *panels;  // panels_bytes, written by `pack`
    void *workspace;     // extension_bytes
    int64_t n_members;
    const int32_t *tokens;  // (n_tokens)
    int64_t n_tokens;
    real *logits;  // out (n_logits, V): after each of the last tokens
    int64_t n_logits;
} Stream;

// A text that `generate` continues, and how its tokens are chosen.
typedef struct {
    void *memory;            // its cache; NULL: begins as a copy of `prompt`
    const void *prompt;      // the cache of a stream
    int64_t length;          // in and out: positions in the cache
    real *logits;            // (V, and a vector more), of the next token: in; with memory out too
    const double *uniforms;  // (max_tokens): draws in [0, 1)
    int32_t *tokens;         // out (max_tokens)
    real *chosen_from;       // out (max_tokens, V): the logits of each token; NULL: not kept
    int64_t n_tokens, max_tokens;  // chosen so far, in and out; at most
    int64_t state;                 // in and out: a State
    double temperature, top_p;
    int64_t top_k;             // 0: all
    const int32_t *forbidden;  // (n_forbidden): tokens that are never chosen
    int64_t n_forbidden;
    int64_t stop;            // the token that ends the text; -1: none
    _Atomic int64_t *ended;  // any thread may set it, to end the text where it is
} Text;

enum State { RUNNING, FINISHED, NOT_FINITE };

#endif
