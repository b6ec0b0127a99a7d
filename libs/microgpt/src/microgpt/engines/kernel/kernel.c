// The compiled engine: whole training steps, inference and sampling, behind a few plain functions.
//
// This source is compiled for each combination of REAL_BITS (32, 64) and VECTOR_BYTES (16, 32, 64);
// the combination is part of every exported name, and native.py picks one that the processor can
// run. Sizes, token ids and pointers are checked there, once; nothing here checks them again.
// Read in this order: vector.h, matmul.h, layout.h, attention.h, network.h, optimizer.h, decode.h.

#include "decode.h"
#include "optimizer.h"

#define PASTE(name, bits, bytes) name##_##bits##_##bytes
#define PASTE_VALUES(name, bits, bytes) PASTE(name, bits, bytes)
#define EXPORT(name) __attribute__((visibility("default"))) PASTE_VALUES(name, REAL_BITS, VECTOR_BYTES)

// Bytes that `n_members` threads need for documents of at most max_rows positions.
int64_t EXPORT(workspace_bytes)(const Model *model, int64_t max_rows, int64_t n_members,
                                int64_t is_training) {
    Workspace workspace;
    return lay_out(&workspace, NULL, model, max_rows, (int)n_members, (int)is_training);
}

// ---------------------------------------------------------------- training

// As `_Training` in native.py.
typedef struct {
    void *workspace;  // zeros, or left by an earlier call with the same sizes
    int64_t max_rows, n_members;
    const int32_t *inputs, *targets;  // (n_rows): all documents of all steps
    const int64_t *starts;            // (n_documents + 1): their first rows, and the end
    int64_t n_steps;
    const int64_t *first_documents;  // (n_steps + 1): per step, and the end
    const int64_t *n_targets;        // (n_steps): targets that count
    const double *learning_rates;    // (n_steps); NULL: only the gradient of the summed loss
    int64_t loss_only;               // without learning rates: not even that
    double weight_decay, clip;       // clip 0: none
    int64_t n_updates;               // before the first step
    double beta1, beta2, eps;
    double *losses;  // (n_steps): mean per target; without learning rates summed
    double *norms;   // (n_steps): of gradients before clipping, where there is clipping
    int64_t n_done;  // out: steps that were finite, and so taken
} Training;

typedef struct {
    const Model *model;
    const Workspace *workspace;
    Training *training;
} TrainArguments;

// The next chunk of a step's documents: as many as fit, at least one.
static Chunk next_chunk(const int64_t *starts, long first, long end) {
    long document = first + 1;
    while (document < end && starts[document + 1] - starts[first] <= CHUNK_ROWS) document++;
    return (Chunk){starts[first], starts[document] - starts[first], first, document - first};
}

// Summed loss of documents first..end-1; leaves their gradient, times pass->loss_scale.
static double loss_and_gradient(Member *member, Pass *pass, long first, long end) {
    const int64_t *starts = pass->starts;
    double loss = 0;
    for (long document = first; document < end; document += pass->chunk.n_documents) {
        pass->chunk = next_chunk(starts, document, end);
        pass->accumulate = document > first;
        forward(member, pass);
        for (long i = 0; i < pass->chunk.n_rows; i++) loss += pass->workspace->nll[i];
        if (!pass->loss_only) backward(member, pass);
    }
    return loss;
}

static void train_program(Member *member, void *arguments) {
    const TrainArguments *given = arguments;
    Training *t = given->training;
    const Model *m = given->model;
    Pass pass = {.model = m,
                 .workspace = given->workspace,
                 .inputs = t->inputs,
                 .targets = t->targets,
                 .starts = t->starts,
                 .loss_scale = 1,
                 .loss_only = (int)t->loss_only};
    for (long step = 0; step < t->n_steps; step++) {
        const long first = t->first_documents[step], end = t->first_documents[step + 1];
        const double n_targets = (double)t->n_targets[step];
        if (t->learning_rates) pass.loss_scale = (real)(1 / n_targets);
        pack_phase(member, &pass);
        double loss = loss_and_gradient(member, &pass, first, end);
        if (t->learning_rates) loss /= n_targets;
        if (member->number == 0) t->losses[step] = loss;
        if (t->learning_rates) {
            if (!(loss - loss == 0)) return;  // every member sees the same loss
            const Adam adam = {t->learning_rates[step], t->weight_decay, t->n_updates + step,
                               t->beta1, t->beta2, t->eps};
            update(member, &pass, &adam, t->clip, &t->norms[step]);
        }
        if (member->number == 0) t->n_done = step + 1;
    }
}

// Takes training steps, until all are taken or a loss is not finite.
void EXPORT(train)(const Model *model, Training *training) {
    Workspace workspace;
    lay_out(&workspace, training->workspace, model, training->max_rows, (int)training->n_members, 1);
    TrainArguments arguments = {model, &workspace, training};
    training->n_done = 0;
    run_team((int)training->n_members, train_program, &arguments);
}

static void update_program(Member *member, void *arguments) {
    const TrainArguments *given = arguments;
    Training *t = given->training;
    const Pass pass = {.model = given->model, .workspace = given->workspace};
    const Adam adam = {t->learning_rates[0], t->weight_decay, t->n_updates,
                       t->beta1, t->beta2, t->eps};
    update(member, &pass, &adam, t->clip, t->norms);
}

