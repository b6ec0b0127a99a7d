// Where arrays are: weights in the flat buffer, activations and packed weights in a workspace, keys
// and values in the memory of a stream.
//
// Axes: R rows (positions of all documents of a chunk, one after another), C = n_embd, H = n_head,
// D = head_dim, V = vocab_size. Activations are row-major. Rows are padded with zeros to whole
// vectors; wide rows take an odd number of cache lines, because with an even number a column would
// use few sets of the cache.

#ifndef MICROGPT_LAYOUT_H
#define MICROGPT_LAYOUT_H

#include "interface.h"
#include "matmul.h"

#define LINE_BYTES 64   // of a cache line; memory is aligned to it
#define BLOCK_ROWS 64   // rows of one task: their activations stay in the second-level cache
#define CHUNK_ROWS 256  // rows that pass through the model together, unless a document is longer
#define SLAB 4096       // elements of a flat buffer that are one task

INLINE isize head_dim(const Model *m) { return m->n_embd / m->n_head; }

// Offsets of the matrices in a flat buffer; each matrix is (out, in). The first one is wte (V, C).
INLINE isize wpe_at(const Model *m) { return m->vocab_size * m->n_embd; }      // (block_size, C)
INLINE isize head_at(const Model *m) { return wpe_at(m) + m->block_size * m->n_embd; }  // (V, C)
INLINE isize layer_at(const Model *m, isize layer) {
    return head_at(m) + (m->vocab_size + layer * 12 * m->n_embd) * m->n_embd;
}
INLINE isize qkv_at(const Model *m, isize layer) { return layer_at(m, layer); }        // (3C, C)
INLINE isize wo_at(const Model *m, isize layer) {                                       // (C, C)
    return layer_at(m, layer) + 3 * m->n_embd * m->n_embd;
}
INLINE isize fc1_at(const Model *m, isize layer) {                                     // (4C, C)
    return layer_at(m, layer) + 4 * m->n_embd * m->n_embd;
}
INLINE isize fc2_at(const Model *m, isize layer) {                                     // (C, 4C)
    return layer_at(m, layer) + 8 * m->n_embd * m->n_embd;
}
INLINE isize n_params(const Model *m) { return layer_at(m, m->n_layer); }

// One layer's matrices in panels: `forward` for x @ w^T, `backward` for x @ w.
typedef struct {
    real *qkv, *wo, *fc1, *fc2;
} Packed;

// The activations of a layer that backward needs. In inference all layers share one Trace.
typedef struct {
    real *normed_attn, *scale_attn;  // (R, C), (R)
    real *qkv;                       // (R, 3C)
    real *largest, *inverse;         // (H, R): per query the largest score, and 1 / sum of exp
    real *mixed;                     // (R, C)
    real *normed_mlp, *scale_mlp;    // (R, C), (R)
    real *hidden;                    // (R, 4C)
} Trace;

// Arrays that each thread has for itself.
typedef struct {
    real *rows;                   // (BLOCK_ROWS, C)
    real *scores, *d_scores;      // (block_size, PANEL)
    real *q, *d_mixed, *product;  // (D, PANEL)
} Scratch;

// Arrays of each thread for the update of one matrix by Muon, held with R >= C: R is up to 4C.
typedef struct {
    isize ld, ld_wide;                           // strides of rows of C, 4C elements
    real *x, *other;                             // (4C, C)
    real *wide;                                  // (C, 4C)
    real *gram, *polynomial, *factor, *product;  // (C, C)
} MuonScratch;

typedef struct {
    isize max_rows;
    isize ld, ld_qkv, ld_hidden, ld_logits;  // strides of rows of C, 3C, 4C, V elements
    real *x;                                 // (R, C): the residual stream
    real *embedded, *scale_embedded;         // (R, C), (R)
    Packed *forward, *backward;              // (n_layer)
    Trace *traces;                           // (n_layer)
    real *head_forward, *head_backward;      // lm_head in panels
    // In training:
    real *logits;                    // (R, V); then their exp; then their gradient
    real *sum_exp;                   // (R)
    double *nll;                     // (R)
    real *d_x, *d_middle, *d_mixed;  // (R, C)
    real *d_hidden, *d_qkv;          // (R, 4C), (R, 3C)
    double *squares;                 // (slabs): partial sums of squared gradients
    Scratch *scratch;                // (n_members)
    MuonScratch *muon;               // (n_members)
} Workspace;

// The memory of a stream. Keys and values are stored feature by feature, so that attention loads
// LANES positions at once; the other arrays are for the token that is decoded.
typedef struct {
    isize stride;              // of a row of keys or values: block_size in whole cache lines
    real *keys, *values;       // (n_layer, C, stride)
    real *x, *normed, *mixed;  // (C)
    real *qkv, *hidden;        // (3C), (4C)
    real *scores;              // (stride)
} Cache;

// ---------------------------------------------------------------- laying out memory

typedef struct {
    char *start;  // NULL: only count
    isize n_bytes;
} Arena;

static void *take(Arena *arena, isize n_bytes) {
    void *taken = arena->start ? arena->start + arena->n_bytes : NULL;
    arena->n_bytes += round_up(n_bytes, LINE_BYTES);
    return taken;
}

static real *take_reals(Arena *arena, isize n) { return take(arena, n * (isize)sizeof(real)); }

// Panels of a matrix (n_out, n_in), for x @ w^T or x @ w.
static real *take_panels(Arena *arena, isize n_out, isize n_in, int is_forward) {
    const isize K = is_forward ? n_in : n_out, N = is_forward ? n_out : n_in;
    return take_reals(arena, K * panels(N) * PANEL);
}

