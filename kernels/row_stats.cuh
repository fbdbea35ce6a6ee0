// What a layer norm measures of a row that a warp has in registers.
#pragma once
#include "vec.cuh"

// Mean and reciprocal standard deviation of C numbers. A lane has columns 8 lane to 8 lane + 7 of
// every 256; what it has past C, up to ld, is not counted.
template <int VECS>
__forceinline__ __device__ float2 row_stats(const float (&x)[VECS][8], int C, int ld, float eps) {
    int lane = threadIdx.x % 32;
    float sum = 0.f, square = 0.f;
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (col >= ld) continue;
        if (col + 8 <= C) {
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += x[i][j];
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) sum += col + j < C ? x[i][j] : 0.f;
        }
    }
    float mean = warp_sum(sum) / C;
#pragma unroll
    for (int i = 0; i < VECS; ++i) {
        int col = (i * 32 + lane) * 8;
        if (col >= ld) continue;
        if (col + 8 <= C) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float d = x[i][j] - mean;
                // Not fused, as below: a number has the same part of the sum wherever it stands.
                square = __fadd_rn(square, __fmul_rn(d, d));
            }
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                float d = x[i][j] - mean;
                square += col + j < C ? d * d : 0.f;
            }
        }
    }
    return make_float2(mean, 1.f / sqrtf(warp_sum(square) / C + eps));
}
