// Many texts in lockstep: a step chooses a token for each, and reads all of them in one pass.
//
// Every member of a team has texts of its own, in slots. A text that ends makes room for the next
// one that waits. Its tokens depend on no other text: a pass computes each row by itself, with the
// same sums for one row as for many.

#ifndef MICROGPT_GENERATE_H
#define MICROGPT_GENERATE_H

#include <stdatomic.h>

#include "network.h"
#include "sampling.h"

// A place for a text that is continued.
typedef struct {
    Text *text;
    real *memory;        // for the cache of a text that has none
    const real *logits;  // (V), of the next token
    isize n_left;        // tokens to choose in this call, at most
} Slot;

// What a member needs.
typedef struct {
    Workspace workspace;
    SamplingSpace sampling;
    Slot *slots;     // (n_slots)
    Cache *caches;   // (n_slots): of the texts in the slots
    int32_t *tokens;  // (n_slots): to read next
    int64_t *starts;  // (n_slots + 1): 0, 1, 2, ...
} Lockstep;

// Lays `l` out at `memory`, as `lay_out` does a workspace.
static isize lay_out_lockstep(Lockstep *l, void *memory, const Model *m, isize n_slots,
                              int has_memory) {
    Arena arena = {memory, 0};
    arena.n_bytes = lay_out(&l->workspace, memory, m, n_slots, 1, 0);
    arena.n_bytes = round_up(arena.n_bytes, LINE_BYTES);
    l->sampling = take_sampling_space(&arena, m);
    l->slots = take(&arena, n_slots * (isize)sizeof(Slot));
    l->caches = take(&arena, n_slots * (isize)sizeof(Cache));
    l->tokens = take(&arena, n_slots * (isize)sizeof(int32_t));
    l->starts = take(&arena, (n_slots + 1) * (isize)sizeof(int64_t));
    for (isize i = 0; i <= n_slots && memory; i++) l->starts[i] = i;
    Cache cache;
    for (isize i = 0; i < n_slots; i++) {
        real *own = has_memory ? NULL : take(&arena, lay_out_cache(&cache, NULL, m, 0));
        if (memory) l->slots[i].memory = own;
    }
    return arena.n_bytes;
}

// to becomes a copy of from, of the same length
static void copy_cache(const Model *m, const Cache *from, const Cache *to) {
    const isize n_values = from->length * from->ld;
    const isize n_keys = panels(from->length) * PANEL * head_dim(m);  // of a head
    for (isize layer = 0; layer < m->n_layer; layer++) {
        const isize values = layer * from->layer_values, keys = layer * from->layer_keys;
        memcpy(to->values + values, from->values + values, (size_t)n_values * sizeof(real));
        if (!from->head_keys)
            memcpy(to->keys + keys, from->keys + keys, (size_t)n_values * sizeof(real));
        for (isize at = keys; at < keys + m->n_head * from->head_keys; at += from->head_keys)
            memcpy(to->keys + at, from->keys + at, (size_t)n_keys * sizeof(real));
    }
}

// Puts a text into slot i.
static void begin_text(const Model *m, const Lockstep *l, isize i, Text *text, isize n_steps) {
    Slot *slot = &l->slots[i];
    slot->text = text;
    slot->logits = text->logits;
    slot->n_left = n_steps;
    lay_out_cache(&l->caches[i], text->memory ? text->memory : slot->memory, m, text->length);
    if (text->memory) return;
    Cache prompt;
    lay_out_cache(&prompt, (void *)text->prompt, m, text->length);
    copy_cache(m, &prompt, &l->caches[i]);
}

// Chooses the next token of the text in slot i; returns whether it is to be read.
static int choose_next(const Model *m, const Lockstep *l, isize i) {
    Slot *slot = &l->slots[i];
    Text *t = slot->text;
    const isize V = m->vocab_size, n = t->n_tokens;
    if (n == t->max_tokens || atomic_load_explicit(t->ended, memory_order_relaxed))
        t->state = FINISHED;
    if (t->state != RUNNING || slot->n_left == 0) return 0;
    const isize token = choose_token(t, slot->logits, V, t->uniforms[n], &l->sampling);
    if (token < 0 || token == t->stop) {
        t->state = token < 0 ? NOT_FINITE : FINISHED;
        return 0;
    }
    if (t->chosen_from) memcpy(t->chosen_from + n * V, slot->logits, (size_t)V * sizeof(real));
    t->tokens[n] = l->tokens[i] = (int32_t)token;
    t->n_tokens++;
    slot->n_left--;
    if (t->n_tokens == t->max_tokens) t->state = FINISHED;
    return t->state == RUNNING;
}

// Takes the text out of slot i; a text with memory of its own may go on in a later call.
static void leave_text(const Model *m, const Lockstep *l, isize i) {
    const Slot *slot = &l->slots[i];
    if (!slot->text->memory) return;
    slot->text->length = l->caches[i].length;
    if (slot->logits != slot->text->logits)
        memcpy(slot->text->logits, slot->logits, (size_t)m->vocab_size * sizeof(real));
}

static void swap_slots(const Lockstep *l, isize i, isize j) {
    const Slot slot = l->slots[i];
    const Cache cache = l->caches[i];
    const int32_t token = l->tokens[i];
    l->slots[i] = l->slots[j];
    l->caches[i] = l->caches[j];
    l->tokens[i] = l->tokens[j];
    l->slots[j] = slot;
    l->caches[j] = cache;
    l->tokens[j] = token;
}

// Reads the tokens of slots 0..n-1; afterwards their logits are those of the next tokens.
static void read_tokens(const Model *m, const Lockstep *l, isize n) {
    Team team = {.n_members = 1};
    Member alone = {&team, 0, 1, 0, 0};
    const Pass pass = {.model = m,
                       .workspace = &l->workspace,
                       .inputs = l->tokens,
                       .starts = l->starts,
                       .chunk = {0, n, 0, n},
                       .caches = l->caches};
    forward(&alone, &pass);
    rows_to_logits(&pass, (Rows){0, n});
    for (isize i = 0; i < n; i++) {
        l->slots[i].logits = l->workspace.logits + i * l->workspace.ld_logits;
        l->caches[i].length++;
    }
}

typedef struct {
    const Model *model;
    Text *const *texts;
    isize n_texts, n_steps, n_slots;
    int has_memory;
    const real *panels;
    char *memory;
    isize n_bytes;  // of each member
} GenerateArguments;

// The only phase of its team: `run_team` waits for the members, without using a processor.
static void generate_program(Member *member, void *given) {
    const GenerateArguments *a = given;
    const Model *m = a->model;
    Lockstep l;
    lay_out_lockstep(&l, a->memory + member->number * a->n_bytes, m, a->n_slots, a->has_memory);
    l.workspace.forward = (real *)a->panels;
    for (isize n = 0;;) {
        for (isize next; n < a->n_slots && (next = next_task(member, a->n_texts)) >= 0; n++)
            begin_text(m, &l, n, a->texts[next], a->n_steps);
        if (n == 0) break;
        isize n_going_on = 0;
        for (isize i = 0; i < n; i++) {
            if (choose_next(m, &l, i))
                swap_slots(&l, i, n_going_on++);
            else
                leave_text(m, &l, i);
        }
        n = n_going_on;
        if (n > 0) read_tokens(m, &l, n);
    }
}

#endif
