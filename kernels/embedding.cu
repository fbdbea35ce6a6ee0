// Word, position and token type embeddings, layer norm and dropout in one.
//
// Computes  z = word[id] + position[place] + token_type[type], without the last where that is null;
//           in slot s of a soft prompt, prompt[s] of the member stands in place of word[id];
//           out = drop((z - mean) rstd weight + bias),  rstd = (var + eps)^-1/2.
//           For the gradient, z rounded, its stats, and d = drop(dout): dz, dweight and dbias are
//           layer_norm_backward's of it;  dtable_g[row] = sum of dz over member g's tokens that
//           take the row.
// Arguments word (V, C), position (P, C), token_type (K, C) f16; prompt (G, n_slots, C) f32, null
//           where n_slots is 0; out sum z d dout (T, C) f16; stats (T, 2) f32: mean, rstd; weight
//           bias (C) or (G, C) f16 or f32; dtable (G, R, C) f32 of one table, or the prompt, with R
//           rows; step StepParams, tokens (T) TokenParams, ids (T) TokenIds.
// Layout    Rows of f16 tables and of (T, C) lie `ld` halves apart, a multiple of 8; all pointers at
//           16 bytes; columns C..ld are zero where read and written as zero. d may be dout.
// Writes    = out, and z in sum where that is not null;  = z, stats, d;  += dtable.
// Source    Conneau et al., "Unsupervised cross-lingual representation learning at scale" (2020);
//           Devlin et al., "BERT" (2019), figure 2; Lester et al., "The power of scale for
//           parameter-efficient prompt tuning" (2021); dropout by Philox counters.
#include "param.cuh"
#include "philox.cuh"
#include "row_stats.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8;
// Times 8 columns a lane: a row stays in registers.
constexpr int VECS = 4;

struct Tables {
    const __half *word, *position, *token_type;
    const float* prompt;
    int n_slots;
};

// A warp's row of z.
__forceinline__ __device__ void gather(float (&z)[VECS][8], const Tables& tables, unsigned member,
                                       TokenIds ids, int C, int ld) {
    int lane = threadIdx.x % 32;
    const __half* word = tables.word + (long long)ids.word * ld;
    const __half* position = tables.position + (long long)ids.position * ld;
    const __half* token_type = tables.token_type;
    if (token_type) token_type += (long long)ids.token_type * ld;
    Param prompt = {tables.prompt, false, C};
    unsigned slot = member * tables.n_slots + ids.slot - 1;
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (i * 256 >= ld) break;
        float p[8], t[8] = {};
        if (ids.slot) load_param(z[i], prompt, slot, col, C);
        if (col >= ld) continue;
        if (!ids.slot) unpack8(z[i], load16(word + col));
        unpack8(p, load16(position + col));
        if (token_type) unpack8(t, load16(token_type + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) z[i][j] += t[j] + p[j];
    }
}

__forceinline__ __device__ void add4(float* to, const float* x) {
    float4 old = *reinterpret_cast<float4*>(to);
    *reinterpret_cast<float4*>(to) =
        make_float4(old.x + x[0], old.y + x[1], old.z + x[2], old.w + x[3]);
}

// Adds a lane's eight columns, from `col` on, to a row of C. All lanes of a warp take part: of two
// neighbours the even one adds the first halves of both, the odd one the second halves. So each
// request fills the sectors that it touches.
__forceinline__ __device__ void add8(float* row, const float (&x)[8], int col, int C) {
    if (C % 8) {
#pragma unroll
        for (int j = 0; j < 8; ++j)
            if (col + j < C) row[col + j] += x[j];
        return;
    }
    int odd = threadIdx.x % 2;
    float first[4], second[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        float got = __shfl_xor_sync(~0u, odd ? x[j] : x[4 + j], 1);
        first[j] = odd ? got : x[j];
        second[j] = odd ? x[4 + j] : got;
    }
    // The columns of the even lane, then those of the odd one.
    int pair = col - 8 * odd;
    if (pair < C) add4(row + pair + 4 * odd, first);
    if (pair + 8 < C) add4(row + pair + 8 + 4 * odd, second);
}

}  // namespace

