// Operations on rows of activations, each with its backward.
//
// Only attention looks across rows. All other operations compute each row from itself, and so run
// fused over blocks of rows: rows_to_qkv, rows_through_mlp and rows_through_loss.

#ifndef MICROGPT_ROWS_H
#define MICROGPT_ROWS_H

#include <string.h>

#include "layout.h"

#define RMSNORM_EPS REAL(1e-5)
#define GRADIENT_TASK 16384   // elements of a gradient that are one task
#define GRADIENT_COLUMNS 256  // at most: a panel of a wide x serves 64 rows, not a few

// Consecutive documents that pass through the model together.
typedef struct {
    isize first_row, n_rows;            // in inputs and targets
    isize first_document, n_documents;  // in starts
} Chunk;

// Arguments of one pass over a batch or, in inference, over the next tokens of some texts.
typedef struct Pass {
    const Model *model;
    const Workspace *workspace;
    const int32_t *inputs, *targets;  // (rows of all documents); no targets in inference
    const int64_t *starts;            // (n_documents + 1): first row of each document, and the end
    Chunk chunk;
    real loss_scale;     // factor of the gradient of the summed loss
    int accumulate;      // add to the gradients of earlier chunks
    int loss_only;       // stop at the loss
    const Cache *caches;  // inference: of each document, receives keys and values; else NULL
    isize n_skipped;      // rows of the workspace before those of the pass
    const struct Pass *last;  // for the last layer after its keys and values: the rows that count
} Pass;

// A block of rows of a chunk.
typedef struct {
    isize first, n;
} Rows;

// Position of a document's first row.
INLINE isize first_position(const Pass *pass, isize document) {
    return pass->caches ? pass->caches[document].length : 0;
}

// ---------------------------------------------------------------- products with weights

// y (n, n_out) = or += x (n, n_in) @ w^T, and zeros up to the next whole vector; with w packed for
// backward x @ w, the gradient of x from that of y.
INLINE void linear(isize n, isize n_in, isize n_out, const real *x, isize ld_x,
                   const real *panels_of_w, Output y) {
    matmul(n, round_up(n_out, LANES), n_in, rows_of(x, ld_x), packed(panels_of_w, n_in), y);
}

// d_w (n_out, n_in) = or += d_y (R, n_out)^T @ x (R, n_in), the gradient of w in y = x @ w^T
typedef struct {
    const real *d_y;
    isize ld_y, n_out;
    const real *x;
    isize ld_x, n_in;
    isize at;  // offset of w in the flat buffers
} Gradient;

// Rows and columns of a gradient that are one task; tasks are numbered down the columns.
INLINE isize gradient_columns(const Gradient *g) { return min_of(g->n_in, GRADIENT_COLUMNS); }
INLINE isize gradient_rows(const Gradient *g) {
    return round_up(GRADIENT_TASK / gradient_columns(g), TILE_ROWS);
}
INLINE isize tasks_down(const Gradient *g) {
    return (g->n_out + gradient_rows(g) - 1) / gradient_rows(g);
}
INLINE isize gradient_tasks(const Gradient *g) {
    return tasks_down(g) * ((g->n_in + gradient_columns(g) - 1) / gradient_columns(g));
}

static void linear_weight_gradient(const Pass *pass, const Gradient *g, isize task) {
    const isize row = task % tasks_down(g) * gradient_rows(g);
    const isize column = task / tasks_down(g) * gradient_columns(g);
    real *d_w = pass->model->grads + g->at + row * g->n_in + column;
    matmul(min_of(gradient_rows(g), g->n_out - row), min_of(gradient_columns(g), g->n_in - column),
           pass->chunk.n_rows, columns_of(g->d_y + row, g->ld_y), unpacked(g->x + column, g->ld_x),
           (Output){d_w, g->n_in, pass->accumulate});
}

// ---------------------------------------------------------------- one row at a time

// y = x * scale, scale[i] = 1 / root mean square of row i; x, y (n, C)
static void rmsnorm(const real *x, isize n, isize C, isize ld, real *y, real *scale) {
    for (isize i = 0; i < n; i++, x += ld, y += ld) {
        vector squares = splat(0);
        for (isize c = 0; c < C; c += LANES) squares += load(x + c) * load(x + c);
        scale[i] = 1 / sqrt_of_real(sum_of(squares) / (real)C + RMSNORM_EPS);
        for (isize c = 0; c < C; c += LANES) store(y + c, load(x + c) * scale[i]);
    }
}

