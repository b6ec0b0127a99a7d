// The compiled engine: training steps, inference and sampling behind a few plain functions.
//
// This source is compiled once for each combination of REAL_BITS (32, 64) and VECTOR_BYTES (16, 32,
// 64). The combination is part of the name of every exported function, and library.py picks the
// widest one that the processor can run. Headers, in reading order: vector.h, matmul.h,
// interface.h, layout.h, attention.h, short_attention.h, rows.h, team.h, network.h, muon.h,
// optimizer.h, decode.h, sampling.h.

#include "decode.h"
#include "network.h"
#include "optimizer.h"
#include "sampling.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define PASTE(name, bits, bytes) name##_##bits##_##bytes
#define PASTE_VALUES(name, bits, bytes) PASTE(name, bits, bytes)
#define OF_KIND(name) PASTE_VALUES(name, REAL_BITS, VECTOR_BYTES)

// ---------------------------------------------------------------- training

// Bytes of the workspace of `train` and `update`.
EXPORT int64_t OF_KIND(training_bytes)(const Model *model, int64_t n_members) {
    Workspace workspace;
    return lay_out(&workspace, NULL, model, training_rows(model), n_members, 1);
}

typedef struct {
    const Model *model;
    const Workspace *workspace;
    Training *training;
} TrainArguments;

// The next chunk of a step's documents: as many as fit, at least one.
static Chunk next_chunk(const int64_t *starts, isize first, isize end) {
    isize document = first + 1;
    while (document < end && starts[document + 1] - starts[first] <= CHUNK_ROWS) document++;
    return (Chunk){starts[first], starts[document] - starts[first], first, document - first};
}

// Summed loss of documents first..end-1; writes their gradient, times pass->loss_scale.
static double loss_and_gradient(Member *member, Pass *pass, isize first, isize end) {
    double loss = 0;
    for (isize document = first; document < end; document += pass->chunk.n_documents) {
        pass->chunk = next_chunk(pass->starts, document, end);
        pass->accumulate = document > first;
        forward(member, pass);
        for (isize i = 0; i < pass->chunk.n_rows; i++) loss += pass->workspace->nll[i];
        if (!pass->loss_only) backward(member, pass);
    }
    return loss;
}

// Runs `program` with TrainArguments.
static void run_training(const Model *model, Training *training, Program program) {
    Workspace workspace;
    lay_out(&workspace, training->workspace, model, training_rows(model), training->n_members, 1);
    TrainArguments arguments = {model, &workspace, training};
    run_team(training->n_members, program, &arguments);
}

// Updates the weights along the gradient, with the options of one step.
static void take_step(Member *member, const TrainArguments *arguments, isize step) {
    const Training *t = arguments->training;
    const Adam adam = {t->learning_rates[step], t->weight_decay, t->n_updates + step,
                       t->beta1, t->beta2, t->eps};
    const Muon muon = {t->learning_rates[step] * t->muon_ratio, t->weight_decay, t->muon_momentum,
                       t->muon_iterations, t->muon_first, t->muon_every};
    update(member, arguments->model, &adam, &muon, t->clip, arguments->workspace,
           &t->norms[step]);
}

static void train_program(Member *member, void *given) {
    const TrainArguments *arguments = given;
    Training *t = arguments->training;
    Pass pass = {.model = arguments->model,
                 .workspace = arguments->workspace,
                 .inputs = t->inputs,
                 .targets = t->targets,
                 .starts = t->starts,
                 .loss_only = (int)t->loss_only};
    for (isize step = t->n_done; step < t->n_steps; step++) {
        const double n_targets = t->learning_rates ? (double)t->n_targets[step] : 1;
        pass.loss_scale = (real)(1 / n_targets);
        pack_phase(member, &pass);
        const double loss = loss_and_gradient(member, &pass, t->first_documents[step],
                                              t->first_documents[step + 1]) / n_targets;
        if (member->number == 0) t->losses[step] = loss;
        if (t->learning_rates) {
            if (!isfinite(loss)) return;  // all members return, because all see the same loss
            take_step(member, arguments, step);
        }
        if (member->number == 0) t->n_done = step + 1;
    }
}

// Takes training steps n_done..n_steps-1, until all are taken or a loss is not finite.
EXPORT void OF_KIND(train)(const Model *model, Training *training) {
    run_training(model, training, train_program);
}

static void update_program(Member *member, void *arguments) { take_step(member, arguments, 0); }

// Takes one step along the gradient in model->grads.
EXPORT void OF_KIND(update)(const Model *model, Training *training) {
    run_training(model, training, update_program);
}

// ---------------------------------------------------------------- inference

// Bytes of the memory of a stream.
EXPORT int64_t OF_KIND(stream_bytes)(const Model *model) {
    Cache cache;
    return lay_out_cache(&cache, NULL, model);
}

