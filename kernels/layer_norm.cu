// Residual, dropout and layer norm in one; alone where there is no residual.
//
// Computes  z = resid + drop(inp), or z = inp where resid is null;  out = (z - mean) rstd weight +
//           bias,  rstd = (var + eps)^-1/2 of z before it is rounded; stats are of what is stored.
//           With xhat = (z - mean) rstd, d = dout weight:
//           dz = rstd (d - mean(d) - xhat mean(d xhat)),  dinp = drop(dz),
//           dweight = sum of dout xhat,  dbias = sum of dout over a member's rows.
// Arguments inp resid z out dout dz dinp (rows, C) f16; stats (rows, 2) f32: mean, rstd; weight
//           bias (C) or (G, C) f16 or f32, dweight dbias (G, C) f32; partials (chunks, 2, C) f32;
//           step StepParams, tokens (T) TokenParams, seqs (S) SeqParams; rows says what rows are,
//           tokens or texts. With dropout they are tokens.
// Layout    Rows of (rows, C) lie `ld` halves apart, a multiple of 8 and at least C, 16-byte aligned;
//           columns C..ld are zero where read and written as zero. z may be inp, dz may be dout.
// Writes    = z (unless resid is null), stats, out, dz, dinp (null: not wanted), partials;
//           += dweight, dbias.
// Source    Ba, Kiros and Hinton, "Layer normalization" (2016); dropout by Philox counters.
#include "param.cuh"
#include "philox.cuh"
#include "row_stats.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;

// One warp a row, VECS times 8 columns a lane: the row stays in registers.
template <int VECS>
__forceinline__ __device__ void forward(__half* out, __half* z, float* stats, const __half* inp,
                                        const __half* resid, Param weight, Param bias,
                                        const StepParams* step, const TokenParams* tokens,
                                        const SeqParams* seqs, int rows, int C, int ld, float eps,
                                        Dropout drop) {
    int lane = threadIdx.x % 32;
    unsigned row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= step->n_rows[rows]) return;
    TokenParams token = {};
    if (rows == TOKENS) token = tokens[row];
    else token.member = seqs[row].member;
    const MemberParams& member = step->members()[token.member];
    long long first = (long long)row * ld;
    float x[VECS][8];
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (col >= ld) continue;
        unpack8(x[i], load16(inp + first + col));
        if (!resid) continue;
        float r[8];
        unpack8(r, load16(resid + first + col));
        if (drop.threshold)
            drop8(x[i], drop, member.seed, member.step, token.what, token.place, col);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[i][j] += r[j];
    }
    float2 stat = row_stats(x, C, ld, eps);
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (i * 256 >= ld) break;
        float w[8], b[8];
        load_param(w, weight, token.member, col, C);
        load_param(b, bias, token.member, col, C);
        if (col >= ld) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) w[j] = fmaf((x[i][j] - stat.x) * stat.y, w[j], b[j]);
        store16(out + first + col, pack8(w));
        if (!resid) continue;
        uint4 rounded = pack8(x[i]);
        store16(z + first + col, rounded);
        unpack8(x[i], rounded);
    }
    // The gradient is that of the z it finds: the mean of others would not be its own.
    if (resid) stat = row_stats(x, C, ld, eps);
    if (lane == 0) *reinterpret_cast<float2*>(stats + 2 * (long long)row) = stat;
}

