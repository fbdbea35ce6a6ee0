// A linear layer with bias, GELU and a low-rank branch of each member.
//
// Computes  u = inp A_g^T,  out = inp W^T + bias + scale u B_g^T,  act = gelu(out) (the exact one);
//           v = scale dout B_g,  dinp = resid + dout W + v A_g;
//           dA_g = sum of v^T inp,  dB_g = scale sum of dout^T u over the rows of member g.
// Arguments inp dinp resid (rows, C) f16; out act dout (rows, OC) f16; weight (OC, C) f16; bias
//           (OC) f16; lora_a (G, Rp, C) f16, lora_b (G, OC, Rp) f16; u v (rows, Rp) f16;
//           dA (G, R, C) f32, dB (G, OC, R) f32; step StepParams.
// Layout    Rows lie a multiple of 8 halves apart, each pointer at 16 bytes; Rp is R rounded up to
//           8, `ld_*` at least its width; columns past it are zero where read and written as zero.
//           Rows of lora_a past R are zero. resid may be dinp.
// Writes    = u, out, act (null: no GELU), v, dinp; += dA, dB.
// Source    Hu et al., "LoRA: low-rank adaptation of large language models" (2021), 4.1; Hendrycks
//           and Gimpel, "Gaussian error linear units" (2016).
#include "lora_branch.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

__forceinline__ __device__ float gelu(float x) {
    return 0.5f * x * (1.f + erff(x * 0.70710678f));
}

template <class T>
__forceinline__ __device__ void forward(__half* out, __half* act, const __half* inp,
                                        const __half* weight, const __half* bias, Branch branch,
                                        const StepParams* step, int rows, int C, int OC, int ld_inp,
                                        int ld_weight, int ld_out) {
    __shared__ __align__(16) __half shared[T::SHARED];
    int n_rows = step->n_rows[rows], row0 = blockIdx.y * T::BM, col0 = blockIdx.x * T::BN;
    if (row0 >= n_rows) return;
    float acc[T::MI][T::NI][4] = {};
    T::template run<Table::N_K>(acc, shared, {inp, ld_inp, n_rows}, {weight, ld_weight, OC}, row0,
                                col0, (C + 7) / 8 * 8);
    if (bias) {
#pragma unroll
        for (int j = 0; j < T::NI; ++j) {
            int col = col0 + T::warp_n() + j * 8 + threadIdx.x % 4 * 2;
            float b0 = col < OC ? __half2float(bias[col]) : 0.f;
            float b1 = col + 1 < OC ? __half2float(bias[col + 1]) : 0.f;
#pragma unroll
            for (int i = 0; i < T::MI; ++i) {
                acc[i][j][0] += b0, acc[i][j][1] += b1;
                acc[i][j][2] += b0, acc[i][j][3] += b1;
            }
        }
    }
    if (branch.coeff)
        add_branch<T, Table::N_K>(acc, branch, step, rows, row0, col0, n_rows, OC);
    T::store(out, ld_out, acc, shared, row0, col0, n_rows, (OC + 7) / 8 * 8);
    if (!act) return;
#pragma unroll
    for (int i = 0; i < T::MI; ++i)
#pragma unroll
        for (int j = 0; j < T::NI; ++j)
#pragma unroll
            for (int h = 0; h < 4; ++h) acc[i][j][h] = gelu(acc[i][j][h]);
    T::store(act, ld_out, acc, shared, row0, col0, n_rows, (OC + 7) / 8 * 8);
}

template <class T>
__forceinline__ __device__ void backward(__half* dinp, const __half* dout, const __half* weight,
                                         const __half* resid, Branch branch, const StepParams* step,
                                         int rows, int C, int OC, int ld_inp, int ld_weight,
                                         int ld_out) {
    __shared__ __align__(16) __half shared[T::SHARED];
    int n_rows = step->n_rows[rows], row0 = blockIdx.y * T::BM, col0 = blockIdx.x * T::BN;
    if (row0 >= n_rows) return;
    float acc[T::MI][T::NI][4] = {};
    T::template run<Table::K_N>(acc, shared, {dout, ld_out, n_rows}, {weight, ld_weight, OC}, row0,
                                col0, (OC + 7) / 8 * 8);
    if (branch.coeff) add_branch<T, Table::K_N>(acc, branch, step, rows, row0, col0, n_rows, C);
    if (resid) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < T::MI; ++i)
