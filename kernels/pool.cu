// One row of each text's tokens: their mean, special tokens counted (M-CLIP's masked mean pooling), the
// first (a picture's class token) or the last (the end of CLIP's texts).
//
// Computes  out[s] = sum over those n_s tokens t of text s that count of inp[t] / n_s;
//           dinp[t] = dout[s] / n_s, 0 where t does not count.
// Arguments inp dinp (T, C) f16; out dout (S, C) f16; step StepParams, seqs (S) SeqParams, tokens
//           (T) TokenParams.
// Layout    Rows lie `ld` halves apart, a multiple of 8, each pointer at 16 bytes; columns C..ld are
//           zero where read and written as zero.
// Writes    = out, dinp.
// Source    Carlsson et al., "Cross-lingual and multilingual CLIP" (2022); Radford et al., "Learning
//           transferable visual models from natural language supervision" (2021).
#include "step_params.cuh"
#include "vec.cuh"

namespace {

enum Pooling { MEAN = 0, FIRST = 1, LAST = 2 };

struct Tokens { int first, n; };

// Those of a text that count.
__forceinline__ __device__ Tokens that_count(const SeqParams& text, int pooling) {
    if (pooling == MEAN) return {text.first, text.len};
    return {pooling == FIRST ? text.first : text.first + text.len - 1, 1};
}

}  // namespace

// Eight columns of a text a thread, token after token.
// Grid: (S of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) pool_forward_f16(
    __half* out, const __half* inp, const StepParams* step, const SeqParams* seqs,
    int pooling, int ld) {
    unsigned s = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (col >= ld || s >= step->n_rows[SEQS]) return;
    Tokens tokens = that_count(load_whole(seqs + s), pooling);
    float sum[8] = {};
    for (int t = tokens.first; t < tokens.first + tokens.n; ++t) {
        float x[8];
        unpack8(x, load16(inp + (long long)t * ld + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += x[j];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] /= tokens.n;
    store16(out + (long long)s * ld + col, pack8(sum));
}

// Eight columns of a token a thread. Grid: (T of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) pool_backward_f16(
    __half* dinp, const __half* dout, const StepParams* step, const SeqParams* seqs,
    const TokenParams* tokens, int pooling, int ld) {
    unsigned t = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (col >= ld || t >= step->n_rows[TOKENS]) return;
    unsigned s = tokens[t].seq;
    Tokens counted = that_count(seqs[s], pooling);
    float d[8] = {};
    if (int(t) >= counted.first && int(t) < counted.first + counted.n) {
        unpack8(d, load16(dout + (long long)s * ld + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) d[j] /= counted.n;
    }
    store16(dinp + (long long)t * ld + col, pack8(d));
}
