// llama.cpp as it behaves on odd machines: everything is the real library's but what $ODD_LLAMA says.
//
//   amx         dies of SIGILL in a batch of several tokens, with packed weights (GCC 12 on a processor with AMX)
//   long        the same, in batches of more than 64 tokens only: no probe sees it, the first work does
//   wrong       computes zeros with packed weights
//   foreign     dies of SIGILL in every batch: built for another processor
//   unloadable  dies of SIGILL as it loads a model
//   gpu         has a GPU, and dies of SIGABRT in a batch that may use it
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// Only their sizes, and the places of what is looked at, matter here: the test has them from the bindings.
struct params { _Alignas(8) char bytes[PARAMS_SIZE]; };
struct batch { _Alignas(8) char bytes[BATCH_SIZE]; };

static bool packed, gpu;
static int32_t n_logits;

static bool machine_is(const char *name) {
    const char *machine = getenv("ODD_LLAMA");
    return machine && strcmp(machine, name) == 0;
}

void *llama_model_load_from_file(const char *path, struct params params) {
    void *(*real)(const char *, struct params) = dlsym(RTLD_NEXT, "llama_model_load_from_file");
    if (machine_is("unloadable")) raise(SIGILL);
    packed = params.bytes[PACKED_AT];
    void *devices;
    memcpy(&devices, params.bytes + DEVICES_AT, sizeof devices);
    gpu = devices == NULL;
    return real(path, params);
}

bool llama_supports_gpu_offload(void) {
    bool (*real)(void) = dlsym(RTLD_NEXT, "llama_supports_gpu_offload");
    return machine_is("gpu") || real();
}

int32_t llama_decode(void *context, struct batch batch) {
    int32_t (*real)(void *, struct batch) = dlsym(RTLD_NEXT, "llama_decode");
    int32_t n_tokens;
    memcpy(&n_tokens, batch.bytes, sizeof n_tokens);
    n_logits = n_tokens * 320;  // of the probe's model
    if (machine_is("foreign")) raise(SIGILL);
    if (machine_is("amx") && packed && n_tokens > 1) raise(SIGILL);
    if (machine_is("long") && packed && n_tokens > 64) raise(SIGILL);
    if (machine_is("gpu") && gpu) raise(SIGABRT);
    return real(context, batch);
}

float *llama_get_logits(void *context) {
    float *(*real)(void *) = dlsym(RTLD_NEXT, "llama_get_logits");
    float *logits = real(context);
    if (machine_is("wrong") && packed) memset(logits, 0, n_logits * sizeof(float));
    return logits;
}
