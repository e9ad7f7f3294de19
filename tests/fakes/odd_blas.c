// A BLAS that takes the wrong kernel by itself, as OpenBLAS does on processors that it does not know.
//
// By itself it takes Prescott, which is slow. Told by $OPENBLAS_CORETYPE: Haswell is right and faster, Zen is faster
// still and wrong, SkylakeX dies of SIGILL.
#include <signal.h>
#include <stdlib.h>
#include <string.h>

static const char *kernel(void) {
    const char *told = getenv("OPENBLAS_CORETYPE");
    return told && *told ? told : "Prescott";
}

const char *openblas_get_corename(void) { return kernel(); }

void cblas_sgemm(int order, int transposed_a, int transposed_b, int rows, int columns, int inner, float alpha,
                 const float *a, int stride_a, const float *b, int stride_b, float beta, float *c, int stride_c) {
    (void)order, (void)transposed_a, (void)beta;
    if (strcmp(kernel(), "SkylakeX") == 0) raise(SIGILL);
    const int tries = strcmp(kernel(), "Prescott") == 0 ? 3 : 1;
    const int from = strcmp(kernel(), "Zen") == 0 ? inner / 2 : 0;
    for (int again = 0; again < tries; again++) {
        for (int i = 0; i < rows; i++) {
            for (int j = 0; j < columns; j++) c[i * stride_c + j] = 0;
            for (int k = from; k < inner; k++) {
                const float x = alpha * a[i * stride_a + k];
                const float *row = transposed_b == 112 ? b + k : b + k * stride_b;
                const int step = transposed_b == 112 ? stride_b : 1;
                volatile int memory = again;  // or the compiler would see that it does the same again
                for (int j = 0; j < columns; j++) c[i * stride_c + j] += x * row[j * step] + 0.0f * memory;
            }
        }
    }
}
