// Where everything lies: weights in the flat buffer, activations and packed weights in the workspace.
//
// Axes: R rows (positions of all documents of a chunk, one after another), C = n_embd, H = n_head,
// D = head_dim, V = vocab_size. Activations are row-major; rows are padded with zeros to whole
// vectors, and wide ones to an odd number of cache lines, so that a column does not fall into few
// sets of the cache.

#ifndef MICROGPT_LAYOUT_H
#define MICROGPT_LAYOUT_H

#include "matmul.h"

#define BLOCK_ROWS 64    // rows of a task: their activations stay in the second-level cache
#define CHUNK_ROWS 256   // rows that go through the model at once, unless one document is longer

// As `_Model` in native.py. Flat buffers have n_params elements, in the order of parameter_shapes.
typedef struct {
    int64_t vocab_size, n_embd, n_head, n_layer, block_size;
    real *weights, *grads, *adam_m, *adam_v;
} Model;

INLINE long head_dim(const Model *model) { return model->n_embd / model->n_head; }

// Offsets of the matrices in a flat buffer; each is (out, in).
INLINE long wte_at(const Model *m) { return 0 * m->n_embd; }                             // (V, C)
INLINE long wpe_at(const Model *m) { return m->vocab_size * m->n_embd; }        // (block_size, C)
INLINE long head_at(const Model *m) { return wpe_at(m) + m->block_size * m->n_embd; }    // (V, C)
INLINE long layer_at(const Model *m, long layer) {
    return head_at(m) + (m->vocab_size + layer * 12 * m->n_embd) * m->n_embd;
}
INLINE long qkv_at(const Model *m, long layer) { return layer_at(m, layer); }           // (3C, C)
INLINE long wo_at(const Model *m, long layer) {                                          // (C, C)
    return layer_at(m, layer) + 3 * m->n_embd * m->n_embd;
}
INLINE long fc1_at(const Model *m, long layer) {                                        // (4C, C)
    return layer_at(m, layer) + 4 * m->n_embd * m->n_embd;
}
INLINE long fc2_at(const Model *m, long layer) {                                        // (C, 4C)
    return layer_at(m, layer) + 8 * m->n_embd * m->n_embd;
}
INLINE long n_params(const Model *m) { return layer_at(m, m->n_layer); }


// Distance between rows of n elements.
INLINE long stride_of(long n) {
    const long line = 64 / sizeof(real);
    const long n_lines = (n + line - 1) / line;
    return (n_lines < 4 ? n_lines : n_lines | 1) * line;
}

// One layer's matrices in panels: `forward` for x @ w^T, `backward` for x @ w.
typedef struct {
    real *qkv, *wo, *fc1, *fc2;
} Packed;

// What backward needs of a layer's forward pass. In inference all layers share one of these.
typedef struct {
    real *normed_attn, *scale_attn;  // (R, C), (R)
    real *qkv;                       // (R, 3C)
    real *largest, *inverse;         // (H, R): per query the largest score, and 1 / sum of exp
    real *mixed;                     // (R, C)
    real *normed_mlp, *scale_mlp;    // (R, C), (R)
    real *hidden;                    // (R, 4C)
} Trace;

// What one thread needs for itself.
typedef struct {
    real *rows;                   // (BLOCK_ROWS, C)
    real *scores, *d_scores;      // (block_size, PANEL)
    real *q, *d_mixed, *product;  // (D, PANEL)
} Scratch;

typedef struct {
    long max_rows;
    long ld, ld_qkv, ld_hidden, ld_logits;  // strides of rows of C, 3C, 4C, V elements
    real *x;                                // (R, C): the residual stream
    real *embedded, *scale_embedded;        // (R, C), (R)
    real *logits;                           // (R, V); then their gradient
    double *nll;                            // (R)
    real *d_x, *d_middle, *d_mixed;         // (R, C)
    real *d_hidden, *d_qkv;                 // (R, 4C), (R, 3C)
    double *squares;                        // (slabs): partial sums of squared gradients
    real *head_forward, *head_backward;
    Packed *forward, *backward;  // (n_layer)
    Trace *traces;               // (n_layer)
    Scratch *scratch;            // (n_members)
} Workspace;

#define SLAB 4096  // elements of a flat buffer that are one task

typedef struct {
    char *next;  // NULL: only count
    long n_bytes;
} Arena;

static void *take(Arena *arena, long n_bytes) {
    n_bytes = round_up(n_bytes, 64);
    void *taken = arena->next ? arena->next + arena->n_bytes : NULL;
    arena->n_bytes += n_bytes;
    return taken;
}

static real *take_reals(Arena *arena, long n) { return take(arena, n * (long)sizeof(real)); }

static real *take_panels(Arena *arena, long K, long N) {
    return take_reals(arena, K * panels(N) * PANEL);
}

