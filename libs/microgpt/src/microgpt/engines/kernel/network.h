// The model, chunk by chunk: rows of activations forward, then backward, and the gradients.
//
// Work is divided into phases, and a phase into tasks that write to different places. Fused
// operations on rows (rows.h) are tasks over blocks of rows; attention and the gradients of weights
// combine rows, and are tasks of the phases between them.

#ifndef MICROGPT_NETWORK_H
#define MICROGPT_NETWORK_H

#include "attention.h"
#include "rows.h"
#include "short_attention.h"
#include "team.h"

// ---------------------------------------------------------------- heads

// The head and the document of a task.
static Head head_of(const Pass *pass, isize layer, isize task) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const isize C = m->n_embd, D = head_dim(m), number = task % m->n_head;
    const isize document = pass->chunk.first_document + task / m->n_head;
    const int64_t *start = pass->starts + document;
    const isize row = start[0] - pass->chunk.first_row;
    const isize at = row * w->ld + number * D, at_qkv = row * w->ld_qkv + number * D;
    Head h = {.T = start[1] - start[0], .D = D, .start = first_position(pass, document)};
    h.q = t->qkv + at_qkv;
    h.k = h.q + C;
    h.v = h.k + C;
    h.stride = h.kv_stride = w->ld_qkv;
    h.mixed = t->mixed + at;
    h.mixed_stride = w->ld;
    h.largest = t->largest + number * w->max_rows + row;
    h.inverse = t->inverse + number * w->max_rows + row;
    if (pass->caches) {
        const Cache *cache = &pass->caches[document];
        h.k = cache->keys + layer * cache->layer_keys +
              number * (cache->head_keys ? cache->head_keys : D);
        h.v = cache->values + layer * cache->layer_values + number * D;
        h.kv_stride = cache->ld;
        h.values_t = columns_of(h.v, cache->ld);
    } else {
        h.keys = rows_of(h.k, h.stride);
        h.values_t = columns_of(h.v, h.stride);
    }
    if (pass->targets) {
        h.d_q = w->d_qkv + at_qkv;
        h.d_k = h.d_q + C;
        h.d_v = h.d_k + C;
        h.d_mixed = w->d_mixed + at;
    }
    return h;
}

// Whether short_attention.h takes the document of a task.
INLINE int is_short(const Pass *pass, isize task) {
    if (pass->caches) return is_short_block(pass->model);  // however long the text is now
    const int64_t *start = pass->starts + pass->chunk.first_document + task / pass->model->n_head;
    return start[1] - start[0] <= MAX_SHORT && heads_fill_vectors(pass->model);
}

// One head; or in the task of the first head all of them, where they are computed together.
static void heads(const Pass *pass, isize layer, isize task, const Scratch *scratch) {
    const Model *m = pass->model;
    const Head h = head_of(pass, layer, task);
    if (is_short(pass, task)) {
        if (task % m->n_head == 0) short_attention(&h, m->n_embd);
    } else if (pass->caches && h.T == 1) {
        const Cache *cache = &pass->caches[task / m->n_head];
        if (task % m->n_head == 0) attend(&h, m->n_head, cache, scratch);
    } else {
        attention(&h, scratch);
    }
}

static void heads_backward(const Pass *pass, isize layer, isize task, const Scratch *scratch) {
    const Head h = head_of(pass, layer, task);
    if (!is_short(pass, task))
        attention_backward(&h, scratch);
    else if (task % pass->model->n_head == 0)
        short_attention_backward(&h, pass->model->n_embd);
}

// ---------------------------------------------------------------- packing

static void pack_weights(const real *w, isize n_out, isize n_in, int is_forward, real *to) {
    if (is_forward)
        pack_transposed(w, n_in, n_in, n_out, 1, to);
    else
        pack(w, n_out, n_in, to);
}

// Tasks 8 i to 8 i + 3 pack the matrices of layer i for forward, the next four for backward; the
// last two tasks pack lm_head.
static void pack_matrix(const Model *m, const Workspace *w, isize task) {
    const isize C = m->n_embd, layer = task / 8;
    if (layer == m->n_layer) {
        const int is_forward = task % 8 == 0;
        pack_weights(m->weights + head_at(m), m->vocab_size, C, is_forward,
                     is_forward ? w->forward : w->backward);
        return;
    }
    const int is_forward = task % 8 < 4;
    const Packed p = panels_of(m, is_forward ? w->forward : w->backward, layer, is_forward);
    switch (task % 4) {
        case 0: pack_weights(m->weights + qkv_at(m, layer), 3 * C, C, is_forward, p.qkv); break;
        case 1: pack_weights(m->weights + wo_at(m, layer), C, C, is_forward, p.wo); break;
        case 2: pack_weights(m->weights + fc1_at(m, layer), 4 * C, C, is_forward, p.fc1); break;
        case 3: pack_weights(m->weights + fc2_at(m, layer), C, 4 * C, is_forward, p.fc2); break;
    }
}

static void pack_phase(Member *member, const Pass *pass) {
    const isize n = 8 * pass->model->n_layer + 2;
    for (isize task; (task = next_task(member, n)) >= 0;)
        pack_matrix(pass->model, pass->workspace, task);
    end_phase(member, n);
}

// ---------------------------------------------------------------- phases of a pass