#pragma unroll
            for (int j = 0; j < T::NI; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int row = row0 + T::warp_m() + i * 16 + lane / 4 + h * 8;
                    int col = col0 + T::warp_n() + j * 8 + lane % 4 * 2;
                    if (row >= n_rows || col >= C) continue;
                    float2 r = unpack2(pair_at(resid + (long long)row * ld_inp + col));
                    acc[i][j][2 * h] += r.x, acc[i][j][2 * h + 1] += r.y;
                }
    }
    T::store(dinp, ld_inp, acc, shared, row0, col0, n_rows, (C + 7) / 8 * 8);
}

using Large = Tile<128, 128, 2, 4>;
using Small = Tile<64, 64, 2, 2>;

// Four warps share K in groups of 32 and add up in order. Of a group, lane 4 g + q holds halves
// 8 q .. 8 q + 8 of its rows, one 16-byte load each: the same permutation of K on both sides.
template <Table TABLE>
__forceinline__ __device__ void project(__half* out, const __half* inp, const __half* table,
                                        const StepParams* step, int rows, int K, int Rp, int ld_inp,
                                        int ld_table, float scale) {
    __shared__ float sums[4][16][9];   // 9: the rows of a column lie in different banks
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    int n_rows = step->n_rows[rows], row0 = blockIdx.x * 16, n = blockIdx.y * 8 + g;
    if (row0 >= n_rows) return;
    int last = min(row0 + 16, n_rows);
    int m = find_member(step, row0, [=](const MemberParams& p) { return p.rows[rows][0]; });
    for (; m < int(step->n_members); ++m) {
        int start = step->members()[m].rows[rows][0], end = step->members()[m].rows[rows][1];
        if (start >= last) break;
        if (end <= row0) continue;
        const __half* own = table + (long long)m * (TABLE == Table::N_K ? Rp : K) * ld_table;
        float acc[4] = {};
        for (int k = warp * 32 + q * 8; k - q * 8 < K; k += 128) {
            uint4 zero = make_uint4(0, 0, 0, 0), lo = zero, hi = zero, b = zero;
            const __half* x = inp + (long long)(row0 + g) * ld_inp + k;
            if (k < K && row0 + g < n_rows) lo = load16(x);
            if (k < K && row0 + g + 8 < n_rows) hi = load16(x + 8ll * ld_inp);
            if (k < K && TABLE == Table::N_K) {
                b = load16(own + (long long)n * ld_table + k);
            } else if (k < K) {
                const __half* t = own + (long long)k * ld_table + n;
                __half2 w[4];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    w[i] = __halves2half2(k + 2 * i < K ? t[2 * i * ld_table] : __half(0.f),
                                          k + 2 * i + 1 < K ? t[(2 * i + 1) * ld_table]
                                                            : __half(0.f));
                b = *reinterpret_cast<uint4*>(w);
            }
            unsigned even[4] = {lo.x, hi.x, lo.y, hi.y}, odd[4] = {lo.z, hi.z, lo.w, hi.w};
            mma16816(acc, even, b.x, b.y);
            mma16816(acc, odd, b.z, b.w);
        }
        sums[warp][g][2 * q] = acc[0], sums[warp][g][2 * q + 1] = acc[1];
        sums[warp][g + 8][2 * q] = acc[2], sums[warp][g + 8][2 * q + 1] = acc[3];
        __syncthreads();
        int row = threadIdx.x;
        if (row < 16 && row0 + row >= start && row0 + row < end) {
            float x[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                float sum = 0.f;
                for (int w = 0; w < 4; ++w) sum += sums[w][row][i];
                x[i] = scale * sum;
            }
            store16(out + (long long)(row0 + row) * Rp + blockIdx.y * 8, pack8(x));
        }
        __syncthreads();
    }
}

}  // namespace

// u. Grid: (ceil(rows / 16) of the bucket, Rp / 8); block: 128.
extern "C" __global__ void __launch_bounds__(128) linear_project_f16(
    __half* u, const __half* inp, const __half* lora_a, const StepParams* step, int rows, int C,
    int Rp, int ld_inp, int ld_lora_a) {
    project<Table::N_K>(u, inp, lora_a, step, rows, C, Rp, ld_inp, ld_lora_a, 1.f);
}

// v. Geometry as above.
extern "C" __global__ void __launch_bounds__(128) linear_project_backward_f16(
    __half* v, const __half* dout, const __half* lora_b, const StepParams* step, int rows, int OC,
    int Rp, int ld_out, float scale) {
    project<Table::K_N>(v, dout, lora_b, step, rows, OC, Rp, ld_out, Rp, scale);
}