static Packed take_packed(Arena *arena, long n_embd, int is_forward) {
    const long C = n_embd;
    Packed packed;
    packed.qkv = is_forward ? take_panels(arena, C, 3 * C) : take_panels(arena, 3 * C, C);
    packed.wo = take_panels(arena, C, C);
    packed.fc1 = is_forward ? take_panels(arena, C, 4 * C) : take_panels(arena, 4 * C, C);
    packed.fc2 = is_forward ? take_panels(arena, 4 * C, C) : take_panels(arena, C, 4 * C);
    return packed;
}

static Trace take_trace(Arena *arena, const Model *m, const Workspace *w) {
    Trace trace;
    trace.normed_attn = take_reals(arena, w->max_rows * w->ld);
    trace.scale_attn = take_reals(arena, w->max_rows);
    trace.qkv = take_reals(arena, w->max_rows * w->ld_qkv);
    trace.largest = take_reals(arena, w->max_rows * m->n_head);
    trace.inverse = take_reals(arena, w->max_rows * m->n_head);
    trace.mixed = take_reals(arena, w->max_rows * w->ld);
    trace.normed_mlp = take_reals(arena, w->max_rows * w->ld);
    trace.scale_mlp = take_reals(arena, w->max_rows);
    trace.hidden = take_reals(arena, w->max_rows * w->ld_hidden);
    return trace;
}

static Scratch take_scratch(Arena *arena, const Model *m, const Workspace *w) {
    Scratch scratch;
    scratch.rows = take_reals(arena, BLOCK_ROWS * w->ld);
    scratch.scores = take_reals(arena, m->block_size * PANEL);
    scratch.d_scores = take_reals(arena, m->block_size * PANEL);
    scratch.q = take_reals(arena, head_dim(m) * PANEL);
    scratch.d_mixed = take_reals(arena, head_dim(m) * PANEL);
    scratch.product = take_reals(arena, head_dim(m) * PANEL);
    return scratch;
}

// Lays a workspace out at `memory` (zeros, aligned to 64 bytes) and returns its size in bytes; only
// counts if `memory` is NULL, and then `workspace` is not to be used.
static long lay_out(Workspace *w, void *memory, const Model *m, long max_rows, int n_members,
                    int is_training) {
    Arena arena = {memory, 0};
    const long n_layer = m->n_layer, C = m->n_embd;
    w->max_rows = max_rows;
    w->ld = stride_of(C);
    w->ld_qkv = stride_of(3 * C);
    w->ld_hidden = stride_of(4 * C);
    w->ld_logits = stride_of(m->vocab_size);
    w->forward = take(&arena, n_layer * (long)sizeof(Packed));
    w->backward = take(&arena, n_layer * (long)sizeof(Packed));
    w->traces = take(&arena, n_layer * (long)sizeof(Trace));
    w->x = take_reals(&arena, max_rows * w->ld);
    w->embedded = take_reals(&arena, max_rows * w->ld);
    w->scale_embedded = take_reals(&arena, max_rows);
    w->head_forward = take_panels(&arena, C, m->vocab_size);
    for (long i = 0; i < n_layer; i++) {
        const Packed packed = take_packed(&arena, C, 1);
        if (memory) w->forward[i] = packed;
    }
    Trace trace;
    for (long i = 0; i < n_layer; i++) {
        if (i == 0 || is_training) trace = take_trace(&arena, m, w);
        if (memory) w->traces[i] = trace;
    }
    if (is_training) {
        w->logits = take_reals(&arena, max_rows * w->ld_logits);
        w->nll = take(&arena, max_rows * (long)sizeof(double));
        w->d_x = take_reals(&arena, max_rows * w->ld);
        w->d_middle = take_reals(&arena, max_rows * w->ld);
        w->d_mixed = take_reals(&arena, max_rows * w->ld);
        w->d_hidden = take_reals(&arena, max_rows * w->ld_hidden);
        w->d_qkv = take_reals(&arena, max_rows * w->ld_qkv);
        w->squares = take(&arena, (n_params(m) / SLAB + 1) * (long)sizeof(double));
        w->head_backward = take_panels(&arena, m->vocab_size, C);
        for (long i = 0; i < n_layer; i++) {
            const Packed packed = take_packed(&arena, C, 0);
            if (memory) w->backward[i] = packed;
        }
    }
    // Last, so that the rest lies where it does for any number of threads.
    w->scratch = take(&arena, n_members * (long)sizeof(Scratch));
    for (int i = 0; i < n_members; i++) {
        const Scratch scratch = take_scratch(&arena, m, w);
        if (memory) w->scratch[i] = scratch;
    }
    take_reals(&arena, PANEL);  // vectors that begin in the last row may end beyond it
    return arena.n_bytes;
}

#endif
