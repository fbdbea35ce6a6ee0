// Up to three linear layers side by side, each with bias and a low-rank branch of each member, and
// a GELU; the gradient of their input.
//
// Computes  out_p = inp W_p^T + bias_p + scale_p u_p B_p^T for each part p,  act = gelu(out) by its
//           kind in gelu.cuh;  dinp = resid + sum over p of dout_p W_p + drop_p(v_p A_p).
// Arguments inp dinp resid (rows, C) f16; out act dout (rows, sum of OC) f16; of each part: weight
//           (OC, C) or (G, OC, C) f16, and low, what rounding took from it; bias (OC) or (G, OC)
//           f16, u v (rows, Rp) f16, lora_a (G, Rp, C) f16, lora_b (G, OC, Rp) f16; step
//           StepParams, tokens TokenParams.
// Layout    Rows lie a multiple of 8 halves apart, each pointer and each part's first column at 16
//           bytes; Rp is the rank rounded up to 8, `ld_*` at least its width; columns past it are
//           zero where read and written as zero. Rows of lora_a past the rank are zero. resid may
//           be dinp. With dropout rows are tokens.
// Writes    = out, act (null: no GELU), dinp.
// Source    Hu et al., "LoRA: low-rank adaptation of large language models" (2021), 4.1; Hendrycks
//           and Gimpel, "Gaussian error linear units" (2016).
#include "gelu.cuh"
#include "lora_branch.cuh"
#include "parts.cuh"
#include "vec.cuh"

// A layer. A copy for each member lies `stride` halves from the one before; 0: one for all.
struct Part {
    const __half* weight;
    const __half* low;       // lies as weight does; null: none
    const __half* bias;      // null: none
    const __half* coeff;     // u, in the backward v; null: no branch
    const __half* table;     // lora_b, in the backward lora_a
    long long weight_stride;
    long long bias_stride;
    int OC;
    int col;                 // its first in out
    int ld_weight;
    int Rp;
    int ld_table;
    float scale;             // of the branch
    Dropout drop;            // of the branch, in the backward

    __forceinline__ __device__ Branch branch() const {
        return {coeff, table, Rp, ld_table, scale, drop};
    }
};

// Absent ones are all zeros.
struct Parts { Part part[3]; };

namespace {

// Rows [row0, end) are a block's, BM of them at most; with weights of members all are `member`'s.
struct RowTile { int row0, end, member; };

// Where weights are members' own, tiles are counted member by member: none has rows of two.
template <int BM>
__forceinline__ __device__ RowTile row_tile(const StepParams* step, int rows, bool own_weights) {
    int idx = blockIdx.y;
    if (!own_weights) return {idx * BM, int(step->n_rows[rows]), 0};
    for (int m = 0; m < int(step->n_members); ++m) {
        int start = step->members()[m].rows[rows][0], end = step->members()[m].rows[rows][1];
        int n = (end - start + BM - 1) / BM;
        if (idx < n) return {start + idx * BM, end, m};
        idx -= n;
    }
    return {0, 0, 0};
}

template <class T, class F>
__forceinline__ __device__ void apply(float (&acc)[T::MI][T::NI][4], F f) {
#pragma unroll
    for (int i = 0; i < T::MI; ++i)
#pragma unroll
        for (int j = 0; j < T::NI; ++j)
#pragma unroll
            for (int h = 0; h < 4; ++h) acc[i][j][h] = f(acc[i][j][h]);
}

template <class T>
__forceinline__ __device__ void add_bias(float (&acc)[T::MI][T::NI][4], const __half* bias,
                                         int start, int end, int row0, int col0, int OC) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < T::NI; ++j) {
        int col = col0 + T::warp_n() + j * 8 + lane % 4 * 2;
        float b0 = col < OC ? __half2float(bias[col]) : 0.f;
        float b1 = col + 1 < OC ? __half2float(bias[col + 1]) : 0.f;
#pragma unroll
        for (int i = 0; i < T::MI; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int row = row0 + T::warp_m() + i * 16 + lane / 4 + h * 8;
                if (row < start || row >= end) continue;
                acc[i][j][2 * h] += b0, acc[i][j][2 * h + 1] += b1;
            }
    }
}

template <class T>
__forceinline__ __device__ void forward(__half* out, __half* act, const __half* inp,
                                        const Parts& parts, const StepParams* step, int rows, int C,
                                        int ld_inp, int ld_out, bool own_weights, int kind) {
    __shared__ __align__(16) __half shared[T::SHARED];
    RowTile own = row_tile<T::BM>(step, rows, own_weights);
    int row0 = own.row0, end = own.end, tile = blockIdx.x;
    if (row0 >= end) return;
    const Part& part = parts.part[entry_of(
        parts.part, tile, [](const Part& p) { return (p.OC + T::BN - 1) / T::BN; })];
    int col0 = tile * T::BN, OC = part.OC;
    float acc[T::MI][T::NI][4] = {};
    long long copy = own.member * part.weight_stride;
    T::template run<Table::N_K>(acc, shared, {inp, ld_inp, end},
                                {part.weight + copy, part.ld_weight, OC}, row0, col0,
                                (C + 7) / 8 * 8);
    if (part.low)
        T::template run<Table::N_K>(acc, shared, {inp, ld_inp, end},
                                    {part.low + copy, part.ld_weight, OC}, row0, col0,
                                    (C + 7) / 8 * 8);
    if (part.bias && part.bias_stride) {
        int first = row0 + T::warp_m();
        each_member(step, rows, first, min(first + T::WM, end), [&](int m, int start, int end) {
            add_bias<T>(acc, part.bias + m * part.bias_stride, start, end, row0, col0, OC);
        });
    } else if (part.bias) {
        add_bias<T>(acc, part.bias, row0, end, row0, col0, OC);
    }
    if (part.coeff)
        add_branch<T, Table::N_K, false>(acc, part.branch(), step, nullptr, rows, row0, col0, end,
                                         OC);
    int n_cols = (OC + 7) / 8 * 8;
    T::store(out + part.col, ld_out, acc, shared, row0, col0, end, n_cols);
    if (!act) return;
    if (kind == GELU_EXACT) apply<T>(acc, [](float x) { return gelu(x); });
    else apply<T>(acc, [](float x) { return quick_gelu(x); });
    T::store(act + part.col, ld_out, acc, shared, row0, col0, end, n_cols);
}

