// Mean squared error between a member's anchors and partners, on features that are not normalised.
//
// Computes  loss = sum over its n partners and E columns of (anchor - partner)^2 / (n E), 0 without
//           partners;  danchor = 2 w loss_scale (anchor - partner) / (n E),  dpartner = -danchor,
//           0 where partners take no gradient; w the member's weight.
// Arguments text dtext (S, E) f16; loss (G) f32; step StepParams, seqs (S) SeqParams.
// Layout    Rows lie `ld` halves apart, a multiple of 8, each pointer at 16 bytes; columns E..ld are
//           zero where read and written as zero. A member's texts are its anchors, then as many
//           partners or none.
// Writes    = loss, dtext of all texts.
// Source    Reimers and Gurevych, "Making monolingual sentence embeddings multilingual" (2020), 3.
#include "block_sum.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

// Anchors of a member, and its partners: as many or none.
struct Texts {
    int first, n_items, n_partners;
};

__forceinline__ __device__ Texts texts_of(const MemberParams& m) {
    int n_items = m.rows[ITEMS][1] - m.rows[ITEMS][0];
    int n_seqs = m.rows[SEQS][1] - m.rows[SEQS][0];
    return {int(m.rows[SEQS][0]), n_items, n_seqs - n_items};
}

}  // namespace

// Threads take 16-byte pieces in turn and add up in a tree: the order depends on the member alone.
// Grid: G; block: 256.
extern "C" __global__ void __launch_bounds__(256) mse_forward_f32(
    float* loss, const __half* text, const StepParams* step, int E, int ld) {
    Texts m = texts_of(step->members()[blockIdx.x]);
    const __half* anchors = text + (long long)m.first * ld;
    const __half* partners = anchors + (long long)m.n_items * ld;
    int n_pieces = ld / 8 * m.n_partners, t = threadIdx.x;
    float sum = 0.f;
    for (int i = t; i < n_pieces; i += 256) {
        float a[8], p[8];
        unpack8(a, load16(anchors + 8ll * i));
        unpack8(p, load16(partners + 8ll * i));
#pragma unroll
        for (int j = 0; j < 8; ++j) sum = fmaf(a[j] - p[j], a[j] - p[j], sum);
    }
    sum = tree_sum<256>(sum);
    if (t == 0) loss[blockIdx.x] = m.n_partners > 0 ? sum / m.n_partners / E : 0.f;
}

// Eight columns of a text a thread. Grid: (S of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) mse_backward_f16(
    __half* dtext, const __half* text, const StepParams* step, const SeqParams* seqs, int E,
    int ld) {
    unsigned s = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (s >= step->n_rows[SEQS] || col >= ld) return;
    const MemberParams& member = step->members()[seqs[s].member];
    Texts m = texts_of(member);
    bool is_anchor = int(s) - m.first < m.n_items;
    float d[8] = {};
    if (m.n_partners > 0 && member.mse != 0.f && (is_anchor || !member.stop_partner)) {
        float scale = 2.f * member.mse * member.loss_scale / m.n_partners / E, other[8];
        long long at = (long long)s * ld + col;
        unpack8(d, load16(text + at));
        unpack8(other, load16(text + at + (is_anchor ? ld : -ld) * (long long)m.n_items));
#pragma unroll
        for (int j = 0; j < 8; ++j) d[j] = scale * (d[j] - other[j]);
    }
    store16(dtext + (long long)s * ld + col, pack8(d));
}
