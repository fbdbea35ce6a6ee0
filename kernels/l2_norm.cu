// Unit rows, without an epsilon, as CLIP has them: a row of zeros gives NaN.
//
// Computes  norm = |inp|,  out + low = inp / norm;  dinp = (dout - out (out . dout)) / norm.
// Arguments inp (rows, E) f16, or f32 without padding; out (rows, 2, ld) f16: out and low, what
//           rounding to f16 took from it; dout dinp (rows, E) f16; norm (rows, 1) f32; step
//           StepParams.
// Layout    Rows of f16 lie `ld` halves apart, a multiple of 8, those of out 2 ld; each pointer at
//           16 bytes; columns E..ld are zero where read and written as zero.
// Writes    = out, low, norm, dinp, which may be dout.
// Source    Radford et al., "Learning transferable visual models" (2021), figure 3.
#include "param.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 4;

// The warp's row, of those that there are.
__forceinline__ __device__ bool find_row(unsigned& row, const StepParams* step, int rows) {
    row = blockIdx.x * WARPS + threadIdx.x / 32;
    return row < step->n_rows[rows];
}

}  // namespace

// One warp a row. Grid: ceil(rows of the bucket / 4); block: 128.
extern "C" __global__ void __launch_bounds__(32 * WARPS) l2_norm_forward_f16(
    __half* out, float* norm, const void* inp, const StepParams* step, int rows, int E, int ld,
    int inp_is_half) {
    unsigned row;
    if (!find_row(row, step, rows)) return;
    Param rows_in = {inp, bool(inp_is_half), inp_is_half ? ld : E};
    float x[8], sum = 0.f;
    // All lanes read, also those past the row.
    int own = threadIdx.x % 32 * 8;
    for (int col = own; col - own < ld; col += 256) {
        load_param(x, rows_in, row, col, E);
#pragma unroll
        for (int j = 0; j < 8; ++j) sum = fmaf(x[j], x[j], sum);
    }
    float length = sqrtf(warp_sum(sum));
    if (threadIdx.x % 32 == 0) norm[row] = length;
    for (int col = own; col - own < ld; col += 256) {
        load_param(x, rows_in, row, col, E);
        if (col >= ld) continue;
        float high[8];
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = col + j < E ? x[j] / length : 0.f;
        uint4 rounded = pack8(x);
        unpack8(high, rounded);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] -= high[j];
        __half* unit = out + 2ll * row * ld + col;
        store16(unit, rounded);
        store16(unit + ld, pack8(x));
    }
}

// Geometry as above.
extern "C" __global__ void __launch_bounds__(32 * WARPS) l2_norm_backward_f16(
    __half* dinp, const __half* dout, const __half* out, const float* norm, const StepParams* step,
    int rows, int E, int ld) {
    unsigned row;
    if (!find_row(row, step, rows)) return;
    long long first = (long long)row * ld;
    const __half* unit = out + 2 * first;
    float d[8], y[8], along = 0.f;
    for (int col = threadIdx.x % 32 * 8; col < ld; col += 256) {
        unpack8(d, load16(dout + first + col));
        unpack8(y, load16(unit + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) along = fmaf(d[j], y[j], along);
    }
    along = warp_sum(along);
    float length = norm[row];
    for (int col = threadIdx.x % 32 * 8; col < ld; col += 256) {
        unpack8(d, load16(dout + first + col));
        unpack8(y, load16(unit + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) d[j] = col + j < E ? (d[j] - y[j] * along) / length : 0.f;
        store16(dinp + first + col, pack8(d));
    }
}