// d_x = d_residual + gradient of the norm, from d_y and y = x * scale; all (n, C)
static void rmsnorm_backward(const real *d_y, const real *y, const real *scale,
                             const real *d_residual, isize n, isize C, isize ld, real *d_x) {
    for (isize i = 0; i < n; i++, d_y += ld, y += ld, d_residual += ld, d_x += ld) {
        vector products = splat(0);
        for (isize c = 0; c < C; c += LANES) products += load(d_y + c) * load(y + c);
        const real projection = sum_of(products) / (real)C;
        for (isize c = 0; c < C; c += LANES)
            store(d_x + c, load(d_residual + c) +
                               (load(d_y + c) - load(y + c) * projection) * scale[i]);
    }
}

// x (n) becomes max(x, 0); NaN stays NaN
INLINE void relu(real *x, isize n) {
    for (isize i = 0; i < n; i += LANES)
        store(x + i, choose(load(x + i) < 0, splat(0), load(x + i)));
}

// d (n), the gradient of y = relu(x), becomes that of x
INLINE void relu_backward(const real *y, isize n, real *d) {
    for (isize i = 0; i < n; i += LANES)
        store(d + i, choose(load(y + i) > 0, load(d + i), splat(0)));
}

// nll (n) from logits (n, V), which become exp(logit - largest); sum_exp (n): their sums
static void cross_entropy(real *logits, isize n, isize V, isize ld, const int32_t *targets,
                          real *sum_exp, double *nll) {
    for (isize i = 0; i < n; i++, logits += ld) {
        nll[i] = 0;
        if (targets[i] < 0) continue;
        for (isize j = V; j < round_up(V, LANES); j++) logits[j] = MINUS_INFINITY;
        vector tops = load(logits);
        for (isize j = LANES; j < V; j += LANES) tops = larger(load(logits + j), tops);
        const real top = max_of(tops);
        const real target = logits[targets[i]] - top;
        vector sums = splat(0);
        for (isize j = 0; j < V; j += LANES) {
            const vector e = exp_of(load(logits + j) - top);
            store(logits + j, e);
            sums += e;
        }
        sum_exp[i] = sum_of(sums);
        nll[i] = log((double)sum_exp[i]) - (double)target;
    }
}

// exp (n, V), left by cross_entropy, becomes loss_scale times the gradient of the summed nll
static void cross_entropy_backward(real *exp, isize n, isize V, isize ld, const int32_t *targets,
                                   const real *sum_exp, real loss_scale) {
    for (isize i = 0; i < n; i++, exp += ld) {
        if (targets[i] < 0) {
            for (isize j = 0; j < V; j += LANES) store(exp + j, splat(0));
            continue;
        }
        const real factor = loss_scale / sum_exp[i];
        for (isize j = 0; j < V; j += LANES) store(exp + j, load(exp + j) * factor);
        exp[targets[i]] -= loss_scale;
    }
}

// x (n, C) = wte[token] + wpe[position]
static void embed(const Pass *pass, Rows rows, real *x) {
    const Model *m = pass->model;
    const isize C = m->n_embd;
    isize document = pass->chunk.first_document;
    for (isize i = 0; i < rows.n; i++, x += pass->workspace->ld) {
        const isize at = pass->chunk.first_row + rows.first + i;
        while (at >= pass->starts[document + 1]) document++;
        const isize position = first_position(pass, document) + at - pass->starts[document];
        const real *token = m->weights + pass->inputs[at] * C;
        const real *place = m->weights + wpe_at(m) + position * C;
        for (isize c = 0; c < C; c++) x[c] = token[c] + place[c];
        for (isize c = C; c < round_up(C, LANES); c++) x[c] = 0;  // NaN if the model has diverged
    }
}

