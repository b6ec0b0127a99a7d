// The model itself, chunk by chunk: rows of activations forward, then backward, and the gradients.
//
// Work comes in phases; in each, tasks write to places of their own. Operations that only look at
// one row (norms, products with weights, residuals) run fused over blocks of rows, while those that
// look across rows (attention, gradients of weights) are tasks of the phases between.

#ifndef MICROGPT_NETWORK_H
#define MICROGPT_NETWORK_H

#include "attention.h"
#include "short_attention.h"
#include "team.h"

#define RMSNORM_EPS REAL(1e-5)
#define GRADIENT_TASK 16384  // elements of a gradient that are one task, or a panel of rows

double log(double);

// Documents in a row that go through the model together.
typedef struct {
    long first_row, n_rows;            // in inputs and targets
    long first_document, n_documents;  // in starts
} Chunk;

// What one pass over a batch, or over tokens in inference, works on.
typedef struct {
    const Model *model;
    const Workspace *workspace;
    const int32_t *inputs, *targets;  // (rows of all documents)
    const int64_t *starts;            // (n_documents + 1): first row of each document, and the end
    real loss_scale;                  // what the gradient of the summed loss is multiplied by
    Chunk chunk;
    int accumulate;       // add to the gradients of earlier chunks
    int loss_only;        // stop at the loss
    real *keys, *values;  // inference: caches (n_layer, C, cache_stride)
    long cache_stride;    // of a row of a cache, in elements
    long position;        // inference: of the first row
} Pass;

// ---------------------------------------------------------------- one row at a time

// y = x * scale, scale[i] = 1 / root mean square of row i; x, y (n, C)
static void rmsnorm(const real *x, long n, long C, long ld, real *y, real *scale) {
    for (long i = 0; i < n; i++, x += ld, y += ld) {
        vector squares = splat(0);
        for (long c = 0; c < C; c += LANES) squares += load(x + c) * load(x + c);
        scale[i] = 1 / sqrt_of_real(sum_of(squares) / (real)C + RMSNORM_EPS);
        for (long c = 0; c < C; c += LANES) store(y + c, load(x + c) * scale[i]);
    }
}

// d_x = d_residual + gradient of the norm, from d_y and y = x * scale; all (n, C)
static void rmsnorm_backward(const real *d_y, const real *y, const real *scale,
                             const real *d_residual, long n, long C, long ld, real *d_x) {
    for (long i = 0; i < n; i++, d_y += ld, y += ld, d_residual += ld, d_x += ld) {
        vector products = splat(0);
        for (long c = 0; c < C; c += LANES) products += load(d_y + c) * load(y + c);
        const real projection = sum_of(products) / (real)C;
        for (long c = 0; c < C; c += LANES)
            store(d_x + c, load(d_residual + c) +
                               (load(d_y + c) - load(y + c) * projection) * scale[i]);
    }
}

// x (n, C) = wte[token] + wpe[position], for rows that begin at `row` of the chunk
static void embed(const Pass *pass, long row, long n, real *x) {
    const Model *m = pass->model;
    const long C = m->n_embd;
    long document = pass->chunk.first_document;
    for (long i = 0; i < n; i++, x += pass->workspace->ld) {
        const long at = pass->chunk.first_row + row + i;
        while (at >= pass->starts[document + 1]) document++;
        const long position = pass->position + at - pass->starts[document];
        const real *token = m->weights + wte_at(m) + pass->inputs[at] * C;
        const real *place = m->weights + wpe_at(m) + position * C;
        for (long c = 0; c < C; c++) x[c] = token[c] + place[c];
        for (long c = C; c < round_up(C, LANES); c++) x[c] = 0;  // after a model that diverged, NaN
    }
}

