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
#define MAX_SHORT 16    // positions of a short text; see short_attention.h

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
    real *scores;                 // (block_size, PANEL); or (H, block_size) of one query
    real *q, *product;            // (D, PANEL); or (C) of one query
    // In training:
    real *rows;      // (BLOCK_ROWS, C)
    real *d_scores;  // (block_size, PANEL)
    real *d_mixed;   // (D, PANEL)
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
    real *forward, *backward;                // weights in panels; see `panels_of`
    Trace *traces;                           // (n_layer)
    real *logits;                            // (R, V); in training then their exp, then gradient
    Scratch *scratch;                        // (n_members)
    // In training:
    real *sum_exp;                   // (R)
    double *nll;                     // (R)
    real *d_x, *d_middle, *d_mixed;  // (R, C)
    real *d_hidden, *d_qkv;          // (R, 4C), (R, 3C)
    double *squares;                 // (slabs): partial sums of squared gradients
    MuonScratch *muon;               // (n_members)
} Workspace;

// Keys and values of a text that is read, and the number of its positions. Values are rows of
// features. Keys are panels of positions, those of each head as `packed(keys, D)` takes them, so
// that the scores of LANES positions are computed at once; those of a short block (see
// `is_short_block`) are rows of features too.
typedef struct {
    isize length;
    isize ld;         // of rows of C
    isize head_keys;  // elements of a head's panels; 0: rows
    isize layer_keys, layer_values;  // elements of a layer
    real *keys, *values;
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

INLINE isize whole_lines(isize n) { return round_up(n, LINE_BYTES / (isize)sizeof(real)); }

// Distance between rows of n elements.
INLINE isize row_stride(isize n) {
    const isize line = whole_lines(1), n_lines = whole_lines(n) / line;
    return (n_lines < 4 ? n_lines : n_lines | 1) * line;
}

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

// All weights in panels: lm_head, then layer by layer.
static real *take_all_panels(Arena *arena, const Model *m, int is_forward) {
    real *head = take_panels(arena, m->vocab_size, m->n_embd, is_forward);
    for (isize i = 0; i < m->n_layer; i++) take_packed(arena, m->n_embd, is_forward);
    return head;
}

// The matrices of a layer in `taken`, made by `take_all_panels`.
static Packed panels_of(const Model *m, real *taken, isize layer, int is_forward) {
    Arena head = {0}, one = {0};
    take_panels(&head, m->vocab_size, m->n_embd, is_forward);
    take_packed(&one, m->n_embd, is_forward);
    Arena arena = {(char *)taken, head.n_bytes + layer * one.n_bytes};
    return take_packed(&arena, m->n_embd, is_forward);
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

static Scratch take_scratch(Arena *arena, const Model *m, const Workspace *w, int is_training) {
    const isize lanes = head_dim(m) * PANEL;
    Scratch scratch = {0};
    const isize T = m->block_size;
    const isize n_rows = m->n_head * panels(T) > T ? m->n_head * panels(T) : T;
    scratch.scores = take_reals(arena, n_rows * PANEL);
    scratch.q = take_reals(arena, lanes > w->ld ? lanes : w->ld);
    scratch.product = take_reals(arena, lanes > w->ld ? lanes : w->ld);
    if (!is_training) return scratch;
    scratch.rows = take_reals(arena, BLOCK_ROWS * w->ld);
    scratch.d_scores = take_reals(arena, m->block_size * PANEL);
    scratch.d_mixed = take_reals(arena, lanes);
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

static void take_training_arrays(Arena *arena, const Model *m, Workspace *w) {
    w->sum_exp = take_reals(arena, w->max_rows);
    w->nll = take(arena, w->max_rows * (isize)sizeof(double));
    w->d_x = take_reals(arena, w->max_rows * w->ld);
    w->d_middle = take_reals(arena, w->max_rows * w->ld);
    w->d_mixed = take_reals(arena, w->max_rows * w->ld);
    w->d_hidden = take_reals(arena, w->max_rows * w->ld_hidden);
    w->d_qkv = take_reals(arena, w->max_rows * w->ld_qkv);
    w->squares = take(arena, (n_params(m) / SLAB + 1) * (isize)sizeof(double));
    w->forward = take_all_panels(arena, m, 1);
    w->backward = take_all_panels(arena, m, 0);
}

// Lays a workspace out at `memory`, aligned to LINE_BYTES, and returns its size in bytes. With NULL
// for `memory` it only counts, and `w` must not be used. In training the memory holds zeros; in
// inference anything, and `forward` is the caller's.
static isize lay_out(Workspace *w, void *memory, const Model *m, isize max_rows, isize n_members,
                     int is_training) {
    Arena arena = {memory, 0};
    const isize n_layer = m->n_layer, C = m->n_embd;
    w->max_rows = max_rows;
    w->ld = row_stride(C);
    w->ld_qkv = row_stride(3 * C);
    w->ld_hidden = row_stride(4 * C);
    w->ld_logits = row_stride(m->vocab_size);
    w->traces = take(&arena, n_layer * (isize)sizeof(Trace));
    w->x = take_reals(&arena, max_rows * w->ld);
    w->embedded = take_reals(&arena, max_rows * w->ld);
    w->scale_embedded = take_reals(&arena, max_rows);
    Trace trace;
    for (isize i = 0; i < n_layer; i++) {
        if (i == 0 || is_training) trace = take_trace(&arena, m, w);
        if (memory) w->traces[i] = trace;
    }
    w->logits = take_reals(&arena, max_rows * w->ld_logits);
    if (is_training) take_training_arrays(&arena, m, w);
    // Last, so that all other arrays are at the same place for any number of threads.
    w->scratch = take(&arena, n_members * (isize)sizeof(Scratch));
    for (isize i = 0; i < n_members; i++) {
        const Scratch scratch = take_scratch(&arena, m, w, is_training);
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

// Whether vectors hold whole heads, and rows whole vectors.
INLINE int heads_fill_vectors(const Model *m) {
    return LANES % head_dim(m) == 0 && m->n_embd % LANES == 0;
}

// Whether short_attention.h takes texts of this model, whatever their length.
INLINE int is_short_block(const Model *m) {
    return m->block_size <= MAX_SHORT && heads_fill_vectors(m);
}

// Lays out the memory of a stream, zeros at first, as `lay_out` does a workspace.
static isize lay_out_cache(Cache *cache, void *memory, const Model *m, isize length) {
    Arena arena = {memory, 0};
    const isize T = m->block_size;
    cache->length = length;
    cache->ld = row_stride(m->n_embd);
    cache->head_keys = is_short_block(m) ? 0 : panels(T) * PANEL * head_dim(m);
    cache->layer_keys = cache->head_keys ? m->n_head * cache->head_keys : T * cache->ld;
    cache->layer_values = T * cache->ld;
    cache->keys = take_reals(&arena, m->n_layer * cache->layer_keys);
    cache->values = take_reals(&arena, m->n_layer * cache->layer_values);
    take_reals(&arena, PANEL);  // a vector that begins in the last row may end after it
    return arena.n_bytes;
}

#endif