// d_wte, d_wpe = or += d_x (R, C), for the columns of one task: a panel
static void embed_backward(const Pass *pass, isize task) {
    const Model *m = pass->model;
    const Chunk *chunk = &pass->chunk;
    const isize C = m->n_embd, first = task * PANEL, n = min_of(PANEL, C - first);
    real *d_wte = m->grads + first, *d_wpe = m->grads + wpe_at(m) + first;
    if (!pass->accumulate) {
        for (isize i = 0; i < m->vocab_size; i++)
            for (isize c = 0; c < n; c++) d_wte[i * C + c] = 0;
        for (isize i = 0; i < m->block_size; i++)
            for (isize c = 0; c < n; c++) d_wpe[i * C + c] = 0;
    }
    const real *d_x = pass->workspace->d_x + first;
    isize document = chunk->first_document;
    for (isize i = chunk->first_row; i < chunk->first_row + chunk->n_rows; i++) {
        while (i >= pass->starts[document + 1]) document++;
        real *token = d_wte + pass->inputs[i] * C;
        real *place = d_wpe + (i - pass->starts[document]) * C;
        for (isize c = 0; c < n; c++) {
            token[c] += d_x[c];
            place[c] += d_x[c];
        }
        d_x += pass->workspace->ld;
    }
}

// ---------------------------------------------------------------- blocks of rows

// From tokens to the residual stream: embedding, then norm.
static void rows_from_tokens(const Pass *pass, Rows rows) {
    const Workspace *w = pass->workspace;
    const isize C = pass->model->n_embd, at = rows.first * w->ld;
    embed(pass, rows, w->x + at);
    rmsnorm(w->x + at, rows.n, C, w->ld, w->embedded + at, w->scale_embedded + rows.first);
    for (isize i = at; i < at + rows.n * w->ld; i += LANES) store(w->x + i, load(w->embedded + i));
}

// Through the norm: d_x becomes the gradient of the embedding; see embed_backward.
static void rows_from_tokens_backward(const Pass *pass, Rows rows, const Scratch *scratch) {
    const Workspace *w = pass->workspace;
    const isize C = pass->model->n_embd, at = rows.first * w->ld;
    real *zeros = scratch->rows;  // this norm has no residual beside it
    for (isize i = 0; i < rows.n * w->ld; i += LANES) store(zeros + i, splat(0));
    rmsnorm_backward(w->d_x + at, w->embedded + at, w->scale_embedded + rows.first, zeros, rows.n,
                     C, w->ld, w->d_x + at);
}

// Inference: writes keys and values of qkv (n, 3C) to the caches.
static void extend_caches(const Pass *pass, isize layer, Rows rows, const real *qkv) {
    const isize C = pass->model->n_embd, D = head_dim(pass->model);
    isize document = 0;
    for (isize at = rows.first; at < rows.first + rows.n; at++, qkv += pass->workspace->ld_qkv) {
        while (at >= pass->starts[document + 1]) document++;
        const Cache *cache = &pass->caches[document];
        const isize position = cache->length + at - pass->starts[document];
        real *keys = cache->keys + layer * cache->layer_keys;
        real *values = cache->values + layer * cache->layer_values;
        const isize n_bytes = C * (isize)sizeof(real), row = position * cache->ld;
        memcpy(values + row, qkv + 2 * C, (size_t)n_bytes);
        if (!cache->head_keys) memcpy(keys + row, qkv + C, (size_t)n_bytes);
        for (isize c = 0; cache->head_keys && c < C; c += D) {
            real *key = in_panel(keys + c / D * cache->head_keys, D, position);
            for (isize d = 0; d < D; d++) key[d * PANEL] = qkv[C + c + d];
        }
    }
}

// Norm, then queries, keys and values: x -> qkv.
static void rows_to_qkv(const Pass *pass, isize layer, Rows rows) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const isize C = pass->model->n_embd, at = rows.first * w->ld;
    real *qkv = t->qkv + rows.first * w->ld_qkv;
    rmsnorm(w->x + at, rows.n, C, w->ld, t->normed_attn + at, t->scale_attn + rows.first);
    linear(rows.n, C, 3 * C, t->normed_attn + at, w->ld,
           panels_of(pass->model, w->forward, layer, 1).qkv, into(qkv, w->ld_qkv));
    if (pass->caches) extend_caches(pass, layer, rows, qkv);
}

