// CLIP's symmetric contrastive loss of each member, without its (N, N) matrix of logits.
//
// Computes  l = 100 a b^T over a member's n pairs of unit rows; lse[i] = (log sum_j exp l_ij,
//           log sum_j exp l_ji), terms = lse - l_ii, loss = sum(terms) / 2n. With its weight w,
//           D_ij = exp(l_ij - lse[i].0) + exp(l_ij - lse[j].1) - 2 [i = j] and
//           s = 100 w loss_scale / 2n:  db = s D^T a,  da = s D b.
//           Pair 0: a images, b anchors; 1: a partners, b anchors; 2: a images, b partners.
// Arguments image (N, 2, ld) text (S, 2, ld) f16: rows, and what rounding to f16 took from them,
//           each of E numbers; dimage (N, E) dtext (S, E) f16; lse low terms (N, 2) f32; loss (G)
//           f32; step StepParams. low is what rounding took from lse, which is near 100, so that
//           a small 1 - exp(l_ii - lse) keeps its digits. A member's texts are its anchors, then as
//           many partners or none.
// Layout    Rows lie `ld` halves apart, 2 ld in image and text, a multiple of 8, each pointer at 16
//           bytes; columns E..ld are zero where read and written as zero.
// Writes    = lse, low, terms, loss (0 where w is 0 or there are no partners), dtext of all texts,
//           zero where no gradient flows, dimage (null: not wanted).
// Source    Radford et al., "Learning transferable visual models" (2021), figure 3; running sums:
//           Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
#include "block_sum.cuh"
#include "gemm.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

enum Pair { IMAGE_ANCHOR = 0, PARTNER_ANCHOR = 1, IMAGE_PARTNER = 2 };
enum Target { ANCHORS = 0, PARTNERS = 1, IMAGES = 2 };

constexpr float LOGIT_SCALE = 100.f;
// Columns of a gradient block. D is in [-2, 2]; times 2^14 its small entries stay normal in f16. It
// and the rows are spent as a rounded part and the rest: sums over features that share a mean
// cancel.
constexpr int COLS = 256;
constexpr float D_SCALE = 16384.f;

using T = Tile<64, 64, 4, 2>;
static_assert(T::BM == ITEM_TILE && T::BN == ITEM_TILE, "one tile of items a block");

// The member of a block, its rows and its place among them.
struct Work {
    int item0, anchor0, partner0, n_items, n_partners, n, i0;
    float weight, loss_scale;
    bool stop_partner;
};

__forceinline__ __device__ Work find_work(const StepParams* step, int pair) {
    int g = find_member(step, blockIdx.x, [](const MemberParams& m) { return m.tile_start; });
    const MemberParams& m = step->members()[g];
    Work w;
    w.item0 = m.rows[ITEMS][0];
    w.n_items = m.rows[ITEMS][1] - m.rows[ITEMS][0];
    w.anchor0 = m.rows[SEQS][0];
    w.partner0 = w.anchor0 + w.n_items;
    w.n_partners = int(m.rows[SEQS][1]) - w.partner0;
    w.n = pair == IMAGE_ANCHOR ? w.n_items : w.n_partners;
    w.i0 = (blockIdx.x - m.tile_start) * ITEM_TILE;
    w.weight = m.weights[pair];
    w.loss_scale = m.loss_scale;
    w.stop_partner = m.stop_partner;
    return w;
}

// Side 0 is a, side 1 is b.
__forceinline__ __device__ Operand side_rows(const Work& w, int pair, int side, const __half* image,
                                             const __half* text, int ld) {
    bool is_image = side == 0 && pair != PARTNER_ANCHOR;
    bool partner = side == 0 ? pair == PARTNER_ANCHOR : pair == IMAGE_PARTNER;
    long long row = is_image ? w.item0 : partner ? w.partner0 : w.anchor0;
    return {(is_image ? image : text) + row * 2 * ld, 2 * ld, w.n};
}

