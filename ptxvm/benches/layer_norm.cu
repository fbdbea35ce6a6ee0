// A layer norm for the benchmark of the virtual machine: a block a row, sums in f32.
// nvcc -ptx -arch=compute_80 -lineinfo layer_norm.cu, then as in product.cu.
#include <cuda_fp16.h>

// out, inp (N, C) f16; weight, bias (C) f32; mean, rstd (N) f32 are written. C is a multiple of 8.
extern "C" __global__ void layer_norm(__half *out, float *mean, float *rstd, const __half *inp,
                                      const float *weight, const float *bias, int C) {
    __shared__ float partial[2][32];
    const uint4 *row = reinterpret_cast<const uint4 *>(inp + size_t(blockIdx.x) * C);
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float sum = 0.f, squares = 0.f;
    for (int i = threadIdx.x; i < C / 8; i += blockDim.x) {
        uint4 packed = row[i];
        const __half2 *x = reinterpret_cast<const __half2 *>(&packed);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 v = __half22float2(x[j]);
            sum += v.x + v.y;
            squares += v.x * v.x + v.y * v.y;
        }
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
        squares += __shfl_xor_sync(0xFFFFFFFFu, squares, offset);
    }
    if (lane == 0) {
        partial[0][warp] = sum;
        partial[1][warp] = squares;
    }
    __syncthreads();
    sum = lane < warps ? partial[0][lane] : 0.f;
    squares = lane < warps ? partial[1][lane] : 0.f;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, offset);
        squares += __shfl_xor_sync(0xFFFFFFFFu, squares, offset);
    }
    float m = sum / C;
    float s = rsqrtf(squares / C - m * m + 1e-5f);
    if (threadIdx.x == 0) {
        mean[blockIdx.x] = m;
        rstd[blockIdx.x] = s;
    }
    uint4 *to = reinterpret_cast<uint4 *>(out + size_t(blockIdx.x) * C);
    for (int i = threadIdx.x; i < C / 8; i += blockDim.x) {
        uint4 packed = row[i];
        const __half2 *x = reinterpret_cast<const __half2 *>(&packed);
        const float4 *w = reinterpret_cast<const float4 *>(weight) + 2 * i;
        const float4 *b = reinterpret_cast<const float4 *>(bias) + 2 * i;
        float4 w0 = w[0], w1 = w[1], b0 = b[0], b1 = b[1];
        float2 v0 = __half22float2(x[0]), v1 = __half22float2(x[1]);
        float2 v2 = __half22float2(x[2]), v3 = __half22float2(x[3]);
        __half2 y[4] = {
            __floats2half2_rn((v0.x - m) * s * w0.x + b0.x, (v0.y - m) * s * w0.y + b0.y),
            __floats2half2_rn((v1.x - m) * s * w0.z + b0.z, (v1.y - m) * s * w0.w + b0.w),
            __floats2half2_rn((v2.x - m) * s * w1.x + b1.x, (v2.y - m) * s * w1.y + b1.y),
            __floats2half2_rn((v3.x - m) * s * w1.z + b1.z, (v3.y - m) * s * w1.w + b1.w),
        };
        to[i] = *reinterpret_cast<uint4 *>(y);
    }
}
