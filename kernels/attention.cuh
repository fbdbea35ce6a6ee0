// Tiles of attention: 16 rows a warp against TILE rows of shared memory.
//
// A tile is (TILE, HS) f16 in shared memory, 16-byte chunks swizzled, zero past the true rows and
// columns. A warp's 16 rows of a product lie in registers as mma16816 leaves them: lane 4 g + q has
// rows g and g + 8 (h = 0, 1) at columns 8 j + 2 q and the next, in x[j][2 h] and x[j][2 h + 1].
#pragma once
#include "mma.cuh"
#include "philox.cuh"
#include "step_params.cuh"
#include "vec.cuh"

// Queries of a block and keys of a step; most captions are no longer.
constexpr int TILE = 32;
constexpr int THREADS = TILE / 16 * 32;
constexpr int NT = TILE / 8;

using Scores = float[NT][4];
template <int HS> using Rows16 = float[HS / 8][4];

// How many tokens of its text the query at `place` sees.
__forceinline__ __device__ int seen(const SeqParams& text, int place, bool causal) {
    return causal ? min(place + 1, text.len) : text.len;
}

__forceinline__ __device__ int warp_row() { return threadIdx.x / 32 * 16; }

// `n_rows` rows of `hs` numbers, at most TILE and HS.
template <int HS>
__forceinline__ __device__ void load_tile(__half* tile, const __half* from, int ld, int n_rows,
                                          int hs) {
#pragma unroll 2
    for (int i = 0; i < TILE * HS / 8 / THREADS; ++i) {
        int at = i * THREADS + threadIdx.x, row = at / (HS / 8), chunk = at % (HS / 8);
        bool ok = row < n_rows && chunk * 8 < hs;
        const __half* src = ok ? from + (long long)row * ld + chunk * 8 : from;
        cp_async16(tile + swizzle<HS / 8>(row, chunk), src, ok);
    }
}

// s = x y^T of the warp's rows of x and all rows of y.
template <int HS>
__forceinline__ __device__ void scores(Scores& s, const __half* x, const __half* y) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < NT; ++j) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0.f;
#pragma unroll 2   // more would hold more loads in registers than there are
    for (int k = 0; k < HS / 8; k += 2) {
        unsigned a[4], b[4];
        ldmatrix4(a, x + swizzle<HS / 8>(warp_row() + lane % 16, k + lane / 16));
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            int row = j * 8 + lane % 8 + lane / 16 * 8;
            ldmatrix4(b, y + swizzle<HS / 8>(row, k + lane / 8 % 2));
            mma16816(s[j], a, b[0], b[1]);
            mma16816(s[j + 1], a, b[2], b[3]);
        }
    }
}

// The left operand of a product over TILE, rounded to f16.
using Left = unsigned[TILE / 16][4];

// From registers: the warp's rows are the rows.
__forceinline__ __device__ void left_of(Left& a, const Scores& p) {
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float* two = &p[2 * k + i / 2][i % 2 * 2];
            a[k][i] = pack2(two[0], two[1]);
        }
}

// Leaves the warp's rows in a (TILE, TILE) tile.
__forceinline__ __device__ void share(__half* tile, const Left& a) {
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            int at = swizzle<NT>(warp_row() + g + i % 2 * 8, 2 * k + i / 2) + 2 * q;
            *reinterpret_cast<unsigned*>(tile + at) = a[k][i];
        }
}

// acc += a y.
template <int HS>
__forceinline__ __device__ void add_product(Rows16<HS>& acc, const Left& a, const __half* y) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < TILE / 16; ++k)
#pragma unroll
        for (int j = 0; j < HS / 8; j += 2) {
            unsigned b[4];
            ldmatrix4_trans(b, y + swizzle<HS / 8>(k * 16 + lane % 16, j + lane / 16));
            mma16816(acc[j], a[k], b[0], b[1]);
            mma16816(acc[j + 1], a[k], b[2], b[3]);
        }
}

