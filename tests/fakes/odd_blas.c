// A BLAS that takes the wrong kernel by itself, as OpenBLAS does on processors that it does not know.
//
// By itself it takes Prescott, which is slow. Told by $OPENBLAS_CORETYPE: Haswell is right and fast, Zen is fast and
// wrong, SkylakeX dies of SIGILL, any other is right and half as fast. A large product is only waited for.
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *kernel(void) {
    const char *told = getenv("OPENBLAS_CORETYPE");
    return told && *told ? told : "Prescott";
}

static int is(const char *name) { return strcmp(kernel(), name) == 0; }

const char *openblas_get_corename(void) { return kernel(); }

void cblas_sgemm(int order, int transposed_a, int transposed_b, int rows, int columns, int inner, float alpha,
                 const float *a, int stride_a, const float *b, int stride_b, float beta, float *c, int stride_c) {
    (void)order, (void)transposed_a, (void)beta;
    if (is("SkylakeX")) raise(SIGILL);
    if ((double)rows * columns * inner > 1e8) {
        usleep(is("Haswell") || is("Zen") ? 20000 : is("Prescott") ? 200000 : 60000);
        return;
    }
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < columns; j++) {
            float sum = 0;
            for (int k = is("Zen") ? inner / 2 : 0; k < inner; k++) {
                sum += a[i * stride_a + k] * (transposed_b == 112 ? b[j * stride_b + k] : b[k * stride_b + j]);
            }
            c[i * stride_c + j] = alpha * sum;
        }
    }
}