// logits (n, V) become the gradient of the summed loss, times `scale`; nll (n)
static void cross_entropy(real *logits, long n, long V, long ld, const int32_t *targets,
                          real loss_scale, double *nll) {
    for (long i = 0; i < n; i++, logits += ld) {
        if (targets[i] < 0) {
            nll[i] = 0;
            for (long j = 0; j < V; j += LANES) store(logits + j, splat(0));
            continue;
        }
        const long V_lanes = round_up(V, LANES);
        for (long j = V; j < V_lanes; j++) logits[j] = minus_infinity;
        vector tops = load(logits);
        for (long j = LANES; j < V; j += LANES) tops = larger(load(logits + j), tops);
        const real top = max_of(tops);
        const real target = logits[targets[i]] - top;
        vector sums = splat(0);
        for (long j = 0; j < V; j += LANES) {
            const vector e = exp_of(load(logits + j) - top);
            store(logits + j, e);
            sums += e;
        }
        const real sum = sum_of(sums), factor = loss_scale / sum;
        nll[i] = log((double)sum) - (double)target;
        for (long j = 0; j < V; j += LANES) store(logits + j, load(logits + j) * factor);
        logits[targets[i]] -= loss_scale;
    }
}

// ---------------------------------------------------------------- blocks of rows

// y (n, n_out) = or += x (n, n_in) @ w^T, and zeros up to the next whole vector
INLINE void linear(const real *x, long n, long n_in, long ld_x, const real *panels_of_w, long n_out,
                   real *y, long ld_y, int accumulate) {
    matmul(n, round_up(n_out, LANES), n_in, rows_of(x, ld_x), packed(panels_of_w, n_in), y, ld_y, accumulate);
}

// Norm, then queries, keys and values.
static void rows_to_qkv(const Pass *pass, long layer, long row, long n) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const long C = pass->model->n_embd, at = row * w->ld;
    rmsnorm(w->x + at, n, C, w->ld, t->normed_attn + at, t->scale_attn + row);
    real *qkv = t->qkv + row * w->ld_qkv;
    linear(t->normed_attn + at, n, C, w->ld, w->forward[layer].qkv, 3 * C, qkv, w->ld_qkv, 0);
    if (!pass->keys) return;
    const long first = layer * C * pass->cache_stride + pass->position + row;
    for (long c = 0; c < C; c++)
        for (long i = 0; i < n; i++) {
            pass->keys[first + c * pass->cache_stride + i] = qkv[i * w->ld_qkv + C + c];
            pass->values[first + c * pass->cache_stride + i] = qkv[i * w->ld_qkv + 2 * C + c];
        }
}

static void rows_from_tokens(const Pass *pass, long row, long n) {
    const Workspace *w = pass->workspace;
    const long C = pass->model->n_embd, at = row * w->ld;
    embed(pass, row, n, w->x + at);
    rmsnorm(w->x + at, n, C, w->ld, w->embedded + at, w->scale_embedded + row);
    for (long i = at; i < at + n * w->ld; i += LANES) store(w->x + i, load(w->embedded + i));
}

// From the heads' outputs through the rest of the block.
static void rows_through_mlp(const Pass *pass, long layer, long row, long n) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const Packed *p = &w->forward[layer];
    const long C = pass->model->n_embd, at = row * w->ld;
    real *x = w->x + at, *hidden = t->hidden + row * w->ld_hidden;
    linear(t->mixed + at, n, C, w->ld, p->wo, C, x, w->ld, 1);
    rmsnorm(x, n, C, w->ld, t->normed_mlp + at, t->scale_mlp + row);
    linear(t->normed_mlp + at, n, C, w->ld, p->fc1, 4 * C, hidden, w->ld_hidden, 0);
    for (long i = 0; i < n * w->ld_hidden; i += LANES)  // such that NaN stays NaN
        store(hidden + i, choose(load(hidden + i) < 0, splat(0), load(hidden + i)));
    linear(hidden, n, 4 * C, w->ld_hidden, p->fc2, C, x, w->ld, 1);
}

// Backward through the MLP, and to the heads' outputs: d_x -> d_hidden, d_middle, d_mixed.
static void rows_through_mlp_backward(const Pass *pass, long layer, long row, long n,
                                      const Scratch *scratch) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const Packed *p = &w->backward[layer];
    const long C = pass->model->n_embd, at = row * w->ld;
    const real *hidden = t->hidden + row * w->ld_hidden;
    real *d_hidden = w->d_hidden + row * w->ld_hidden;
    linear(w->d_x + at, n, C, w->ld, p->fc2, 4 * C, d_hidden, w->ld_hidden, 0);
    for (long i = 0; i < n * w->ld_hidden; i += LANES)
        store(d_hidden + i, choose(load(hidden + i) > 0, load(d_hidden + i), splat(0)));
    linear(d_hidden, n, 4 * C, w->ld_hidden, p->fc1, C, scratch->rows, w->ld, 0);
    rmsnorm_backward(scratch->rows, t->normed_mlp + at, t->scale_mlp + row, w->d_x + at, n, C,
                     w->ld, w->d_middle + at);
    linear(w->d_middle + at, n, C, w->ld, p->wo, C, w->d_mixed + at, w->ld, 0);
}

