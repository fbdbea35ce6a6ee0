// Mean of each text's tokens, special tokens counted (M-CLIP's masked mean pooling).
//
// Computes  out[s] = sum over the tokens t of text s of inp[t] / n_s;  dinp[t] = dout[s] / n_s.
// Arguments inp dinp (T, C) f16; out dout (S, C) f16; step StepParams, seqs (S) SeqParams, tokens
//           (T) TokenParams.
// Layout    Rows lie `ld` halves apart, a multiple of 8, each pointer at 16 bytes; columns C..ld are
//           zero where read and written as zero.
// Writes    = out, dinp.
// Source    Carlsson et al., "Cross-lingual and multilingual CLIP" (2022).
#include "step_params.cuh"
#include "vec.cuh"

// Eight columns of a text a thread, token after token.
// Grid: (S of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) pool_forward_f16(
    __half* out, const __half* inp, const StepParams* step, const SeqParams* seqs, int ld) {
    unsigned s = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (s >= step->n_rows[SEQS] || col >= ld) return;
    SeqParams text = seqs[s];
    float sum[8] = {};
    for (int t = text.first; t < text.first + text.len; ++t) {
        float x[8];
        unpack8(x, load16(inp + (long long)t * ld + col));
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[j] += x[j];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) sum[j] /= text.len;
    store16(out + (long long)s * ld + col, pack8(sum));
}

// Eight columns of a token a thread. Grid: (T of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) pool_backward_f16(
    __half* dinp, const __half* dout, const StepParams* step, const SeqParams* seqs,
    const TokenParams* tokens, int ld) {
    unsigned t = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (t >= step->n_rows[TOKENS] || col >= ld) return;
    unsigned s = tokens[t].seq;
    int len = seqs[s].len;
    float d[8];
    unpack8(d, load16(dout + (long long)s * ld + col));
#pragma unroll
    for (int j = 0; j < 8; ++j) d[j] /= len;
    store16(dinp + (long long)t * ld + col, pack8(d));
}