// A tile of a product of two sides, each rounded to f16 and what that took. The two rests' product
// is below f32's own rounding; what has one rest comes first, lest it be rounded as a large sum is,
// and a's rows before b's, so that either side sees the same bits.
__forceinline__ __device__ void cosines(float (&acc)[1][T::NI][4], __half* shared, const Operand& x,
                                        const Operand& y, int side, int i0, int j0, int E) {
    int K = (E + 7) / 8 * 8;
    Operand x_low = {x.data + x.ld / 2, x.ld, x.n_rows};
    Operand y_low = {y.data + y.ld / 2, y.ld, y.n_rows};
    if (side == 1) T::run<Table::N_K>(acc, shared, x_low, y, i0, j0, K);
    T::run<Table::N_K>(acc, shared, x, y_low, i0, j0, K);
    if (side == 0) T::run<Table::N_K>(acc, shared, x_low, y, i0, j0, K);
    T::run<Table::N_K>(acc, shared, x, y, i0, j0, K);
}

// Columns e0 to e0 + COLS of 64 rows of a side from j0 on, on their way to `to`.
__forceinline__ __device__ void load_columns(__half* to, const __half* from, int ld, int j0, int n,
                                             int e0, int E) {
#pragma unroll
    for (int i = 0; i < ITEM_TILE * COLS / 8 / 256; ++i) {
        int at = i * 256 + threadIdx.x, row = at / (COLS / 8), chunk = at % (COLS / 8);
        bool ok = j0 + row < n && e0 + chunk * 8 < E;
        const __half* src = ok ? from + (long long)(j0 + row) * ld + e0 + chunk * 8 : from;
        cp_async16(to + swizzle<COLS / 8>(row, chunk), src, ok);
    }
    cp_async_commit();
}

// o (16 rows and half the columns a warp) += d (64, 64) side (64, COLS).
__forceinline__ __device__ void add_product(float (&o)[COLS / 16][4], const __half* d,
                                            const __half* side) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < ITEM_TILE; k += 16) {
        unsigned a[4], b[4];
        ldmatrix4(a, d + swizzle<ITEM_TILE / 8>(T::warp_m() + lane % 16, k / 8 + lane / 16));
#pragma unroll
        for (int j = 0; j < COLS / 16; j += 2) {
            int chunk = T::warp_n() / T::WN * (COLS / 16) + j + lane / 16;
            ldmatrix4_trans(b, side + swizzle<COLS / 8>(k + lane % 16, chunk));
            mma16816(o[j], a, b[0], b[1]);
            mma16816(o[j + 1], a, b[2], b[3]);
        }
    }
}

// Never fused with what is subtracted: the backward must see the forward's bits.
__forceinline__ __device__ float logit(float cosine) { return __fmul_rn(LOGIT_SCALE, cosine); }

// Joins two pairs of a maximum and a sum of exp(x - maximum).
__forceinline__ __device__ void merge(float& max, float& sum, float other_max, float other_sum) {
    float top = fmaxf(max, other_max);
    sum = sum * __expf(max - top) + other_sum * __expf(other_max - top);
    max = top;
}

}  // namespace