// From the residual stream to the loss, and back to its gradient.
static void rows_through_loss(const Pass *pass, long row, long n) {
    const Workspace *w = pass->workspace;
    const long C = pass->model->n_embd, V = pass->model->vocab_size;
    real *logits = w->logits + row * w->ld_logits;
    linear(w->x + row * w->ld, n, C, w->ld, w->head_forward, V, logits, w->ld_logits, 0);
    cross_entropy(logits, n, V, w->ld_logits, pass->targets + pass->chunk.first_row + row,
                  pass->loss_scale, w->nll + row);
    linear(logits, n, V, w->ld_logits, w->head_backward, C, w->d_x + row * w->ld, w->ld, 0);
}

// Backward through queries, keys and values: d_qkv, d_middle -> d_x.
static void rows_to_qkv_backward(const Pass *pass, long layer, long row, long n,
                                 const Scratch *scratch) {
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const long C = pass->model->n_embd, at = row * w->ld;
    linear(w->d_qkv + row * w->ld_qkv, n, 3 * C, w->ld_qkv, w->backward[layer].qkv, C,
           scratch->rows, w->ld, 0);
    rmsnorm_backward(scratch->rows, t->normed_attn + at, t->scale_attn + row, w->d_middle + at, n,
                     C, w->ld, w->d_x + at);
    if (layer > 0) return;
    real *zeros = scratch->rows;  // the embedding's norm has no residual beside it
    for (long i = 0; i < n * w->ld; i += LANES) store(zeros + i, splat(0));
    rmsnorm_backward(w->d_x + at, w->embedded + at, w->scale_embedded + row, zeros, n, C, w->ld,
                     w->d_x + at);
}

// ---------------------------------------------------------------- across rows

static Head head_of(const Pass *pass, long layer, long task, long *row) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const long C = m->n_embd, D = head_dim(m), h = task % m->n_head;
    const long document = pass->chunk.first_document + task / m->n_head;
    *row = pass->starts[document] - pass->chunk.first_row;
    const real *qkv = t->qkv + *row * w->ld_qkv + h * D;
    const long cached = (layer * C + h * D) * pass->cache_stride;
    return (Head){
        .n_queries = pass->starts[document + 1] - pass->starts[document],
        .start = pass->position,
        .q = qkv,
        .q_stride = w->ld_qkv,
        .keys = pass->keys ? columns_of(pass->keys + cached, pass->cache_stride)
                           : rows_of(qkv + C, w->ld_qkv),
        .values_t = pass->keys ? rows_of(pass->values + cached, pass->cache_stride)
                               : columns_of(qkv + 2 * C, w->ld_qkv),
        .mixed = t->mixed + *row * w->ld + h * D,
        .mixed_stride = w->ld,
        .largest = t->largest + h * w->max_rows + *row,
        .inverse = t->inverse + h * w->max_rows + *row,
    };
}

// Whether all heads of a task's document are computed together; then that is its first head's task.
INLINE int is_short(const Pass *pass, long task) {
    const int64_t *start = pass->starts + pass->chunk.first_document + task / pass->model->n_head;
    return heads_fill_vectors(pass->model) && !pass->keys && start[1] - start[0] <= MAX_SHORT;
}

// The heads of a document, for its first head's task.
static Heads heads_of(const Pass *pass, long layer, long task) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const int64_t *start = pass->starts + pass->chunk.first_document + task / m->n_head;
    const long row = start[0] - pass->chunk.first_row, C = m->n_embd;
    const real *q = t->qkv + row * w->ld_qkv;
    real *d_q = w->d_qkv + row * w->ld_qkv;
    return (Heads){start[1] - start[0], C, head_dim(m), w->ld_qkv, w->ld, q, q + C, q + 2 * C,
                   t->mixed + row * w->ld, w->d_mixed + row * w->ld, d_q, d_q + C, d_q + 2 * C};
}

