// The compiled engine: training steps, inference and sampling behind a few plain functions.
//
// This source is compiled once for each combination of REAL_BITS (32, 64) and VECTOR_BYTES (16, 32,
// 64). The combination is part of the name of every exported function, and library.py picks the
// widest one that the processor can run. Headers, in reading order: vector.h, matmul.h,
// interface.h, layout.h, attention.h, short_attention.h, rows.h, team.h, network.h, muon.h,
// optimizer.h, sampling.h, generate.h, draws.h.

#include "draws.h"
#include "generate.h"
#include "network.h"
#include "optimizer.h"

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
    const isize first = t->n_done;
    for (isize step = first; step < t->n_steps; step++) {
        const double n_targets = t->learning_rates ? (double)t->n_targets[step] : 1;
        pass.loss_scale = (real)(1 / n_targets);
        if (t->learning_rates || step == first) pack_phase(member, &pass);
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

// Bytes of the weights in panels.
EXPORT int64_t OF_KIND(panels_bytes)(const Model *model) {
    Arena arena = {0};
    take_all_panels(&arena, model, 1);
    return arena.n_bytes;
}

// Writes the weights to `panels`.
EXPORT void OF_KIND(pack)(const Model *model, void *panels) {
    Workspace workspace = {.forward = panels};
    for (isize task = 0; task <= 8 * model->n_layer; task++)
        if (task % 8 < 4) pack_matrix(model, &workspace, task);
}

#define DIGEST_VECTORS 4

// Mixes some weights into a digest. Without the shift, changes of signs would cancel each other: a
// product moves the highest bit nowhere.
static uvector digest_of(uvector before, vector weights) {
    const uvector mixed = (before ^ (uvector)weights) * 2654435761;  // odd: forgets no bit
    return mixed ^ (mixed >> (4 * sizeof(real) - 1));
}

// DIGEST_VECTORS of numbers that change with any weight; several, since one waits for its product.
EXPORT void OF_KIND(digest)(const Model *model, void *to) {
    const isize n = n_params(model), step = DIGEST_VECTORS * LANES;
    const real *weights = model->weights;
    uvector digest[DIGEST_VECTORS] = {0};
    isize i = 0;
    for (; i + step <= n; i += step)
        UNROLL for (int v = 0; v < DIGEST_VECTORS; v++)
            digest[v] = digest_of(digest[v], load(weights + i + v * LANES));
    for (; i < n; i++) digest[0] = digest_of(digest[0], splat(weights[i]));
    memcpy(to, digest, sizeof(digest));
}

// Bytes of the memory of a stream.
EXPORT int64_t OF_KIND(stream_bytes)(const Model *model) {
    Cache cache;
    return lay_out_cache(&cache, NULL, model, 0);
}

// Bytes of the workspace of `extend`.
EXPORT int64_t OF_KIND(extension_bytes)(const Model *model, int64_t n_tokens, int64_t n_members) {
    Workspace workspace;
    return lay_out(&workspace, NULL, model, n_tokens, n_members, 0);
}

static void extend_program(Member *member, void *pass) { forward(member, pass); }

// Appends tokens to a stream; logits of the tokens that follow. Of the last layer, rows that no
// logits are asked of need keys and values only.
EXPORT void OF_KIND(extend)(const Model *model, Stream *s) {
    const isize n = s->n_tokens, n_skipped = n - s->n_logits, C = model->n_embd;
    Workspace workspace;
    Cache cache, later;
    lay_out(&workspace, s->workspace, model, n, s->n_members, 0);
    workspace.forward = (real *)s->panels;
    lay_out_cache(&cache, s->memory, model, s->length);
    lay_out_cache(&later, s->memory, model, s->length + n_skipped);
    const int64_t starts[] = {0, n}, last_starts[] = {n_skipped, n};
    Pass pass = {.model = model,
                 .workspace = &workspace,
                 .inputs = s->tokens,
                 .starts = starts,
                 .chunk = {0, n, 0, 1},
                 .caches = &cache};
    Pass last = pass;
    last.starts = last_starts;
    last.chunk.n_rows = s->n_logits;
    last.caches = &later;
    last.n_skipped = n_skipped;
    pass.last = &last;
    run_team(s->n_members, extend_program, &pass);
    s->length += n;
    matmul(s->n_logits, model->vocab_size, C,
           rows_of(workspace.x + n_skipped * workspace.ld, workspace.ld),
           packed(workspace.forward, C), into(s->logits, model->vocab_size));
}

// Copies the first `length` positions of a stream's memory to another's.
EXPORT void OF_KIND(fork)(const Model *model, const void *from, int64_t length, void *to) {
    Cache source, copy;
    lay_out_cache(&source, (void *)from, model, length);
    lay_out_cache(&copy, to, model, length);
    copy_cache(model, &source, &copy);
}

// Bytes of the memory of `generate` for each member of the team.
EXPORT int64_t OF_KIND(generation_bytes)(const Model *model, int64_t n_slots, int64_t has_memory) {
    Lockstep lockstep;
    return lay_out_lockstep(&lockstep, NULL, model, n_slots, (int)has_memory);
}

// Continues texts by up to n_steps tokens each, up to n_slots together for each member of the team;
// `memory`: generation_bytes for each. All texts have memory of their own, or none has.
EXPORT void OF_KIND(generate)(const Model *model, const void *panels, Text *const *texts,
                              int64_t n_texts, int64_t n_steps, void *memory, int64_t n_slots,
                              int64_t n_members) {
    const int has_memory = n_texts > 0 && texts[0]->memory;
    const isize n_bytes = OF_KIND(generation_bytes)(model, n_slots, has_memory);
    GenerateArguments arguments = {model,      texts,  n_texts, n_steps, n_slots,
                                   has_memory, panels, memory,  n_bytes};
    run_team(n_members, generate_program, &arguments);
}

// The first n_draws numbers of random.Random(seed).random(); `to` is (n_seeds, n_draws).
EXPORT void OF_KIND(draws)(const uint64_t *seeds, int64_t n_seeds, int64_t n_draws, double *to) {
    uint32_t start[STATE_WORDS];
    start_state(start);
    for (isize i = 0; i < n_seeds; i += GROUP_SEEDS)
        draw_group(start, seeds + i, min_of(n_seeds - i, GROUP_SEEDS), n_draws, to + i * n_draws);
}

// ---------------------------------------------------------------- once for all combinations

#if REAL_BITS == 32 && VECTOR_BYTES == 16

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// Changes with every change of an exported function or of a structure in interface.h.
EXPORT int64_t microgpt_abi(void) { return 8; }

// The value of a constant by its name; -1 for an unknown name.
EXPORT int64_t microgpt_constant(const char *name) {
    static const struct {
        const char *name;
        int64_t value;
    } constants[] = {
        {"sizeof(Model)", sizeof(Model)},
        {"sizeof(Training)", sizeof(Training)},
        {"sizeof(Stream)", sizeof(Stream)},
        {"sizeof(Text)", sizeof(Text)},
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