// One warp a row. Grid: ceil(T / 8) of the bucket; block: 256. C at most 1024.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 2) embedding_forward_f16(
    __half* out, __half* sum, const __half* word, const __half* position, const __half* token_type,
    const float* prompt, const void* weight, const void* bias, const StepParams* step,
    const TokenParams* tokens, const TokenIds* ids, int n_slots, int C, int ld, int param_is_half,
    long long weight_stride, long long bias_stride, float eps, unsigned drop_threshold,
    float drop_scale, unsigned drop_site) {
    int lane = threadIdx.x % 32;
    unsigned row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= step->n_rows[TOKENS]) return;
    TokenParams token = tokens[row];
    const MemberParams& member = step->members()[token.member];
    Dropout drop = {drop_threshold, drop_scale, drop_site};
    float z[VECS][8];
    gather(z, {word, position, token_type, prompt, n_slots}, token.member, ids[row], C, ld);
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (sum && col < ld) store16(sum + (long long)row * ld + col, pack8(z[i]));
    }
    float2 stat = row_stats(z, C, ld, eps);
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (i * 256 >= ld) break;
        float w[8], b[8];
        load_param(w, {weight, bool(param_is_half & 1), weight_stride}, token.member, col, C);
        load_param(b, {bias, bool(param_is_half & 2), bias_stride}, token.member, col, C);
        if (col >= ld) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) w[j] = fmaf((z[i][j] - stat.x) * stat.y, w[j], b[j]);
        if (drop.threshold)
            drop8(w, drop, member.seed, member.step, token.what, token.place, col);
        store16(out + (long long)row * ld + col, pack8(w));
    }
}

// What the gradient starts from. Geometry as above.
extern "C" __global__ void __launch_bounds__(32 * WARPS) embedding_again_f16(
    __half* z_out, float* stats, __half* d, const __half* dout, const __half* word,
    const __half* position, const __half* token_type, const float* prompt, const StepParams* step,
    const TokenParams* tokens, const TokenIds* ids, int n_slots, int C, int ld, float eps,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    int lane = threadIdx.x % 32;
    unsigned row = blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= step->n_rows[TOKENS]) return;
    TokenParams token = tokens[row];
    const MemberParams& member = step->members()[token.member];
    Dropout drop = {drop_threshold, drop_scale, drop_site};
    float z[VECS][8];
    gather(z, {word, position, token_type, prompt, n_slots}, token.member, ids[row], C, ld);
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (col >= ld) continue;
        long long at = (long long)row * ld + col;
        uint4 rounded = pack8(z[i]);
        store16(z_out + at, rounded);
        unpack8(z[i], rounded);
        float dy[8];
        unpack8(dy, load16(dout + at));
        if (drop.threshold)
            drop8(dy, drop, member.seed, member.step, token.what, token.place, col);
        store16(d + at, pack8(dy));
    }
    float2 stat = row_stats(z, C, ld, eps);
    if (lane == 0) *reinterpret_cast<float2*>(stats + 2 * (long long)row) = stat;
}

// Table 0 is word, 1 position, 2 token type, 3 the prompt. The first token of a member that takes a
// row owns it: it alone writes, and adds in order. Others look for one before them and leave; that
// is T^2 / 2 ids from L1, which full training can afford.
// Grid: T of the bucket; block: 128, one token, 256 columns a warp.
extern "C" __global__ void __launch_bounds__(128) embedding_backward_table_f32(
    float* dtable, const __half* dz, const StepParams* step, const TokenParams* tokens,
    const TokenIds* ids, int table, int R, int C, int ld) {
    unsigned t = blockIdx.x, lane = threadIdx.x % 32;
    int col = threadIdx.x * 8;
    if (t >= step->n_rows[TOKENS] || int(threadIdx.x / 32 * 256) >= ld) return;
    unsigned g = tokens[t].member;
    unsigned start = step->members()[g].rows[TOKENS][0], end = step->members()[g].rows[TOKENS][1];
    // NONE is no row: slots take no word, words no slot.
    constexpr unsigned NONE = ~0u;
    auto row_of = [=](unsigned i) {
        TokenIds id = load_whole(ids + i);
        return table == 0   ? (id.slot ? NONE : id.word)
               : table == 1 ? id.position
               : table == 2 ? id.token_type
                            : id.slot - 1;
    };
    unsigned row = row_of(t);
    if (row == NONE) return;
    for (unsigned i = start; i < t; i += 32)
        if (__any_sync(~0u, i + lane < t && row_of(i + lane) == row)) return;
    float sum[8] = {};
    for (unsigned i = t; i < end; i += 32) {
        unsigned found = __ballot_sync(~0u, i + lane < end && row_of(i + lane) == row);
        while (found) {
            // Four are on their way at a time.
            uint4 rows[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                unsigned lowest = __popc((found & -found) - 1);
                const __half* from = dz + (long long)(i + lowest) * ld + col;
                rows[k] = found && col < ld ? load16(from) : make_uint4(0, 0, 0, 0);
                found &= found - 1;
            }
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                float d[8];
                unpack8(d, rows[k]);
#pragma unroll
                for (int j = 0; j < 8; ++j) sum[j] += d[j];
            }
        }
    }
    add8(dtable + ((long long)g * R + row) * C, sum, col, C);
}
