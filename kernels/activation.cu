// Activations of adapters, element by element: the tanh form of GELU, and ReLU.
//
// Computes  out = f(inp),  dinp = dout f'(inp);  kind 0: f(x) = x / 2 (1 + tanh(sqrt(2 / pi)
//           (x + 0.044715 x^3))), kind 1: f(x) = max(x, 0) with f'(0) = 0.
// Arguments inp out dout dinp (T, C) f16; step StepParams.
// Layout    Rows follow one another `ld` halves apart, a multiple of 8, each pointer at 16 bytes;
//           columns C..ld are zero where read and written as zero.
// Writes    = out, dinp, which may be dout.
// Source    Hendrycks and Gimpel, "Gaussian error linear units" (2016).
#include "step_params.cuh"
#include "vec.cuh"

namespace {

enum Kind { GELU_TANH = 0, RELU = 1 };

constexpr float ROOT = 0.79788456f, CUBIC = 0.044715f;

__forceinline__ __device__ float gelu_tanh(float x) {
    return 0.5f * x * (1.f + tanhf(ROOT * (x + CUBIC * x * x * x)));
}

__forceinline__ __device__ float gelu_tanh_slope(float x) {
    float t = tanhf(ROOT * (x + CUBIC * x * x * x));
    return 0.5f * (1.f + t) + 0.5f * x * (1.f - t * t) * ROOT * (1.f + 3.f * CUBIC * x * x);
}

}  // namespace

// Eight numbers a thread. Grid: ceil(T ld / 2048) of the bucket; block: 256.
extern "C" __global__ void __launch_bounds__(256) activation_forward_f16(
    __half* out, const __half* inp, const StepParams* step, int kind, int ld) {
    long long at = (blockIdx.x * 256ll + threadIdx.x) * 8;
    if (at >= (long long)step->n_rows[TOKENS] * ld) return;
    float x[8];
    unpack8(x, load16(inp + at));
    // Written so that NaN stays NaN.
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = kind == GELU_TANH ? gelu_tanh(x[i]) : x[i] <= 0 ? 0 : x[i];
    store16(out + at, pack8(x));
}

// Geometry as above.
extern "C" __global__ void __launch_bounds__(256) activation_backward_f16(
    __half* dinp, const __half* dout, const __half* inp, const StepParams* step, int kind, int ld) {
    long long at = (blockIdx.x * 256ll + threadIdx.x) * 8;
    if (at >= (long long)step->n_rows[TOKENS] * ld) return;
    float x[8], d[8];
    unpack8(x, load16(inp + at));
    unpack8(d, load16(dout + at));
    // By a factor: what is not finite in dout must not be hidden.
#pragma unroll
    for (int i = 0; i < 8; ++i)
        d[i] *= kind == GELU_TANH ? gelu_tanh_slope(x[i]) : x[i] <= 0 ? 0.f : 1.f;
    store16(dinp + at, pack8(d));
}