// One block a chunk of a member's rows, one warp a row. A lane keeps the sums of its columns over its
// rows, and the warps add theirs one after the other: the order is fixed by the row's place in its
// member. A member has no more chunks of texts than of tokens, whose places partials take.
template <int VECS, bool PARAMS>
__forceinline__ __device__ void backward(__half* dz, __half* dinp, float* partials,
                                         const __half* dout, const __half* z, const float* stats,
                                         Param weight, const StepParams* step,
                                         const TokenParams* tokens, int rows, int C, int ld,
                                         Dropout drop) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int g = blockIdx.y;
    if (rows == TOKENS)
        g = find_member(step, blockIdx.x, [](const MemberParams& m) { return m.chunk_start; });
    const MemberParams& member = step->members()[g];
    unsigned chunk = blockIdx.x - (rows == TOKENS ? member.chunk_start : 0);
    unsigned start = member.rows[rows][0] + chunk * CHUNK;
    if (start >= member.rows[rows][1]) return;
    unsigned end = min(start + CHUNK, member.rows[rows][1]);
    float dw[VECS][8] = {}, db[VECS][8] = {};
    for (unsigned row = start + warp; row < end; row += WARPS) {
        long long first = (long long)row * ld;
        float2 stat = *reinterpret_cast<const float2*>(stats + 2 * (long long)row);
        float mean = stat.x, rstd = stat.y, s1 = 0.f, s2 = 0.f;
        uint4 dv[VECS], zv[VECS];
#pragma unroll
        for (int i = 0; i < VECS; ++i) {
            int col = (i * 32 + lane) * 8;
            if (col >= ld) continue;
            dv[i] = load16(dout + first + col);
            zv[i] = load16(z + first + col);
        }
#pragma unroll
        for (int i = 0; i < VECS; ++i) {
            int col = (i * 32 + lane) * 8;
            if (i * 256 >= ld) break;
            float d[8], x[8], w[8];
            load_param(w, weight, g, col, C);
            if (col >= ld) continue;
            unpack8(d, dv[i]);
            unpack8(x, zv[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float xhat = (x[j] - mean) * rstd;
                if (PARAMS) dw[i][j] = fmaf(d[j], xhat, dw[i][j]), db[i][j] += d[j];
                s1 += d[j] * w[j];
                s2 = fmaf(d[j] * w[j], xhat, s2);
            }
        }
        s1 = warp_sum(s1) / C;
        s2 = warp_sum(s2) / C;
        TokenParams token = {};
        if (drop.threshold) token = tokens[row];
#pragma unroll
        for (int i = 0; i < VECS; ++i) {
            int col = (i * 32 + lane) * 8;
            if (i * 256 >= ld) break;
            float d[8], x[8], w[8];
            load_param(w, weight, g, col, C);
            if (col >= ld) continue;
            unpack8(d, dv[i]);
            unpack8(x, zv[i]);
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float dx = rstd * (d[j] * w[j] - s1 - (x[j] - mean) * rstd * s2);
                d[j] = col + j < C ? dx : 0.f;
            }
            store16(dz + first + col, pack8(d));
            if (!dinp) continue;
            if (drop.threshold)
                drop8(d, drop, member.seed, member.step, token.what, token.place, col);
            store16(dinp + first + col, pack8(d));
        }
    }
    if constexpr (PARAMS) {
        // Column 256 i + 8 lane + j at (8 i + j, lane): with rows of 36 no bank is hit twice,
        // neither by lanes nor by columns.
        __shared__ float sums[2][VECS * 8][36];
        for (int turn = 0; turn < WARPS; ++turn) {
            if (turn == warp) {
#pragma unroll
                for (int i = 0; i < VECS; ++i) {
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        int k = i * 8 + j;
                        sums[0][k][lane] = (turn ? sums[0][k][lane] : 0.f) + dw[i][j];
                        sums[1][k][lane] = (turn ? sums[1][k][lane] : 0.f) + db[i][j];
                    }
                }
            }
            __syncthreads();
        }
        float* part = partials + (long long)(member.chunk_start + chunk) * 2 * C;
        for (int col = threadIdx.x; col < C; col += 32 * WARPS) {
            int k = col / 256 * 8 + col % 8, at = col % 256 / 8;
            part[col] = sums[0][k][at];
            part[C + col] = sums[1][k][at];
        }
    }
}

}  // namespace

// Grid: ceil(rows / 8) of the bucket; block: 256, one warp a row. C at most 1024.
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_forward_f16(
    __half* out, __half* z, float* stats, const __half* inp, const __half* resid,
    const void* weight, const void* bias, const StepParams* step, const TokenParams* tokens,
    const SeqParams* seqs, int rows, int C, int ld, int param_is_half, long long weight_stride,
    long long bias_stride, float eps, unsigned drop_threshold, float drop_scale,
    unsigned drop_site) {
    forward<4>(out, z, stats, inp, resid, {weight, bool(param_is_half & 1), weight_stride},
               {bias, bool(param_is_half & 2), bias_stride}, step, tokens, seqs, rows, C, ld, eps,
               {drop_threshold, drop_scale, drop_site});
}