static Packed take_packed(Arena *arena, isize C, int is_forward) {
    Packed packed;
    packed.qkv = take_panels(arena, 3 * C, C, is_forward);
    packed.wo = take_panels(arena, C, C, is_forward);
    packed.fc1 = take_panels(arena, 4 * C, C, is_forward);
    packed.fc2 = take_panels(arena, C, 4 * C, is_forward);
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

static MuonScratch take_muon_scratch(Arena *arena, const Model *m, const Workspace *w) {
    const isize C = m->n_embd;
    MuonScratch scratch = {.ld = w->ld, .ld_wide = w->ld_hidden};
    scratch.x = take_reals(arena, 4 * C * scratch.ld);
    scratch.other = take_reals(arena, 4 * C * scratch.ld);
    scratch.wide = take_reals(arena, C * scratch.ld_wide);
    scratch.gram = take_reals(arena, C * scratch.ld);
    scratch.polynomial = take_reals(arena, C * scratch.ld);
    scratch.factor = take_reals(arena, C * scratch.ld);
    scratch.product = take_reals(arena, C * scratch.ld);
    return scratch;
}

INLINE isize whole_lines(isize n) { return round_up(n, LINE_BYTES / (isize)sizeof(real)); }

// Distance between rows of n elements.
INLINE isize row_stride(isize n) {
    const isize line = whole_lines(1), n_lines = whole_lines(n) / line;
    return (n_lines < 4 ? n_lines : n_lines | 1) * line;
}

static void take_training_arrays(Arena *arena, const Model *m, Workspace *w) {
    w->logits = take_reals(arena, w->max_rows * w->ld_logits);
    w->sum_exp = take_reals(arena, w->max_rows);
    w->nll = take(arena, w->max_rows * (isize)sizeof(double));
    w->d_x = take_reals(arena, w->max_rows * w->ld);
    w->d_middle = take_reals(arena, w->max_rows * w->ld);
    w->d_mixed = take_reals(arena, w->max_rows * w->ld);
    w->d_hidden = take_reals(arena, w->max_rows * w->ld_hidden);
    w->d_qkv = take_reals(arena, w->max_rows * w->ld_qkv);
    w->squares = take(arena, (n_params(m) / SLAB + 1) * (isize)sizeof(double));
    w->head_backward = take_panels(arena, m->vocab_size, m->n_embd, 0);
    for (isize i = 0; i < m->n_layer; i++) {
        const Packed packed = take_packed(arena, m->n_embd, 0);
        if (arena->start) w->backward[i] = packed;
    }
}

// Lays a workspace out at `memory`, zeros aligned to LINE_BYTES, and returns its size in bytes.
// With NULL for `memory` it only counts, and `w` must not be used.
static isize lay_out(Workspace *w, void *memory, const Model *m, isize max_rows, isize n_members,
                     int is_training) {
    Arena arena = {memory, 0};
    const isize n_layer = m->n_layer, C = m->n_embd;
    w->max_rows = max_rows;
    w->ld = row_stride(C);
    w->ld_qkv = row_stride(3 * C);
    w->ld_hidden = row_stride(4 * C);
    w->ld_logits = row_stride(m->vocab_size);
    w->forward = take(&arena, n_layer * (isize)sizeof(Packed));
    w->backward = take(&arena, n_layer * (isize)sizeof(Packed));
    w->traces = take(&arena, n_layer * (isize)sizeof(Trace));
    w->x = take_reals(&arena, max_rows * w->ld);
    w->embedded = take_reals(&arena, max_rows * w->ld);
    w->scale_embedded = take_reals(&arena, max_rows);
    w->head_forward = take_panels(&arena, m->vocab_size, C, 1);
    for (isize i = 0; i < n_layer; i++) {
        const Packed packed = take_packed(&arena, C, 1);
        if (memory) w->forward[i] = packed;
    }
    Trace trace;
    for (isize i = 0; i < n_layer; i++) {
        if (i == 0 || is_training) trace = take_trace(&arena, m, w);
        if (memory) w->traces[i] = trace;
    }
    if (is_training) take_training_arrays(&arena, m, w);
    // Last, so that all other arrays are at the same place for any number of threads.
    w->scratch = take(&arena, n_members * (isize)sizeof(Scratch));
    for (isize i = 0; i < n_members; i++) {
        const Scratch scratch = take_scratch(&arena, m, w);
        if (memory) w->scratch[i] = scratch;
    }
    w->muon = take(&arena, is_training ? n_members * (isize)sizeof(MuonScratch) : 0);
    for (isize i = 0; is_training && i < n_members; i++) {
        const MuonScratch scratch = take_muon_scratch(&arena, m, w);
        if (memory) w->muon[i] = scratch;
    }
    take_reals(&arena, PANEL);  // a vector that begins in the last row may end after it
    return arena.n_bytes;
}

// Training: rows that the workspace has room for.
INLINE isize training_rows(const Model *m) {
    return m->block_size > CHUNK_ROWS ? m->block_size : CHUNK_ROWS;
}

// Lays out the memory of a stream, as `lay_out` does a workspace.
static isize lay_out_cache(Cache *cache, void *memory, const Model *m) {
    Arena arena = {memory, 0};
    const isize C = m->n_embd;
    cache->stride = whole_lines(m->block_size);
    cache->keys = take_reals(&arena, m->n_layer * C * cache->stride);
    cache->values = take_reals(&arena, m->n_layer * C * cache->stride);
    cache->x = take_reals(&arena, C);
    cache->normed = take_reals(&arena, C);
    cache->mixed = take_reals(&arena, C);
    cache->qkv = take_reals(&arena, 3 * C);
    cache->hidden = take_reals(&arena, 4 * C);
    cache->scores = take_reals(&arena, cache->stride);
    return arena.n_bytes;
}

#endif
