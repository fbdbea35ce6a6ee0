// Self-attention within each text of a packed batch, over all its tokens or (causal) those up to the
// query's own.
//
// Computes  for each text and head, with Q, K, V its rows of qkv and m the factors of dropout, 0 or
//           1 / (1 - p):  S = Q K^T / sqrt(HS),  P = exp(S - lse), 0 for keys that are not seen,
//           out = (m P) V.
//           dP = m (dout V^T),  delta_i = sum_j P_ij dP_ij,  dS = P (dP - delta) / sqrt(HS),
//           dQ = dS K,  dK = dS^T Q,  dV = (m P)^T dout.
// Arguments qkv dqkv (T, 3 NH HS) f16: queries, keys and values side by side, each head by head;
//           out dout (T, NH HS) f16; lse delta (T, NH) f32; seqs (S) SeqParams; step StepParams.
// Layout    Rows follow one another without padding, each pointer at 16 bytes; HS is a multiple of
//           8 up to the number in the kernel's name.
// Writes    = out, lse; = dqkv, delta (of texts longer than TILE alone; null where there is none).
// Source    Vaswani et al., "Attention is all you need" (2017); the softmax in tiles and the
//           gradient from the log-sum-exp: Dao, "FlashAttention-2" (2023).
//
// Captions are short, so a block has one tile of one text's head, and one tile of keys is mostly
// all of them: nothing is pipelined, other blocks hide the waits. A longer text has several blocks
// that each pass over all its tiles; no sum depends on any other text. Where attention is causal,
// tiles of keys behind those of queries are passed by.
#include "attention.cuh"

namespace {

// Where a head of a text lies in a (T, parts NH HS) tensor; rows lie `ld` numbers apart.
struct Head {
    long long at;
    int ld;
};

__forceinline__ __device__ Head head_of(const SeqParams& text, int parts, int heads, int hs) {
    int ld = parts * heads * hs;
    return {(long long)text.first * ld + int(blockIdx.y) * hs, ld};
}

// One tile of queries; a running maximum and sum over the tiles of keys.
template <int HS>
__forceinline__ __device__ void forward(__half* out, float* lse, const __half* qkv,
                                        const SeqParams* seqs, const StepParams* step, int heads,
                                        int hs, bool causal, Dropout drop) {
    __shared__ __align__(16) __half queries[TILE * HS], keys[TILE * HS], values[TILE * HS];
    if (blockIdx.x >= step->n_rows[SEQS]) return;
    SeqParams text = seqs[blockIdx.x];
    int head = blockIdx.y, query0 = blockIdx.z * TILE, C = heads * hs;
    if (query0 >= text.len) return;
    Head in = head_of(text, 3, heads, hs), to = head_of(text, 1, heads, hs);
    const MemberParams& member = step->members()[text.member];
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, query = query0 + warp_row();
    float scale = 1.f / sqrtf(hs), max[2] = {-1e30f, -1e30f}, sum[2] = {};
    Rows16<HS> acc = {};
    load_tile<HS>(queries, qkv + in.at + (long long)query0 * in.ld, in.ld, text.len - query0, hs);
    int n_keys = seen(text, query0 + TILE - 1, causal);
    for (int key0 = 0; key0 < n_keys; key0 += TILE) {
        const __half* from = qkv + in.at + (long long)key0 * in.ld + C;
        __syncthreads();   // all have left the last tile of keys
        load_tile<HS>(keys, from, in.ld, text.len - key0, hs);
        load_tile<HS>(values, from + C, in.ld, text.len - key0, hs);
        cp_async_commit();
        unsigned keep = keep_bits(drop, member, text, head, query, key0);
        cp_async_wait<0>();
        __syncthreads();
        Scores s;
        scores<HS>(s, queries, keys);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float top = max[h];
            int end = seen(text, query + g + 8 * h, causal) - key0;
#pragma unroll
            for (int k = 0; k < 2 * NT; ++k) {
                float& x = s[k / 2][2 * h + k % 2];
                x = k / 2 * 8 + 2 * q + k % 2 < end ? scale * x : -INFINITY;
                top = fmaxf(top, x);
            }
            top = quad_max(top);
            float shrink = __expf(max[h] - top);
            max[h] = top;
            sum[h] *= shrink;
#pragma unroll
            for (int j = 0; j < HS / 8; ++j) acc[j][2 * h] *= shrink, acc[j][2 * h + 1] *= shrink;
#pragma unroll
            for (int k = 0; k < 2 * NT; ++k) {
                int i = 2 * h + k % 2;
                float p = __expf(s[k / 2][i] - top);
                sum[h] += p;
                s[k / 2][i] = keep >> (k / 2 * 4 + i) & 1 ? p : 0.f;
            }
        }
        Left p;
        left_of(p, s);
        add_product<HS>(acc, p, values);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int row = query + g + 8 * h;
        float total = quad_sum(sum[h]), share = drop.scale / total;
        if (q == 0 && row < text.len)
            lse[(long long)(text.first + row) * heads + head] = max[h] + logf(total);
#pragma unroll
        for (int j = 0; j < HS / 8; ++j) acc[j][2 * h] *= share, acc[j][2 * h + 1] *= share;
    }
    store_rows<HS>(out + to.at + (long long)query * to.ld, to.ld, acc, 1.f, queries,
                   text.len - query, hs);
}