static void heads(const Pass *pass, long layer, long task, const Scratch *scratch) {
    if (is_short(pass, task)) {
        const Heads all = heads_of(pass, layer, task);
        if (task % pass->model->n_head == 0) short_attention(&all);
        return;
    }
    long row;
    const Head head = head_of(pass, layer, task, &row);
    attention(&head, head_dim(pass->model), scratch);
}

static void heads_backward(const Pass *pass, long layer, long task, const Scratch *scratch) {
    if (is_short(pass, task)) {
        const Heads all = heads_of(pass, layer, task);
        if (task % pass->model->n_head == 0) short_attention_backward(&all);
        return;
    }
    const Workspace *w = pass->workspace;
    long row;
    const Head head = head_of(pass, layer, task, &row);
    const long C = pass->model->n_embd, column = task % pass->model->n_head * head_dim(pass->model);
    real *d_q = w->d_qkv + row * w->ld_qkv + column;
    attention_backward(&head, head.q + C, head.q + 2 * C, head_dim(pass->model),
                       w->d_mixed + row * w->ld + column, d_q, d_q + C, d_q + 2 * C, w->ld_qkv,
                       scratch);
}

// Rows of a gradient (out, in) that are one task, and how many tasks that makes.
INLINE long gradient_rows(long n_in) {
    return round_up(GRADIENT_TASK / n_in > 1 ? GRADIENT_TASK / n_in : 1, TILE_ROWS);
}
INLINE long gradient_tasks(long n_out, long n_in) {
    return (n_out + gradient_rows(n_in) - 1) / gradient_rows(n_in);
}

// d_w (out, in) = or += d_y (R, out)^T @ x (R, in), for the rows of one task
static void weight_gradient(const Pass *pass, long task, const real *d_y, long ld_y, long n_out,
                            const real *x, long ld_x, long n_in, long at) {
    const long first = task * gradient_rows(n_in);
    matmul(min_of(gradient_rows(n_in), n_out - first), n_in, pass->chunk.n_rows,
           columns_of(d_y + first, ld_y), unpacked(x, ld_x),
           pass->model->grads + at + first * n_in, n_in, pass->accumulate);
}

// d_wte, d_wpe = or += d_x, for the columns of one task
static void embedding_gradient(const Pass *pass, long task) {
    const Model *m = pass->model;
    const Chunk *chunk = &pass->chunk;
    const long C = m->n_embd, first = task * PANEL, n = min_of(PANEL, C - first);
    real *d_wte = m->grads + wte_at(m) + first, *d_wpe = m->grads + wpe_at(m) + first;
    if (!pass->accumulate) {
        for (long i = 0; i < m->vocab_size; i++)
            for (long c = 0; c < n; c++) d_wte[i * C + c] = 0;
        for (long i = 0; i < m->block_size; i++)
            for (long c = 0; c < n; c++) d_wpe[i * C + c] = 0;
    }
    const real *d_x = pass->workspace->d_x + first;
    long document = chunk->first_document;
    for (long i = chunk->first_row; i < chunk->first_row + chunk->n_rows; i++) {
        while (i >= pass->starts[document + 1]) document++;
        real *token = d_wte + pass->inputs[i] * C;
        real *place = d_wpe + (i - pass->starts[document]) * C;
        for (long c = 0; c < n; c++) {
            token[c] += d_x[c];
            place[c] += d_x[c];
        }
        d_x += pass->workspace->ld;
    }
}

// ---------------------------------------------------------------- phases

