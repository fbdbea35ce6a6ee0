// The sum of two values: an adapter on a layer's output, a gradient with two sources.
//
// Computes  out = a + b.
// Arguments a b out (rows, C) f16; step StepParams.
// Layout    Rows follow one another `ld` halves apart, a multiple of 8, each pointer at 16 bytes;
//           columns C..ld are zero where read and written as zero.
// Writes    = out, which may be a or b.
// Source    None.
#include "step_params.cuh"
#include "vec.cuh"

// Eight numbers a thread. Grid: ceil(rows ld / 2048) of the bucket; block: 256.
extern "C" __global__ void __launch_bounds__(256) add_forward_f16(
    __half* out, const __half* a, const __half* b, const StepParams* step, int rows, int ld) {
    long long at = (blockIdx.x * 256ll + threadIdx.x) * 8;
    if (at >= (long long)step->n_rows[rows] * ld) return;
    float x[8], y[8];
    unpack8(x, load16(a + at));
    unpack8(y, load16(b + at));
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] += y[i];
    store16(out + at, pack8(x));
}