// acc += x^T y with x such a (TILE, TILE) tile, of whose columns the warp takes 16, from its row
// number on. Step by step, since the backward is short of registers.
template <int HS>
__forceinline__ __device__ void add_transposed(Rows16<HS>& acc, const __half* x, const __half* y) {
    int lane = threadIdx.x % 32;
#pragma unroll 1
    for (int k = 0; k < TILE; k += 16) {
        unsigned a[4], b[4];
        int row = k + lane / 16 * 8 + lane % 8;
        ldmatrix4_trans(a, x + swizzle<NT>(row, warp_row() / 8 + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < HS / 8; j += 2) {
            ldmatrix4_trans(b, y + swizzle<HS / 8>(k + lane % 16, j + lane / 16));
            mma16816(acc[j], a, b[0], b[1]);
            mma16816(acc[j + 1], a, b[2], b[3]);
        }
    }
}

// Writes `n_rows` of the warp's rows times `scale`, 16 bytes a lane, through its own rows of a tile
// that no other warp reads any more.
template <int HS>
__forceinline__ __device__ void store_rows(__half* out, int ld, const Rows16<HS>& acc, float scale,
                                           __half* tile, int n_rows, int hs) {
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < HS / 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int at = swizzle<HS / 8>(warp_row() + g + 8 * h, j) + 2 * q;
            *reinterpret_cast<unsigned*>(tile + at) =
                pack2(scale * acc[j][2 * h], scale * acc[j][2 * h + 1]);
        }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < HS / 16; ++i) {
        int at = i * 32 + lane, row = at / (HS / 8), chunk = at % (HS / 8);
        if (row < n_rows && chunk * 8 < hs)
            store16(out + (long long)row * ld + chunk * 8,
                    load16(tile + swizzle<HS / 8>(warp_row() + row, chunk)));
    }
}

// Which of a warp's 16 queries from `query` on and TILE keys from `key` on are kept: bit 4 j + i
// for x[j][i]. Four keys share a Philox call and two lanes hold them, so one draws row g for both
// and the other row g + 8.
__forceinline__ __device__ unsigned keep_bits(const Dropout& d, const MemberParams& member,
                                              const SeqParams& text, int head, int query, int key) {
    if (!d.threshold) return ~0u;
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    unsigned place = head << 16 | (query + g + q % 2 * 8), bits = 0;
#pragma unroll
    for (int j = 0; j < NT; ++j) {
        if (query >= text.len || key + 8 * j >= text.len) continue;
        unsigned col = key / 4 + 2 * j + q / 2;
        uint4 w = philox(member.seed, make_uint4(col, place, d.site << 22 | text.what, member.step));
        bits |= unsigned(w.x >= d.threshold) << 4 * j | unsigned(w.y >= d.threshold) << (4 * j + 1) |
                unsigned(w.z >= d.threshold) << (4 * j + 2) |
                unsigned(w.w >= d.threshold) << (4 * j + 3);
    }
    unsigned other = __shfl_xor_sync(~0u, bits, 1);
    unsigned low = q % 2 ? other >> 2 : bits, high = q % 2 ? bits >> 2 : other;
    return (low & 0x33333333u) | (high & 0x33333333u) << 2;
}

// P and dP of a warp's queries and a tile of keys; P is 0 for what is not seen.
template <int HS> struct Again {
    Scores p, dp;

    __forceinline__ __device__ void make(const __half* queries, const __half* keys,
                                         const __half* values, const __half* douts,
                                         const float* lse, unsigned keep, const SeqParams& text,
                                         int query, int key0, int heads, int hs, bool causal,
                                         float drop_scale) {
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        float scale = 1.f / sqrtf(hs);
        scores<HS>(p, queries, keys);
        scores<HS>(dp, douts, values);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int row = query + g + 8 * h;
            bool inside = row < text.len;
            float log = inside ? lse[(long long)(text.first + row) * heads + blockIdx.y] : 0.f;
            int end = inside ? seen(text, row, causal) - key0 : 0;
#pragma unroll
            for (int k = 0; k < 2 * NT; ++k) {
                int j = k / 2, i = 2 * h + k % 2, col = j * 8 + 2 * q + k % 2;
                p[j][i] = col < end ? __expf(scale * p[j][i] - log) : 0.f;
                dp[j][i] *= keep >> (4 * j + i) & 1 ? drop_scale : 0.f;
            }
        }
    }

    // This tile's part of delta of row g + 8 h.
    __forceinline__ __device__ float delta(int h) const {
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < 2 * NT; ++k)
            sum = fmaf(p[k / 2][2 * h + k % 2], dp[k / 2][2 * h + k % 2], sum);
        return quad_sum(sum);
    }

    // m P
    __forceinline__ __device__ void dropped(Left& mp, unsigned keep, float drop_scale) const {
        Scores x;
#pragma unroll
        for (int k = 0; k < 4 * NT; ++k)
            x[k / 4][k % 4] = keep >> k & 1 ? drop_scale * p[k / 4][k % 4] : 0.f;
        left_of(mp, x);
    }

    // dS sqrt(HS): the root is left to the products' ends, small numbers are short of bits in f16.
    __forceinline__ __device__ void dscores(Left& ds, const float (&delta)[2]) {
#pragma unroll
        for (int j = 0; j < NT; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) dp[j][i] = p[j][i] * (dp[j][i] - delta[i / 2]);
        left_of(ds, dp);
    }
};