// Takes one Adam step along the gradient that is there.
void EXPORT(update)(const Model *model, Training *training) {
    Workspace workspace;
    lay_out(&workspace, training->workspace, model, training->max_rows, (int)training->n_members, 1);
    TrainArguments arguments = {model, &workspace, training};
    run_team((int)training->n_members, update_program, &arguments);
}

// ---------------------------------------------------------------- inference

// As `_Stream` in native.py: what one stream of text has in memory.
typedef struct {
    real *keys, *values;   // (n_layer, C, stride): zeros at first
    int64_t stride;        // block_size, rounded up to whole cache lines
    int64_t length;        // positions held
    void *row;             // row_bytes, zeros at first
} Stream;

int64_t EXPORT(row_bytes)(const Model *model, int64_t stride) {
    Row row;
    return lay_out_row(&row, NULL, model, stride);
}

// Appends one token; logits (V) of the next.
void EXPORT(decode)(const Model *model, Stream *stream, int64_t token, real *logits) {
    Row row;
    lay_out_row(&row, stream->row, model, stream->stride);
    decode_token(model, &row, token, stream->length++, stream->keys, stream->values,
                 stream->stride, logits);
}

typedef struct {
    const Model *model;
    const Workspace *workspace;
    Stream *stream;
    const int32_t *tokens;
    int64_t n_tokens;
} ExtendArguments;

static void extend_program(Member *member, void *arguments) {
    const ExtendArguments *given = arguments;
    const int64_t starts[] = {0, given->n_tokens};
    const Stream *stream = given->stream;
    const Pass pass = {.model = given->model,
                       .workspace = given->workspace,
                       .inputs = given->tokens,
                       .starts = starts,
                       .chunk = {0, given->n_tokens, 0, 1},
                       .keys = stream->keys,
                       .values = stream->values,
                       .cache_stride = stream->stride,
                       .position = stream->length};
    pack_phase(member, &pass);
    forward(member, &pass);
}

// Appends several tokens at once; logits (n_logits, V) after the last n_logits of them.
void EXPORT(extend)(const Model *model, Stream *stream, const int32_t *tokens, int64_t n_tokens,
                    void *memory, int64_t n_members, real *logits, int64_t n_logits) {
    Workspace workspace;
    lay_out(&workspace, memory, model, n_tokens, (int)n_members, 0);
    ExtendArguments arguments = {model, &workspace, stream, tokens, n_tokens};
    run_team((int)n_members, extend_program, &arguments);
    stream->length += n_tokens;
    const real *last = workspace.x + (n_tokens - n_logits) * workspace.ld;
    matmul(n_logits, model->vocab_size, model->n_embd, rows_of(last, workspace.ld),
           packed(workspace.head_forward, model->n_embd), logits, model->vocab_size, 0);
}

// As `_Generation` in native.py.
typedef struct {
    double temperature, top_p;
    int64_t top_k;             // 0: all
    const uint8_t *forbidden;  // (V)
    int64_t stop;              // the token that ends a sample
    int64_t n_samples, max_tokens;
    const double *uniforms;    // (n_samples, max_tokens)
    const real *first_logits;  // (V), after the prompt
    real *logits;              // (V)
    double *weights;           // (V)
    void *candidates;          // (V) of 16 bytes
    int32_t *tokens;           // out: (n_samples, max_tokens)
    int64_t *lengths;          // out: (n_samples); -1 where logits were not finite
    const volatile int64_t *ended;  // another thread sets it to end all samples where they are
} Generation;

// Draws samples that continue what the stream holds, and leaves the stream as it was.
void EXPORT(generate)(const Model *model, Stream *stream, Generation *g) {
    const Sampling sampling = {g->temperature, g->top_p, g->top_k, g->forbidden};
    const long V = model->vocab_size;
    Row row;
    lay_out_row(&row, stream->row, model, stream->stride);
    for (long sample = 0; sample < g->n_samples; sample++) {
        int32_t *tokens = g->tokens + sample * g->max_tokens;
        const real *logits = g->first_logits;
        long n = 0;
        while (n < g->max_tokens && !*g->ended) {
            const long token = choose_token(&sampling, logits, V,
                                            g->uniforms[sample * g->max_tokens + n], g->weights,
                                            g->candidates);

            if (token < 0) n = -1;
            if (token < 0 || token == g->stop) break;
            tokens[n++] = (int32_t)token;
            if (n == g->max_tokens) break;
            decode_token(model, &row, token, stream->length + n - 1, stream->keys, stream->values,
                         stream->stride, g->logits);
            logits = g->logits;
        }
        g->lengths[sample] = n;
    }
}

// ---------------------------------------------------------------- once for all combinations

#if REAL_BITS == 32 && VECTOR_BYTES == 16

// Changes with every change of an exported function or structure; native.py expects it.
__attribute__((visibility("default"))) int64_t microgpt_abi(void) { return 3; }

// Bytes of the widest vectors that this processor has.
__attribute__((visibility("default"))) int64_t microgpt_vector_bytes(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("fma"))
        return 64;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 32;
#endif
    return 16;
}

#endif
