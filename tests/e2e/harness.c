// Trains models, reads, samples and draws by the kernel alone, and prints the numbers: for systems
// on which no Python runs here.
//
//     harness                 the kernel as it is compiled into this program
//     harness LIBRARY WIDTH   the functions of a shared library, for vectors of so many bytes
//
// REAL_BITS chooses the type of numbers. harness.py has the same models in Python.

#include "kernel.c"

#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <windows.h>
#define OPEN(path) ((void *)LoadLibraryA(path))
#define FIND(library, name) ((void *)GetProcAddress(library, name))
#elif defined(__wasm__)
#define OPEN(path) ((void)(path), NULL)
#define FIND(library, name) ((void)(library), (void)(name), NULL)
#else
#include <dlfcn.h>
#define OPEN(path) dlopen(path, RTLD_NOW)
#define FIND(library, name) dlsym(library, name)
#endif

enum { STEPS = 100, N_ADAM = 60, DOCUMENTS = 3, LENGTH = 7, ROWS = STEPS * DOCUMENTS * LENGTH };
enum { VOCAB = 27, TEXTS = 5, TOKENS = 12 };

static const Model MODELS[] = {
    // Heads that end within a vector; short blocks and vectors of whole heads, as the default model
    // has them (short_attention.h); heads of whole vectors.
    {.vocab_size = VOCAB, .n_embd = 20, .n_head = 4, .n_layer = 2, .block_size = 24},
    {.vocab_size = VOCAB, .n_embd = 16, .n_head = 8, .n_layer = 1, .block_size = 16},
    {.vocab_size = VOCAB, .n_embd = 16, .n_head = 1, .n_layer = 1, .block_size = 24},
};

static void *library;  // NULL: this program
static const char *width;

static void *find(const char *function) {
    char name[64];
    snprintf(name, sizeof(name), "%s_%d_%s", function, REAL_BITS, width);
    void *found = FIND(library, name);
    if (!found) fprintf(stderr, "%s is not in the library\n", name), exit(1);
    return found;
}

// A function of the kernel, or of the library.
#define KERNEL(name) (library ? (__typeof__(&OF_KIND(name)))find(#name) : OF_KIND(name))

// Zeros that begin at a cache line and go on for a vector behind the last.
static void *zeros(int64_t n_bytes) {
    char *memory = calloc(1, (size_t)n_bytes + 2 * LINE_BYTES);
    if (!memory) fprintf(stderr, "no memory for %lld bytes\n", (long long)n_bytes), exit(1);
    return memory + (LINE_BYTES - (uintptr_t)memory % LINE_BYTES);
}

// The next of random numbers in [0, 1).
static double number(void) {
    static uint64_t state = 42;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 40) / (1 << 24);
}

static void print(const char *name, const double *numbers, int n) {
    for (int i = 0; i < n; i++) printf("%s %.12g\n", name, numbers[i]);
}

static Model initialized(Model m) {
    const int64_t n = n_params(&m), n_bytes = n * (int64_t)sizeof(real);
    m.weights = zeros(n_bytes);
    m.grads = zeros(n_bytes);
    m.adam_m = zeros(n_bytes);
    m.adam_v = zeros(n_bytes);
    for (int64_t i = 0; i < n; i++) m.weights[i] = (real)(0.4 * number() - 0.2);
    return m;
}

// Takes STEPS steps on three documents each, by two threads; from N_ADAM on with Muon.
static void train_model(const Model *m) {
    static int32_t inputs[ROWS], targets[ROWS];
    static int64_t starts[STEPS * DOCUMENTS + 1], first[STEPS + 1], n_targets[STEPS];
    static double rates[STEPS], losses[STEPS], norms[STEPS];
    for (int i = 0; i < ROWS; i++) inputs[i] = (int32_t)(number() * (int)VOCAB);
    for (int i = 0; i < ROWS; i++) targets[i] = (inputs[i] * 5 + i % LENGTH) % VOCAB;
    for (int i = 0; i <= STEPS * DOCUMENTS; i++) starts[i] = i * LENGTH;
    for (int i = 0; i <= STEPS; i++) first[i] = i * DOCUMENTS;
    for (int i = 0; i < STEPS; i++) n_targets[i] = DOCUMENTS * LENGTH, rates[i] = 0.01;
    Training t = {.n_members = MAX_MEMBERS > 1 ? 2 : 1, .inputs = inputs, .targets = targets,
                  .starts = starts, .n_steps = N_ADAM, .first_documents = first,
                  .n_targets = n_targets, .learning_rates = rates, .weight_decay = 0.01,
                  .clip = 1.0, .beta1 = 0.85, .beta2 = 0.99, .eps = 1e-8, .losses = losses,
                  .norms = norms};
    t.workspace = zeros(KERNEL(training_bytes)(m, t.n_members));
    KERNEL(train)(m, &t);
    t.muon_ratio = 2;
    t.muon_momentum = 0.95;
    t.muon_iterations = 5;
    t.muon_every = 1;
    t.n_steps = STEPS;
    KERNEL(train)(m, &t);
    print("loss", losses, (int)t.n_done);
}