// Which rows a task of row blocks has: blocks of nearly equal size.
INLINE long row_blocks(const Pass *pass) {
    return (pass->chunk.n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
}
INLINE long block_start(const Pass *pass, long block) {
    return block * pass->chunk.n_rows / row_blocks(pass);
}

// Residual stream and first layer's heads' inputs.
static void begin_phase(Member *member, const Pass *pass) {
    const long n = row_blocks(pass);
    for (long task; (task = next_task(member, n)) >= 0;) {
        const long row = block_start(pass, task), n_rows = block_start(pass, task + 1) - row;
        rows_from_tokens(pass, row, n_rows);
        rows_to_qkv(pass, 0, row, n_rows);
    }
    end_phase(member, n);
}

static void attention_phase(Member *member, const Pass *pass, long layer) {
    const long n = pass->chunk.n_documents * pass->model->n_head;
    const Scratch *scratch = &pass->workspace->scratch[member->number];
    for (long task; (task = next_task(member, n)) >= 0;) heads(pass, layer, task, scratch);
    end_phase(member, n);
}

// The rest of a block and the next one's beginning; in training, after the last, loss and back.
static void mlp_phase(Member *member, const Pass *pass, long layer) {
    const long n = row_blocks(pass);
    const Scratch *scratch = &pass->workspace->scratch[member->number];
    for (long task; (task = next_task(member, n)) >= 0;) {
        const long row = block_start(pass, task), n_rows = block_start(pass, task + 1) - row;
        rows_through_mlp(pass, layer, row, n_rows);
        if (layer + 1 < pass->model->n_layer)
            rows_to_qkv(pass, layer + 1, row, n_rows);
        else if (pass->targets) {
            rows_through_loss(pass, row, n_rows);
            if (!pass->loss_only) rows_through_mlp_backward(pass, layer, row, n_rows, scratch);
        }
    }
    end_phase(member, n);
}

// Attention backward, and the gradients of what came after it.
static void attention_backward_phase(Member *member, const Pass *pass, long layer) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const long C = m->n_embd, V = m->vocab_size;
    const int is_last = layer + 1 == m->n_layer;
    const long n_heads = pass->chunk.n_documents * m->n_head;
    const long n_fc2 = n_heads + gradient_tasks(C, 4 * C);
    const long n_fc1 = n_fc2 + gradient_tasks(4 * C, C);
    const long n_wo = n_fc1 + gradient_tasks(C, C);
    const long n = n_wo + (is_last ? gradient_tasks(V, C) : 0);
    for (long task; (task = next_task(member, n)) >= 0;) {
        if (task < n_heads)
            heads_backward(pass, layer, task, &w->scratch[member->number]);
        else if (task < n_fc2)
            weight_gradient(pass, task - n_heads, w->d_x, w->ld, C, t->hidden, w->ld_hidden, 4 * C,
                            fc2_at(m, layer));
        else if (task < n_fc1)
            weight_gradient(pass, task - n_fc2, w->d_hidden, w->ld_hidden, 4 * C, t->normed_mlp,
                            w->ld, C, fc1_at(m, layer));
        else if (task < n_wo)
            weight_gradient(pass, task - n_fc1, w->d_middle, w->ld, C, t->mixed, w->ld, C,
                            wo_at(m, layer));
        else
            weight_gradient(pass, task - n_wo, w->logits, w->ld_logits, V, w->x, w->ld, C,
                            head_at(m));
    }
    end_phase(member, n);
}

// Backward to the layer's input and through the MLP below it; gradients of wq, wk, wv.
static void qkv_backward_phase(Member *member, const Pass *pass, long layer) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Scratch *scratch = &w->scratch[member->number];
    const long C = m->n_embd;
    const long n_blocks = row_blocks(pass), n = n_blocks + gradient_tasks(3 * C, C);
    for (long task; (task = next_task(member, n)) >= 0;) {
        if (task >= n_blocks) {
            weight_gradient(pass, task - n_blocks, w->d_qkv, w->ld_qkv, 3 * C,
                            w->traces[layer].normed_attn, w->ld, C, qkv_at(m, layer));
            continue;
        }
        const long row = block_start(pass, task), n_rows = block_start(pass, task + 1) - row;
        rows_to_qkv_backward(pass, layer, row, n_rows, scratch);
        if (layer > 0) rows_through_mlp_backward(pass, layer - 1, row, n_rows, scratch);
    }
    end_phase(member, n);
}

static void embedding_phase(Member *member, const Pass *pass) {
    const long n = panels(pass->model->n_embd);
    for (long task; (task = next_task(member, n)) >= 0;) embedding_gradient(pass, task);
    end_phase(member, n);
}

static void forward(Member *member, const Pass *pass) {
    begin_phase(member, pass);
    for (long layer = 0; layer < pass->model->n_layer; layer++) {
        attention_phase(member, pass, layer);
        mlp_phase(member, pass, layer);
    }
}

// After `forward` with targets.
static void backward(Member *member, const Pass *pass) {
    for (long layer = pass->model->n_layer - 1; layer >= 0; layer--) {
        attention_backward_phase(member, pass, layer);
        qkv_backward_phase(member, pass, layer);
    }
    embedding_phase(member, pass);
}

#endif