// Of texts longer than a tile: delta and dQ of one tile of queries.
template <int HS>
__forceinline__ __device__ void backward_queries(__half* dqkv, float* delta, const __half* qkv,
                                                 const __half* dout, const float* lse,
                                                 const SeqParams* seqs, const StepParams* step,
                                                 int heads, int hs, bool causal,
                                                 Dropout drop) {
    __shared__ __align__(16) __half queries[TILE * HS], keys[TILE * HS], values[TILE * HS],
        douts[TILE * HS];
    if (blockIdx.x >= step->n_rows[SEQS]) return;
    SeqParams text = seqs[blockIdx.x];
    int head = blockIdx.y, query0 = blockIdx.z * TILE, C = heads * hs;
    if (query0 >= text.len || text.len <= TILE) return;
    Head in = head_of(text, 3, heads, hs), from = head_of(text, 1, heads, hs);
    const MemberParams& member = step->members()[text.member];
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, query = query0 + warp_row();
    long long row0 = in.at + (long long)query0 * in.ld;
    load_tile<HS>(queries, qkv + row0, in.ld, text.len - query0, hs);
    load_tile<HS>(douts, dout + from.at + (long long)query0 * from.ld, from.ld, text.len - query0,
                  hs);
    float sum[2] = {};
    Rows16<HS> dq = {};
    int n_keys = seen(text, query0 + TILE - 1, causal);
    // All keys once for delta, which dS needs, and once more for dQ.
    for (int turn = 0; turn < 2; ++turn)
        for (int key0 = 0; key0 < n_keys; key0 += TILE) {
            const __half* keys_at = qkv + in.at + (long long)key0 * in.ld + C;
            __syncthreads();   // all have left the last tile of keys
            load_tile<HS>(keys, keys_at, in.ld, text.len - key0, hs);
            load_tile<HS>(values, keys_at + C, in.ld, text.len - key0, hs);
            cp_async_commit();
            unsigned keep = keep_bits(drop, member, text, head, query, key0);
            cp_async_wait<0>();
            __syncthreads();
            Again<HS> x;
            x.make(queries, keys, values, douts, lse, keep, text, query, key0, heads, hs, causal,
                   drop.scale);
            if (turn == 0) {
                sum[0] += x.delta(0);
                sum[1] += x.delta(1);
            } else {
                Left ds;
                x.dscores(ds, sum);
                add_product<HS>(dq, ds, keys);
            }
        }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        int row = query + g + 8 * h;
        if (q == 0 && row < text.len)
            delta[(long long)(text.first + row) * heads + head] = sum[h];
    }
    store_rows<HS>(dqkv + in.at + (long long)query * in.ld, in.ld, dq, 1.f / sqrtf(hs), queries,
                   text.len - query, hs);
}