// Appends one token; logits (V) of the next.
EXPORT void OF_KIND(decode)(const Model *model, Stream *stream, int64_t token, real *logits) {
    Cache cache;
    lay_out_cache(&cache, stream->memory, model);
    decode_token(model, &cache, token, stream->length++, logits);
}

// Bytes of the workspace of `extend`.
EXPORT int64_t OF_KIND(extension_bytes)(const Model *model, int64_t n_tokens, int64_t n_members) {
    Workspace workspace;
    return lay_out(&workspace, NULL, model, n_tokens, n_members, 0);
}

static void extend_program(Member *member, void *pass) {
    pack_phase(member, pass);
    forward(member, pass);
}

// Appends several tokens at once; logits (n_logits, V) after each of the last n_logits tokens.
// `memory`: extension_bytes of zeros.
EXPORT void OF_KIND(extend)(const Model *model, Stream *stream, const int32_t *tokens,
                            int64_t n_tokens, void *memory, int64_t n_members, real *logits,
                            int64_t n_logits) {
    Workspace workspace;
    Cache cache;
    lay_out(&workspace, memory, model, n_tokens, n_members, 0);
    lay_out_cache(&cache, stream->memory, model);
    const int64_t starts[] = {0, n_tokens};
    Pass pass = {.model = model,
                 .workspace = &workspace,
                 .inputs = tokens,
                 .starts = starts,
                 .chunk = {0, n_tokens, 0, 1},
                 .cache = &cache,
                 .position = stream->length};
    run_team(n_members, extend_program, &pass);
    stream->length += n_tokens;
    const real *last = workspace.x + (n_tokens - n_logits) * workspace.ld;
    matmul(n_logits, model->vocab_size, model->n_embd, rows_of(last, workspace.ld),
           packed(workspace.head_forward, model->n_embd), into(logits, model->vocab_size));
}

// Bytes of the memory of `generate`.
EXPORT int64_t OF_KIND(generation_bytes)(const Model *model) {
    SamplingSpace space;
    return lay_out_sampling(&space, NULL, model);
}

// Draws samples that continue the stream; the stream's length does not change.
EXPORT void OF_KIND(generate)(const Model *model, Stream *stream, Generation *g) {
    const isize V = model->vocab_size;
    Cache cache;
    SamplingSpace space;
    lay_out_cache(&cache, stream->memory, model);
    lay_out_sampling(&space, g->memory, model);
    for (isize sample = 0; sample < g->n_samples; sample++) {
        const double *uniforms = g->uniforms + sample * g->max_tokens;
        int32_t *tokens = g->tokens + sample * g->max_tokens;
        const real *logits = g->first_logits;
        isize n = 0;
        while (n < g->max_tokens && !atomic_load_explicit(g->ended, memory_order_relaxed)) {
            const isize token = choose_token(g, logits, V, uniforms[n], &space);
            if (token < 0) n = -1;
            if (token < 0 || token == g->stop) break;
            tokens[n++] = (int32_t)token;
            if (n == g->max_tokens) break;
            decode_token(model, &cache, token, stream->length + n - 1, space.logits);
            logits = space.logits;
        }
        g->lengths[sample] = n;
    }
}

// ---------------------------------------------------------------- once for all combinations

#if REAL_BITS == 32 && VECTOR_BYTES == 16

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// Changes with every change of an exported function or of a structure in interface.h.
EXPORT int64_t microgpt_abi(void) { return 7; }

// The value of a constant by its name; -1 for an unknown name.
EXPORT int64_t microgpt_constant(const char *name) {
    static const struct {
        const char *name;
        int64_t value;
    } constants[] = {
        {"sizeof(Model)", sizeof(Model)},
        {"sizeof(Training)", sizeof(Training)},
        {"sizeof(Stream)", sizeof(Stream)},
        {"sizeof(Generation)", sizeof(Generation)},
        {"LINE_BYTES", LINE_BYTES},
        {"MAX_MEMBERS", MAX_MEMBERS},
    };
    for (size_t i = 0; i < sizeof(constants) / sizeof(constants[0]); i++)
        if (strcmp(name, constants[i].name) == 0) return constants[i].value;
    return -1;
}

// Bytes of the widest vectors that processor and operating system support.
EXPORT int64_t microgpt_vector_bytes(void) {
#if defined(__x86_64__)
    unsigned eax, ebx, ecx, edx, enabled;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return 16;
    if (!(ecx & bit_OSXSAVE) || !(ecx & bit_FMA)) return 16;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || !(ebx & bit_AVX2)) return 16;
    __asm__("xgetbv" : "=a"(enabled), "=d"(edx) : "c"(0));  // registers that are saved
    const unsigned avx512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    if ((enabled & 0xe6) == 0xe6 && (ebx & avx512) == avx512) return 64;
    if ((enabled & 0x06) == 0x06) return 32;
#endif
    return 16;
}

#endif