// A block has 64 rows of one side against all of the other; logits live in registers.
// Grid: (ceil(N / 64) of the bucket + G, 2 sides); block: 256.
extern "C" __global__ void __launch_bounds__(256) contrastive_forward_f16(
    float* lse, float* low, float* terms, const __half* image, const __half* text,
    const StepParams* step, int pair, int E, int ld) {
    __shared__ __align__(16) __half shared[T::SHARED];
    __shared__ float part[3][2][ITEM_TILE];   // max, sum and own logit, by half of the columns
    Work w = find_work(step, pair);
    if (w.i0 >= w.n_items) return;
    int side = blockIdx.y, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    int i = w.i0 + threadIdx.x;
    long long at = 2ll * (w.item0 + i) + side;
    bool writes = threadIdx.x < ITEM_TILE && i < w.n_items;
    if (w.n <= 0 || w.weight == 0.f) {
        if (writes) lse[at] = low[at] = terms[at] = 0.f;
        return;
    }
    Operand x = side_rows(w, pair, side, image, text, ld);
    Operand y = side_rows(w, pair, 1 - side, image, text, ld);
    // Finite, so that a run of columns past the end adds exp(-inf) = 0.
    float max[2] = {-1e30f, -1e30f}, sum[2] = {}, own[2] = {};
    for (int j0 = 0; j0 < w.n; j0 += T::BN) {
        float acc[1][T::NI][4] = {};
        cosines(acc, shared, x, y, side, w.i0, j0, E);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int row = w.i0 + T::warp_m() + g + 8 * h;
            float l[2 * T::NI], top = -1e30f, add = 0.f;
#pragma unroll
            for (int k = 0; k < 2 * T::NI; ++k) {
                int col = j0 + T::warp_n() + k / 2 * 8 + 2 * q + k % 2;
                l[k] = col < w.n ? logit(acc[0][k / 2][2 * h + k % 2]) : -INFINITY;
                top = fmaxf(top, l[k]);
                if (col == row && col < w.n) own[h] = l[k];
            }
            top = quad_max(top);
#pragma unroll
            for (int k = 0; k < 2 * T::NI; ++k) add += __expf(l[k] - top);
            merge(max[h], sum[h], top, quad_sum(add));
        }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        float mine = quad_sum(own[h]);
        int row = T::warp_m() + g + 8 * h, half = T::warp_n() / T::WN;
        if (q == 0) {
            part[0][half][row] = max[h];
            part[1][half][row] = sum[h];
            part[2][half][row] = mine;
        }
    }
    __syncthreads();
    if (!writes) return;
    int row = threadIdx.x;
    float m = part[0][0][row], s = part[1][0][row];
    merge(m, s, part[0][1][row], part[1][1][row]);
    float rest = logf(s), value = m + rest;
    lse[at] = value;
    low[at] = m - value + rest;
    // Where the pair has the largest logit, as it should, the difference is exactly 0.
    terms[at] = m - (part[2][0][row] + part[2][1][row]) + rest;
}

// Grid: G; block: 128.
extern "C" __global__ void __launch_bounds__(128) contrastive_loss_f32(
    float* loss, const float* terms, const StepParams* step) {
    const MemberParams& m = step->members()[blockIdx.x];
    int n = m.rows[ITEMS][1] - m.rows[ITEMS][0], t = threadIdx.x;
    const float* own = terms + 2ll * m.rows[ITEMS][0];
    float sum = 0.f;
    for (int i = t; i < 2 * n; i += 128) sum += own[i];
    sum = tree_sum<128>(sum);
    if (t == 0) loss[blockIdx.x] = n > 0 ? sum / (2 * n) : 0.f;
}