// dK and dV of one tile of keys over the tiles of queries; where there is but one of each, delta
// and dQ too.
template <int HS>
__forceinline__ __device__ void backward(__half* dqkv, const __half* qkv, const __half* dout,
                                         const float* lse, const float* delta,
                                         const SeqParams* seqs, const StepParams* step, int heads,
                                         int hs, bool causal, Dropout drop) {
    __shared__ __align__(16) __half queries[TILE * HS], keys[TILE * HS], values[TILE * HS],
        douts[TILE * HS], shared_mp[TILE * TILE], shared_ds[TILE * TILE];
    if (blockIdx.x >= step->n_rows[SEQS]) return;
    SeqParams text = seqs[blockIdx.x];
    int head = blockIdx.y, key0 = blockIdx.z * TILE, C = heads * hs;
    if (key0 >= text.len) return;
    Head in = head_of(text, 3, heads, hs), from = head_of(text, 1, heads, hs);
    const MemberParams& member = step->members()[text.member];
    bool is_short = text.len <= TILE;
    float root = 1.f / sqrtf(hs);
    const __half* keys_at = qkv + in.at + (long long)key0 * in.ld + C;
    load_tile<HS>(keys, keys_at, in.ld, text.len - key0, hs);
    load_tile<HS>(values, keys_at + C, in.ld, text.len - key0, hs);
    Rows16<HS> dk = {}, dv = {};
    Left ds;
    for (int query0 = causal ? key0 : 0; query0 < text.len; query0 += TILE) {
        int query = query0 + warp_row();
        __syncthreads();   // all have left the last tile of queries
        load_tile<HS>(queries, qkv + in.at + (long long)query0 * in.ld, in.ld, text.len - query0,
                      hs);
        load_tile<HS>(douts, dout + from.at + (long long)query0 * from.ld, from.ld,
                      text.len - query0, hs);
        cp_async_commit();
        unsigned keep = keep_bits(drop, member, text, head, query, key0);
        cp_async_wait<0>();
        __syncthreads();
        Again<HS> x;
        x.make(queries, keys, values, douts, lse, keep, text, query, key0, heads, hs, causal,
               drop.scale);
        float sum[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int row = query + threadIdx.x % 32 / 4 + 8 * h;
            if (is_short) sum[h] = x.delta(h);
            else sum[h] = row < text.len ? delta[(long long)(text.first + row) * heads + head] : 0;
        }
        Left left;
        x.dropped(left, keep, drop.scale);
        share(shared_mp, left);
        x.dscores(ds, sum);
        share(shared_ds, ds);
        __syncthreads();   // from here on nobody reads the values, if this was the last tile
        add_transposed<HS>(dv, shared_mp, douts);
        add_transposed<HS>(dk, shared_ds, queries);
    }
    int key = key0 + warp_row();
    __half* to = dqkv + in.at + (long long)key * in.ld + C;
    store_rows<HS>(to, in.ld, dk, root, values, text.len - key, hs);
    store_rows<HS>(to + C, in.ld, dv, 1.f, values, text.len - key, hs);
    if (!is_short) return;
    Rows16<HS> dq = {};
    add_product<HS>(dq, ds, keys);
    store_rows<HS>(to - C, in.ld, dq, root, values, text.len - key, hs);
}

}  // namespace

// Grid of all: (S of the bucket, NH, ceil(longest text / 32)); block: 64.
extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_32_f16(
    __half* out, float* lse, const __half* qkv, const SeqParams* seqs, const StepParams* step,
    int heads, int hs, int causal, unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    forward<32>(out, lse, qkv, seqs, step, heads, hs, causal,
                {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_64_f16(
    __half* out, float* lse, const __half* qkv, const SeqParams* seqs, const StepParams* step,
    int heads, int hs, int causal, unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    forward<64>(out, lse, qkv, seqs, step, heads, hs, causal,
                {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_128_f16(
    __half* out, float* lse, const __half* qkv, const SeqParams* seqs, const StepParams* step,
    int heads, int hs, int causal, unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    forward<128>(out, lse, qkv, seqs, step, heads, hs, causal,
                {drop_threshold, drop_scale, drop_site});
}

// Before the next ones, where the bucket has texts longer than a tile.
extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries_32_f16(
    __half* dqkv, float* delta, const __half* qkv, const __half* dout, const float* lse,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward_queries<32>(dqkv, delta, qkv, dout, lse, seqs, step, heads, hs, causal,
                         {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries_64_f16(
    __half* dqkv, float* delta, const __half* qkv, const __half* dout, const float* lse,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward_queries<64>(dqkv, delta, qkv, dout, lse, seqs, step, heads, hs, causal,
                         {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries_128_f16(
    __half* dqkv, float* delta, const __half* qkv, const __half* dout, const float* lse,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward_queries<128>(dqkv, delta, qkv, dout, lse, seqs, step, heads, hs, causal,
                         {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_32_f16(
    __half* dqkv, const __half* qkv, const __half* dout, const float* lse, const float* delta,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward<32>(dqkv, qkv, dout, lse, delta, seqs, step, heads, hs, causal,
                 {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_64_f16(
    __half* dqkv, const __half* qkv, const __half* dout, const float* lse, const float* delta,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward<64>(dqkv, qkv, dout, lse, delta, seqs, step, heads, hs, causal,
                 {drop_threshold, drop_scale, drop_site});
}

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_128_f16(
    __half* dqkv, const __half* qkv, const __half* dout, const float* lse, const float* delta,
    const SeqParams* seqs, const StepParams* step, int heads, int hs, int causal,
    unsigned drop_threshold, float drop_scale, unsigned drop_site) {
    backward<128>(dqkv, qkv, dout, lse, delta, seqs, step, heads, hs, causal,
                 {drop_threshold, drop_scale, drop_site});
}