// out and act from u. Grid: (ceil(OC / 128), ceil(rows / 128) of the bucket); block: 256.
extern "C" __global__ void __launch_bounds__(256, 2) linear_forward_f16(
    __half* out, __half* act, const __half* inp, const __half* weight, const __half* bias,
    const __half* u, const __half* lora_b, const StepParams* step, int rows, int C, int OC, int Rp,
    int ld_inp, int ld_weight, int ld_out, float scale) {
    forward<Large>(out, act, inp, weight, bias, {u, lora_b, Rp, Rp, scale}, step, rows, C, OC,
                   ld_inp, ld_weight, ld_out);
}

// The same bits in tiles of 64, for few rows. Grid: (ceil(OC / 64), ceil(rows / 64)); block: 128.
extern "C" __global__ void __launch_bounds__(128) linear_forward_small_f16(
    __half* out, __half* act, const __half* inp, const __half* weight, const __half* bias,
    const __half* u, const __half* lora_b, const StepParams* step, int rows, int C, int OC, int Rp,
    int ld_inp, int ld_weight, int ld_out, float scale) {
    forward<Small>(out, act, inp, weight, bias, {u, lora_b, Rp, Rp, scale}, step, rows, C, OC,
                   ld_inp, ld_weight, ld_out);
}

// dinp from v. Grid: (ceil(C / 128), ceil(rows / 128) of the bucket); block: 256.
extern "C" __global__ void __launch_bounds__(256, 2) linear_backward_f16(
    __half* dinp, const __half* dout, const __half* weight, const __half* resid, const __half* v,
    const __half* lora_a, const StepParams* step, int rows, int C, int OC, int Rp, int ld_inp,
    int ld_weight, int ld_out, int ld_lora_a) {
    backward<Large>(dinp, dout, weight, resid, {v, lora_a, Rp, ld_lora_a, 1.f}, step, rows, C, OC,
                    ld_inp, ld_weight, ld_out);
}

// The same bits in tiles of 64, for few rows. Grid: (ceil(C / 64), ceil(rows / 64)); block: 128.
extern "C" __global__ void __launch_bounds__(128) linear_backward_small_f16(
    __half* dinp, const __half* dout, const __half* weight, const __half* resid, const __half* v,
    const __half* lora_a, const StepParams* step, int rows, int C, int OC, int Rp, int ld_inp,
    int ld_weight, int ld_out, int ld_lora_a) {
    backward<Small>(dinp, dout, weight, resid, {v, lora_a, Rp, ld_lora_a, 1.f}, step, rows, C, OC,
                    ld_inp, ld_weight, ld_out);
}

// grad[m, r, n] += scale sum over member m's rows of coeff[row, r] x[row, n], the numbers of a
// member `R * N` apart, `stride_r` and `stride_n` within: dA from v and inp, dB from u and dout.
// Every 64th row from the member's first on is summed by the same four lanes, and the 64 sums are
// added in a fixed order. Grid: (ceil(N / 32), Rp / 8, G); block: 256.
extern "C" __global__ void __launch_bounds__(256) linear_backward_params_f16(
    float* grad, const __half* x, const __half* coeff, const StepParams* step, int rows, int N,
    int R, int Rp, int ld_x, int stride_r, int stride_n, float scale) {
    __shared__ float sums[8][8][36];   // 36: no bank is hit twice, whichever way it is read
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = blockIdx.x * 32 + lane % 4 * 8;
    unsigned start = step->members()[blockIdx.z].rows[rows][0];
    unsigned end = step->members()[blockIdx.z].rows[rows][1];
    if (start == end) return;
    float acc[8][8] = {};
    if (n < N) {
#pragma unroll 2
        for (unsigned t = start + warp * 8 + lane / 4; t < end; t += 64) {
            float a[8], b[8];
            unpack8(a, load16(coeff + (long long)t * Rp + blockIdx.y * 8));
            unpack8(b, load16(x + (long long)t * ld_x + n));
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int far = 4; far < 32; far *= 2)
                acc[i][j] += __shfl_xor_sync(~0u, acc[i][j], far);
            if (lane < 4) sums[warp][i][lane * 8 + j] = acc[i][j];
        }
    __syncthreads();
    // Neighbours in memory to neighbouring threads: dB has r innermost, dA has n.
    bool r_first = stride_r == 1;
    int i = r_first ? threadIdx.x % 8 : warp, col = r_first ? threadIdx.x / 8 : lane;
    int r = blockIdx.y * 8 + i;
    n = blockIdx.x * 32 + col;
    if (r >= R || n >= N) return;
    float sum = 0.f;
    for (int w = 0; w < 8; ++w) sum += sums[w][i][col];
    grad[(long long)blockIdx.z * R * N + (long long)r * stride_r + (long long)n * stride_n] +=
        scale * sum;
}