// A block has 64 rows and COLS columns of one gradient: it makes the logits again, tile by tile,
// and spends D as an operand of the second product, less the rests' own.
// Grid: (ceil(N / 64) of the bucket + G, ceil(E / 256), 2, or 3 with dimage); block: 256.
extern "C" __global__ void __launch_bounds__(256) contrastive_backward_f16(
    __half* dtext, __half* dimage, const __half* image, const __half* text, const float* lse,
    const float* low, const StepParams* step, int pair, int E, int ld) {
    __shared__ __align__(16) __half shared[ITEM_TILE * COLS];   // holds T::SHARED too
    __shared__ __align__(16) __half d[2][ITEM_TILE * ITEM_TILE];
    static_assert(T::SHARED <= ITEM_TILE * COLS, "the logits' stages fit");
    Work w = find_work(step, pair);
    int target = blockIdx.z, Ep = (E + 7) / 8 * 8, e0 = blockIdx.y * COLS;
    int n_rows = target == PARTNERS ? w.n_partners : w.n_items;
    if (w.i0 >= n_rows) return;
    int side = target == IMAGES || (target == PARTNERS && pair == PARTNER_ANCHOR) ? 0 : 1;
    bool flows = target == ANCHORS    ? pair != IMAGE_PARTNER
                 : target == PARTNERS ? pair != IMAGE_ANCHOR && !w.stop_partner
                                      : pair != PARTNER_ANCHOR;
    long long first = target == IMAGES ? w.item0 : target == PARTNERS ? w.partner0 : w.anchor0;
    __half* out = (target == IMAGES ? dimage : dtext) + first * ld;
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    float o[COLS / 16][4] = {};   // 16 rows and half the columns a warp
    float scale = 0.f;
    if (flows && w.n > 0 && w.weight != 0.f) {
        scale = w.weight * w.loss_scale * LOGIT_SCALE / (2.f * w.n) / D_SCALE;
        Operand x = side_rows(w, pair, side, image, text, ld);
        Operand y = side_rows(w, pair, 1 - side, image, text, ld);
        const float *high = lse + 2ll * w.item0, *rest = low + 2ll * w.item0;
        for (int j0 = 0; j0 < w.n; j0 += T::BN) {
            float acc[1][T::NI][4] = {};
            cosines(acc, shared, x, y, side, w.i0, j0, E);
            load_columns(shared, y.data, y.ld, j0, w.n, e0, Ep);
            float2 own_high, own_rest;
#pragma unroll
            for (int k = 0; k < 2 * T::NI; ++k) {
                int h = k / T::NI, j = k % T::NI, row = T::warp_m() + g + 8 * h, i = w.i0 + row;
                if (j == 0) {
                    // Both sides of a row: neighbours' fill a sector.
                    int at = 2 * min(i, w.n - 1);
                    own_high = *reinterpret_cast<const float2*>(high + at);
                    own_rest = *reinterpret_cast<const float2*>(rest + at);
                }
                int col = j0 + T::warp_n() + j * 8 + 2 * q;
                float v[2];
#pragma unroll
                for (int c = 0; c < 2; ++c) {
                    float l = logit(acc[0][j][2 * h + c]);
                    int other = 2 * (col + c) + 1 - side;
                    bool inside = i < w.n && col + c < w.n;
                    v[c] = !inside ? 0.f
                                   : __expf(l - (side ? own_high.y : own_high.x) -
                                                 (side ? own_rest.y : own_rest.x)) +
                                         __expf(l - high[other] - rest[other]) -
                                         (i == col + c ? 2.f : 0.f);
                }
                int at = swizzle<ITEM_TILE / 8>(row, T::warp_n() / 8 + j) + 2 * q;
                unsigned high = pack2(D_SCALE * v[0], D_SCALE * v[1]);
                float2 back = unpack2(high);
                *reinterpret_cast<unsigned*>(d[0] + at) = high;
                *reinterpret_cast<unsigned*>(d[1] + at) =
                    pack2(D_SCALE * v[0] - back.x, D_SCALE * v[1] - back.y);
            }
            cp_async_wait<0>();
            __syncthreads();
            add_product(o, d[0], shared);
            add_product(o, d[1], shared);
            __syncthreads();
            load_columns(shared, y.data + y.ld / 2, y.ld, j0, w.n, e0, Ep);
            cp_async_wait<0>();
            __syncthreads();
            add_product(o, d[0], shared);
            __syncthreads();
        }
    }
#pragma unroll
    for (int k = 0; k < COLS / 8; ++k) {
        int h = k % 2, j = k / 2, chunk = T::warp_n() / T::WN * (COLS / 16) + j;
        int at = swizzle<COLS / 8>(T::warp_m() + g + 8 * h, chunk) + 2 * q;
        *reinterpret_cast<unsigned*>(shared + at) =
            pack2(scale * o[j][2 * h], scale * o[j][2 * h + 1]);
    }
    __syncthreads();
    for (int at = threadIdx.x; at < ITEM_TILE * COLS / 8; at += 256) {
        int row = at / (COLS / 8), chunk = at % (COLS / 8);
        if (w.i0 + row < n_rows && e0 + chunk * 8 < Ep)
            store16(out + (long long)(w.i0 + row) * ld + e0 + chunk * 8,
                    load16(shared + swizzle<COLS / 8>(row, chunk)));
    }
}
