// The tokens of a picture: a class token, then its patches, each with the embedding of its place.
//
// Computes  out[t] = (class where place is 0, else patches[t]) + position[place].
// Arguments patches out (T, C) f16; class (C), position (P, C) f16; step StepParams, tokens (T)
//           TokenParams.
// Layout    Rows lie `ld` halves apart, a multiple of 8, each pointer at 16 bytes; columns C..ld are
//           zero where read and written as zero. out may be patches.
// Writes    = out.
// Source    Dosovitskiy et al., "An image is worth 16x16 words" (2021).
#include "step_params.cuh"
#include "vec.cuh"

// Eight columns of a token a thread. Grid: (T of the bucket, ceil(ld / 1024)); block: 128.
extern "C" __global__ void __launch_bounds__(128) vision_embedding_forward_f16(
    __half* out, const __half* patches, const __half* class_token, const __half* position,
    const StepParams* step, const TokenParams* tokens, int ld) {
    unsigned t = blockIdx.x;
    int col = (blockIdx.y * 128 + threadIdx.x) * 8;
    if (col >= ld || t >= step->n_rows[TOKENS]) return;
    unsigned place = load_whole(tokens + t).place;
    long long at = (long long)t * ld + col;
    float x[8], p[8];
    unpack8(x, load16(place ? patches + at : class_token + col));
    unpack8(p, load16(position + (long long)place * ld + col));
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] += p[j];
    store16(out + at, pack8(x));
}