// Tasks of row blocks: blocks of nearly equal size.
INLINE isize row_blocks(const Pass *pass) {
    return (pass->chunk.n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
}
INLINE Rows block(const Pass *pass, isize task) {
    const isize n = row_blocks(pass), first = task * pass->chunk.n_rows / n;
    return (Rows){pass->n_skipped + first, (task + 1) * pass->chunk.n_rows / n - first};
}

// Residual stream, and queries, keys and values of the first layer.
static void begin_phase(Member *member, const Pass *pass) {
    const isize n = row_blocks(pass);
    for (isize task; (task = next_task(member, n)) >= 0;) {
        rows_from_tokens(pass, block(pass, task));
        rows_to_qkv(pass, 0, block(pass, task));
    }
    end_phase(member, n);
}

// Gradient of wte and wpe; rows_from_tokens_backward is part of the phase before.
static void embedding_backward_phase(Member *member, const Pass *pass) {
    const isize n = panels(pass->model->n_embd);
    for (isize task; (task = next_task(member, n)) >= 0;) embed_backward(pass, task);
    end_phase(member, n);
}

static void attention_phase(Member *member, const Pass *pass, isize layer) {
    const isize H = pass->model->n_head, n_documents = pass->chunk.n_documents;
    const int one_each = pass->caches && n_documents == pass->chunk.n_rows;
    const isize step = one_each ? H : 1;  // all heads of a row are one task
    const isize n = n_documents * H / step;
    const Scratch *scratch = &pass->workspace->scratch[member->number];
    for (isize task; (task = next_task(member, n)) >= 0;) heads(pass, layer, task * step, scratch);
    end_phase(member, n);
}

// Attention backward, and the gradients of the weights after it.
static void attention_backward_phase(Member *member, const Pass *pass, isize layer) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Trace *t = &w->traces[layer];
    const isize C = m->n_embd, V = m->vocab_size;
    const Gradient gradients[] = {
        {w->d_x, w->ld, C, t->hidden, w->ld_hidden, 4 * C, fc2_at(m, layer)},
        {w->d_hidden, w->ld_hidden, 4 * C, t->normed_mlp, w->ld, C, fc1_at(m, layer)},
        {w->d_middle, w->ld, C, t->mixed, w->ld, C, wo_at(m, layer)},
        {w->logits, w->ld_logits, V, w->x, w->ld, C, head_at(m)},  // of the last layer
    };
    const isize n_heads = pass->chunk.n_documents * m->n_head;
    isize n = n_heads;
    for (int i = 0; i < (layer + 1 == m->n_layer ? 4 : 3); i++) n += gradient_tasks(&gradients[i]);
    for (isize task; (task = next_task(member, n)) >= 0;) {
        if (task < n_heads) {
            heads_backward(pass, layer, task, &w->scratch[member->number]);
            continue;
        }
        const Gradient *gradient = gradients;
        for (task -= n_heads; task >= gradient_tasks(gradient); gradient++)
            task -= gradient_tasks(gradient);
        linear_weight_gradient(pass, gradient, task);
    }
    end_phase(member, n);
}

// The rest of a block, and queries, keys and values of the next one; after the last block of a
// training pass the loss, and backward to the last block's attention.
static void mlp_phase(Member *member, const Pass *pass, isize layer) {
    const isize n = row_blocks(pass);
    const Scratch *scratch = &pass->workspace->scratch[member->number];
    for (isize task; (task = next_task(member, n)) >= 0;) {
        const Rows rows = block(pass, task);
        rows_through_mlp(pass, layer, rows);
        if (layer + 1 < pass->model->n_layer) {
            rows_to_qkv(pass, layer + 1, rows);
        } else if (pass->targets) {
            rows_through_loss(pass, rows);
            if (pass->loss_only) continue;
            rows_through_loss_backward(pass, rows);
            rows_through_mlp_backward(pass, layer, rows, scratch);
        }
    }
    end_phase(member, n);
}

// Backward to the layer's input, then to the attention of the layer below or to the embedding; the
// gradient of wq, wk, wv.
static void qkv_backward_phase(Member *member, const Pass *pass, isize layer) {
    const Model *m = pass->model;
    const Workspace *w = pass->workspace;
    const Scratch *scratch = &w->scratch[member->number];
    const Gradient gradient = {w->d_qkv, w->ld_qkv, 3 * m->n_embd, w->traces[layer].normed_attn,
                               w->ld, m->n_embd, qkv_at(m, layer)};
    const isize n_blocks = row_blocks(pass), n = n_blocks + gradient_tasks(&gradient);
    for (isize task; (task = next_task(member, n)) >= 0;) {
        if (task >= n_blocks) {
            linear_weight_gradient(pass, &gradient, task - n_blocks);
            continue;
        }
        const Rows rows = block(pass, task);
        rows_to_qkv_backward(pass, layer, rows, scratch);
        if (layer > 0)
            rows_through_mlp_backward(pass, layer - 1, rows, scratch);
        else
            rows_from_tokens_backward(pass, rows, scratch);
    }
    end_phase(member, n);
}

static void forward(Member *member, const Pass *pass) {
    begin_phase(member, pass);
    for (isize layer = 0; layer < pass->model->n_layer; layer++) {
        if (pass->last && layer + 1 == pass->model->n_layer) pass = pass->last;
        attention_phase(member, pass, layer);
        mlp_phase(member, pass, layer);
    }
}

// After `forward` with targets.
static void backward(Member *member, const Pass *pass) {
    for (isize layer = pass->model->n_layer - 1; layer >= 0; layer--) {
        attention_backward_phase(member, pass, layer);
        qkv_backward_phase(member, pass, layer);
    }
    embedding_backward_phase(member, pass);
}

#endif
