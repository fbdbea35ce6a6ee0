// The gradient of the GELUs; their values are fused into linear.
//
// Computes  dinp = dout f'(inp);  kind 0: f(x) = x Phi(x), Phi the normal distribution; kind 1:
//           f(x) = x / (1 + exp(-1.702 x)).
// Arguments inp dout dinp (T, C) f16; step StepParams.
// Layout    Rows follow one another `ld` halves apart, a multiple of 8, each pointer at 16 bytes.
// Writes    = dinp, which may be dout.
// Source    Hendrycks and Gimpel, "Gaussian error linear units" (2016).
#include "gelu.cuh"
#include "step_params.cuh"
#include "vec.cuh"

// Eight numbers a thread. Grid: ceil(T ld / 2048) of the bucket; block: 256.
extern "C" __global__ void __launch_bounds__(256) gelu_backward_f16(
    __half* dinp, const __half* dout, const __half* inp, const StepParams* step, int kind, int ld) {
    long long at = (blockIdx.x * 256ll + threadIdx.x) * 8;
    if (at >= (long long)step->n_rows[TOKENS] * ld) return;
    float x[8], d[8];
    unpack8(x, load16(inp + at));
    unpack8(d, load16(dout + at));
#pragma unroll
    for (int i = 0; i < 8; ++i)
        d[i] *= kind == GELU_EXACT ? gelu_slope(x[i]) : quick_gelu_slope(x[i]);
    store16(dinp + at, pack8(d));
}