// The same for C up to 1536.
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_forward_wide_f16(
    __half* out, __half* z, float* stats, const __half* inp, const __half* resid,
    const void* weight, const void* bias, const StepParams* step, const TokenParams* tokens,
    const SeqParams* seqs, int rows, int C, int ld, int param_is_half, long long weight_stride,
    long long bias_stride, float eps, unsigned drop_threshold, float drop_scale,
    unsigned drop_site) {
    forward<6>(out, z, stats, inp, resid, {weight, bool(param_is_half & 1), weight_stride},
               {bias, bool(param_is_half & 2), bias_stride}, step, tokens, seqs, rows, C, ld, eps,
               {drop_threshold, drop_scale, drop_site});
}

// Trainable weight or bias: fills partials too.
// Grid: of tokens ceil(T / 32) of the bucket + G, of texts (ceil(S / 32), G); block: 256. C at most
// 1024.
extern "C" __global__ void __launch_bounds__(256) layer_norm_backward_f16(
    __half* dz, __half* dinp, float* partials, const __half* dout, const __half* z,
    const float* stats, const void* weight, const StepParams* step, const TokenParams* tokens,
    int rows, int C, int ld, int param_is_half, long long weight_stride, unsigned drop_threshold,
    float drop_scale, unsigned drop_site) {
    backward<4, true>(dz, dinp, partials, dout, z, stats,
                      {weight, bool(param_is_half & 1), weight_stride}, step, tokens, rows, C, ld,
                      {drop_threshold, drop_scale, drop_site});
}

// Frozen weight and bias. Geometry as above.
extern "C" __global__ void __launch_bounds__(256, 2) layer_norm_backward_frozen_f16(
    __half* dz, __half* dinp, const __half* dout, const __half* z,
    const float* stats, const void* weight, const StepParams* step, const TokenParams* tokens,
    int rows, int C, int ld, int param_is_half, long long weight_stride, unsigned drop_threshold,
    float drop_scale, unsigned drop_site) {
    Dropout drop = {drop_threshold, drop_scale, drop_site};
    // Apart: one code for both kinds of weights takes twice the registers.
    if (param_is_half & 1)
        backward<4, false>(dz, dinp, nullptr, dout, z, stats, {weight, true, weight_stride}, step,
                           tokens, rows, C, ld, drop);
    else
        backward<4, false>(dz, dinp, nullptr, dout, z, stats, {weight, false, weight_stride}, step,
                           tokens, rows, C, ld, drop);
}

// Adds a member's partials, eight runs of chunks side by side, to dweight and dbias (either null).
// Grid: (ceil(C / 32), G); block: (32, 8).
extern "C" __global__ void __launch_bounds__(256) layer_norm_backward_params_f32(
    float* dweight, float* dbias, const float* partials, const StepParams* step, int rows, int C) {
    __shared__ float sums[2][8][32];
    const MemberParams& member = step->members()[blockIdx.y];
    unsigned n = member.rows[rows][1] - member.rows[rows][0];
    if (n == 0) return;
    int x = threadIdx.x, y = threadIdx.y, col = blockIdx.x * 32 + x;
    float dw = 0.f, db = 0.f;
    for (unsigned k = y; k < (n + CHUNK - 1) / CHUNK && col < C; k += 8) {
        const float* part = partials + (long long)(member.chunk_start + k) * 2 * C;
        dw += part[col];
        db += part[C + col];
    }
    sums[0][y][x] = dw;
    sums[1][y][x] = db;
    __syncthreads();
    float* grad = y == 0 ? dweight : dbias;
    if (y > 1 || col >= C || !grad) return;
    float sum = 0.f;
    for (int k = 0; k < 8; ++k) sum += sums[y][k][x];
    grad[(long long)blockIdx.y * C + col] += sum;
}