// d_qkv, d_middle -> d_x
static void rows_to_qkv_backward(const Pass *pass, isize layer, Rows rows, const Scratch *scratch) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const isize C = pass->model->n_embd, at = rows.first * w->ld;
    linear(rows.n, 3 * C, C, w->d_qkv + rows.first * w->ld_qkv, w->ld_qkv,
           panels_of(pass->model, w->backward, layer, 0).qkv, into(scratch->rows, w->ld));
    rmsnorm_backward(scratch->rows, t->normed_attn + at, t->scale_attn + rows.first,
                     w->d_middle + at, rows.n, C, w->ld, w->d_x + at);
}

// From the heads' outputs through the rest of the block: mixed, x -> x.
static void rows_through_mlp(const Pass *pass, isize layer, Rows rows) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const Packed p = panels_of(pass->model, w->forward, layer, 1);
    const isize n = rows.n, C = pass->model->n_embd, at = rows.first * w->ld;
    real *x = w->x + at, *hidden = t->hidden + rows.first * w->ld_hidden;
    linear(n, C, C, t->mixed + at, w->ld, p.wo, added_to(x, w->ld));
    rmsnorm(x, n, C, w->ld, t->normed_mlp + at, t->scale_mlp + rows.first);
    linear(n, C, 4 * C, t->normed_mlp + at, w->ld, p.fc1, into(hidden, w->ld_hidden));
    relu(hidden, n * w->ld_hidden);
    linear(n, 4 * C, C, hidden, w->ld_hidden, p.fc2, added_to(x, w->ld));
}

// d_x -> d_hidden, d_middle (of x after attention), d_mixed
static void rows_through_mlp_backward(const Pass *pass, isize layer, Rows rows,
                                      const Scratch *scratch) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const Packed p = panels_of(pass->model, w->backward, layer, 0);
    const isize n = rows.n, C = pass->model->n_embd, at = rows.first * w->ld;
    const isize at_hidden = rows.first * w->ld_hidden;
    real *d_hidden = w->d_hidden + at_hidden;
    linear(n, C, 4 * C, w->d_x + at, w->ld, p.fc2, into(d_hidden, w->ld_hidden));
    relu_backward(t->hidden + at_hidden, n * w->ld_hidden, d_hidden);
    linear(n, 4 * C, C, d_hidden, w->ld_hidden, p.fc1, into(scratch->rows, w->ld));
    rmsnorm_backward(scratch->rows, t->normed_mlp + at, t->scale_mlp + rows.first, w->d_x + at, n,
                     C, w->ld, w->d_middle + at);
    linear(n, C, C, w->d_middle + at, w->ld, p.wo, into(w->d_mixed + at, w->ld));
}

// From the residual stream to the logits: x -> logits.
static void rows_to_logits(const Pass *pass, Rows rows) {
    const Workspace *w = pass->workspace;
    linear(rows.n, pass->model->n_embd, pass->model->vocab_size, w->x + rows.first * w->ld, w->ld,
           w->forward, into(w->logits + rows.first * w->ld_logits, w->ld_logits));
}

// And to the loss: x -> logits, nll.
static void rows_through_loss(const Pass *pass, Rows rows) {
    const Workspace *w = pass->workspace;
    const isize V = pass->model->vocab_size;
    real *logits = w->logits + rows.first * w->ld_logits;
    rows_to_logits(pass, rows);
    cross_entropy(logits, rows.n, V, w->ld_logits,
                  pass->targets + pass->chunk.first_row + rows.first, w->sum_exp + rows.first,
                  w->nll + rows.first);
}

// Gradient of the logits, in their place, and of x: -> logits, d_x.
static void rows_through_loss_backward(const Pass *pass, Rows rows) {
    const Workspace *w = pass->workspace;
    const isize C = pass->model->n_embd, V = pass->model->vocab_size;
    real *logits = w->logits + rows.first * w->ld_logits;
    cross_entropy_backward(logits, rows.n, V, w->ld_logits,
                           pass->targets + pass->chunk.first_row + rows.first,
                           w->sum_exp + rows.first, pass->loss_scale);
    linear(rows.n, V, C, logits, w->ld_logits, w->backward,
           into(w->d_x + rows.first * w->ld, w->ld));
}

#endif
