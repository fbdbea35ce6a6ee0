// The gradients of a linear layer's weight and bias, for what is trained whole.
//
// Computes  dweight_g = sum over the rows of member g of dout^T inp,  dbias_g = sum of dout.
// Arguments inp (rows, C) f16, dout (rows, OC) f16; dweight (G, OC, C) f32, dbias (G, OC) f32; step
//           StepParams.
// Layout    Rows of inp and dout lie `ld_inp` and `ld_dout` halves apart, multiples of 8, each
//           pointer at 16 bytes; dout may be columns of something wider, from a multiple of 8 on.
// Writes    += dweight, dbias.
// Source    The product rule; sums run over the member's rows in their order, by one block a tile.
#include "mma.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

// A block has TILE x TILE of dweight, four warps a quarter each, and takes STEP rows at a time.
constexpr int TILE = 64, STEP = 32, STAGES = 3, THREADS = 128;
constexpr int PART = STEP * TILE;

// Rows [row, end) of eight-column chunks from `col` on that begin below `n_cols`; zeros elsewhere.
__forceinline__ __device__ void copy(__half* to, const __half* from, int ld, int row, int end,
                                     int col, int n_cols) {
#pragma unroll
    for (int i = 0; i < PART / 8 / THREADS; ++i) {
        int at = i * THREADS + threadIdx.x, r = at / (TILE / 8), chunk = at % (TILE / 8);
        bool ok = row + r < end && col + chunk * 8 < n_cols;
        const __half* src = ok ? from + (long long)(row + r) * ld + col + chunk * 8 : from;
        cp_async16(to + swizzle<TILE / 8>(r, chunk), src, ok);
    }
}

// Columns c, which is even, and c + 1 of a row of C.
__forceinline__ __device__ void add_pair(float* to, const float* x, int c, int C) {
    if (C % 2 == 0 && c < C) {
        float2 old = *reinterpret_cast<float2*>(to);
        *reinterpret_cast<float2*>(to) = make_float2(old.x + x[0], old.y + x[1]);
    } else {
        if (c < C) to[0] += x[0];
        if (c + 1 < C) to[1] += x[1];
    }
}

}  // namespace

// Grid: (ceil(C / 64), ceil(OC / 64), G); block: 128.
extern "C" __global__ void __launch_bounds__(THREADS) linear_backward_weight_f32(
    float* dweight, const __half* dout, const __half* inp, const StepParams* step, int rows, int C,
    int OC, int ld_inp, int ld_dout) {
    __shared__ __align__(16) __half shared[STAGES][2][PART];
    const MemberParams& member = step->members()[blockIdx.z];
    int start = member.rows[rows][0], end = member.rows[rows][1];
    if (start == end) return;
    int c0 = blockIdx.x * TILE, o0 = blockIdx.y * TILE;
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, warp = threadIdx.x / 32;
    int o_warp = warp % 2 * 32, c_warp = warp / 2 * 32;
    int n_steps = (end - start + STEP - 1) / STEP;
    auto load = [&](int s) {
        int row = start + s * STEP;
        copy(shared[s % STAGES][0], dout, ld_dout, row, end, o0, (OC + 7) / 8 * 8);
        copy(shared[s % STAGES][1], inp, ld_inp, row, end, c0, (C + 7) / 8 * 8);
    };
    for (int s = 0; s < STAGES - 1; ++s) {
        if (s < n_steps) load(s);
        cp_async_commit();
    }
    float acc[2][4][4] = {};
    for (int s = 0; s < n_steps; ++s) {
        cp_async_wait<STAGES - 2>();
        // Step s has landed for all, and all have left the stage that is filled next.
        __syncthreads();
        if (s + STAGES - 1 < n_steps) load(s + STAGES - 1);
        cp_async_commit();
        const __half *d = shared[s % STAGES][0], *x = shared[s % STAGES][1];
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            unsigned a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                int row = k + lane / 16 * 8 + lane % 8, chunk = o_warp / 8 + 2 * i + lane / 8 % 2;
                ldmatrix4_trans(a[i], d + swizzle<TILE / 8>(row, chunk));
                chunk = c_warp / 8 + 2 * i + lane / 16;
                ldmatrix4_trans(b[i], x + swizzle<TILE / 8>(k + lane % 16, chunk));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    mma16816(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
    }
    float* own = dweight + (long long)blockIdx.z * OC * C;
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int o = o0 + o_warp + i * 16 + g + h * 8, c = c0 + c_warp + j * 8 + 2 * q;
                if (o < OC) add_pair(own + (long long)o * C + c, acc[i][j] + 2 * h, c, C);
            }
}

// Eight columns a lane: lane 4 y + c adds columns 8 c to 8 c + 7 of every eighth row from y on, and
// the eight runs are added up in order. Grid: (ceil(OC / 32), G); block: 32.
extern "C" __global__ void __launch_bounds__(32) linear_backward_bias_f32(
    float* dbias, const __half* dout, const StepParams* step, int rows, int OC, int ld_dout) {
    __shared__ __align__(16) float sums[8][36];   // 36: lanes of a quarter hit different banks
    const MemberParams& member = step->members()[blockIdx.y];
    int start = member.rows[rows][0], end = member.rows[rows][1];
    if (start == end) return;
    int lane = threadIdx.x, y = lane / 4, c = lane % 4 * 8, col = blockIdx.x * 32 + c;
    float sum[8] = {};
    // Several rows are on their way at a time.
#pragma unroll 4
    for (int row = start + y; row < end && col < OC; row += 8) {
        float x[8];
        unpack8(x, load16(dout + (long long)row * ld_dout + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += x[j];
    }
    *reinterpret_cast<float4*>(&sums[y][c]) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    *reinterpret_cast<float4*>(&sums[y][c + 4]) = make_float4(sum[4], sum[5], sum[6], sum[7]);
    __syncwarp();
    col = blockIdx.x * 32 + lane;
    if (col >= OC) return;
    float total = 0.f;
    for (int k = 0; k < 8; ++k) total += sums[k][lane];
    dbias[(long long)blockIdx.y * OC + col] += total;
}