// Reads tokens at once, prints the logits of the next, and continues them by several texts.
static void continue_texts(const Model *m) {
    int32_t tokens[24], chosen[TEXTS][TOKENS];
    double logits[VOCAB], uniforms[TEXTS][TOKENS];
    uint64_t seeds[TEXTS];
    const int n_read = (int)m->block_size - TOKENS;  // the texts fill the block
    for (int i = 0; i < n_read; i++) tokens[i] = i * 7 % VOCAB;
    for (int i = 0; i < TEXTS; i++) seeds[i] = (uint64_t)i;
    void *panels = zeros(KERNEL(panels_bytes)(m));
    KERNEL(pack)(m, panels);
    Stream s = {.memory = zeros(KERNEL(stream_bytes)(m)), .panels = panels, .n_members = 1,
                .workspace = zeros(KERNEL(extension_bytes)(m, n_read, 1)), .tokens = tokens,
                .n_tokens = n_read, .logits = zeros(VOCAB * sizeof(real)), .n_logits = 1};
    KERNEL(extend)(m, &s);
    for (int i = 0; i < VOCAB; i++) logits[i] = (double)s.logits[i];
    print("logit", logits, VOCAB);
    KERNEL(draws)(seeds, TEXTS, TOKENS, uniforms[0]);
    print("draw", uniforms[0], TEXTS * TOKENS);
    Text texts[TEXTS], *pointers[TEXTS];
    _Atomic int64_t ended = 0;
    for (int i = 0; i < TEXTS; i++) {
        texts[i] = (Text){.prompt = s.memory, .length = n_read, .logits = s.logits,
                          .uniforms = uniforms[i], .tokens = chosen[i], .max_tokens = TOKENS,
                          .temperature = 0.9, .top_p = 0.95, .top_k = 20, .stop = -1,
                          .ended = &ended};
        pointers[i] = &texts[i];
    }
    void *memory = zeros(KERNEL(generation_bytes)(m, TEXTS, 0));
    KERNEL(generate)(m, panels, pointers, TEXTS, TOKENS, memory, TEXTS, 1);
    for (int i = 0; i < TEXTS; i++)
        for (int j = 0; j < texts[i].n_tokens; j++) printf("token %d\n", chosen[i][j]);
}

// Memory of a model whose sizes need more than 32 bits.
static void print_sizes(void) {
    const Model m = {.vocab_size = 50000, .n_embd = 4096, .n_head = 32, .n_layer = 32,
                     .block_size = 8192};
    const int64_t sizes[] = {
        KERNEL(training_bytes)(&m, 1),
        KERNEL(panels_bytes)(&m),
        KERNEL(stream_bytes)(&m),
        KERNEL(extension_bytes)(&m, 8192, 2),
        KERNEL(generation_bytes)(&m, 64, 0),
    };
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        printf("bytes %lld\n", (long long)sizes[i]);
}

int main(int n_arguments, char **arguments) {
    if (n_arguments > 2) {
        width = arguments[2];
        library = OPEN(arguments[1]);
        if (!library) return fprintf(stderr, "%s cannot be opened\n", arguments[1]), 1;
        int64_t (*widest)(void) = (int64_t (*)(void))FIND(library, "microgpt_vector_bytes");
        printf("widest %lld\n", (long long)widest());
    }
    for (size_t i = 0; i < sizeof(MODELS) / sizeof(MODELS[0]); i++) {
        const Model m = initialized(MODELS[i]);
        train_model(&m);
        continue_texts(&m);
    }
    if (sizeof(isize) == 8) print_sizes();  // not where pointers have 32 bits
    return 0;
}