template <class T, bool DROP>
__forceinline__ __device__ void backward(__half* dinp, const __half* dout, const __half* resid,
                                         const Parts& parts, const StepParams* step,
                                         const TokenParams* tokens, int rows, int n_parts, int C,
                                         int ld_inp, int ld_out, bool own_weights) {
    __shared__ __align__(16) __half shared[T::SHARED];
    RowTile own = row_tile<T::BM>(step, rows, own_weights);
    int row0 = own.row0, end = own.end, col0 = blockIdx.x * T::BN;
    if (row0 >= end) return;
    float acc[T::MI][T::NI][4] = {};
#pragma unroll 1
    for (int i = 0; i < 2 * n_parts; ++i) {
        const Part& part = parts.part[i / 2];
        const __half* weight = i % 2 == 0 ? part.weight : part.low;
        if (!weight) continue;
        T::template run<Table::K_N>(
            acc, shared, {dout + part.col, ld_out, end},
            {weight + own.member * part.weight_stride, part.ld_weight, part.OC}, row0, col0,
            (part.OC + 7) / 8 * 8);
    }
    // A loop of its own: what either loop keeps in registers does not outlive it.
#pragma unroll 1
    for (int i = 0; i < n_parts; ++i) {
        const Part& part = parts.part[i];
        if (part.coeff)
            add_branch<T, Table::K_N, DROP>(acc, part.branch(), step, tokens, rows, row0, col0,
                                            end, C);
    }
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
                    if (row >= end || col >= C) continue;
                    float2 r = unpack2(pair_at(resid + (long long)row * ld_inp + col));
                    acc[i][j][2 * h] += r.x, acc[i][j][2 * h + 1] += r.y;
                }
    }
    T::store(dinp, ld_inp, acc, shared, row0, col0, end, (C + 7) / 8 * 8);
}

using Large = Tile<128, 128, 2, 4>;
using Small = Tile<64, 64, 2, 2>;

}  // namespace

// out and act. Grid: (sum over parts of ceil(OC / 128), ceil(rows / 128) of the bucket, with
// weights of members rows / 128 + G); block: 256.
extern "C" __global__ void __launch_bounds__(256, 2) linear_forward_f16(
    __half* out, __half* act, const __half* inp, const __grid_constant__ Parts parts,
    const StepParams* step, int rows, int C, int ld_inp, int ld_out, int own_weights, int kind) {
    forward<Large>(out, act, inp, parts, step, rows, C, ld_inp, ld_out, own_weights, kind);
}

// The same bits in tiles of 64, for few rows. Grid: as above with 64; block: 128.
extern "C" __global__ void __launch_bounds__(128) linear_forward_small_f16(
    __half* out, __half* act, const __half* inp, const __grid_constant__ Parts parts,
    const StepParams* step, int rows, int C, int ld_inp, int ld_out, int own_weights, int kind) {
    forward<Small>(out, act, inp, parts, step, rows, C, ld_inp, ld_out, own_weights, kind);
}

// dinp where no branch has dropout, whose numbers leave too few registers to tiles of this size.
// Grid: (ceil(C / 128), ceil(rows / 128) of the bucket, with weights of members rows / 128 + G);
// block: 256.
extern "C" __global__ void __launch_bounds__(256, 2) linear_backward_f16(
    __half* dinp, const __half* dout, const __half* resid, const __grid_constant__ Parts parts,
    const StepParams* step, const TokenParams*, int rows, int n_parts, int C, int ld_inp,
    int ld_out, int own_weights) {
    backward<Large, false>(dinp, dout, resid, parts, step, nullptr, rows, n_parts, C, ld_inp,
                           ld_out, own_weights);
}

// The same bits in tiles of 64, for few rows, and dropout. Grid: as above with 64; block: 128.
extern "C" __global__ void __launch_bounds__(128) linear_backward_small_f16(
    __half* dinp, const __half* dout, const __half* resid, const __grid_constant__ Parts parts,
    const StepParams* step, const TokenParams* tokens, int rows, int n_parts, int C, int ld_inp,
    int ld_out, int own_weights) {
    backward<Small, true>(dinp, dout, resid, parts, step, tokens, rows, n_parts, C, ld_inp, ld_out,
                    own_weights);
}
