// Sums over a block, in an order that nothing beside it changes.
#pragma once
#include "vec.cuh"

// Halves of the block are added until one number is left; the first thread has it.
template <int THREADS>
__forceinline__ __device__ float tree_sum(float x) {
    __shared__ float sums[THREADS];
    int t = threadIdx.x;
    sums[t] = x;
    for (int far = THREADS / 2; far > 0; far /= 2) {
        __syncthreads();
        if (t < far) sums[t] += sums[t + far];
    }
    return sums[0];
}

// Warps each add theirs, then these are added one after the other; every thread has the sum.
template <int THREADS>
__forceinline__ __device__ float warps_sum(float x) {
    __shared__ float sums[THREADS / 32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0.f;
    for (int w = 0; w < THREADS / 32; ++w) x += sums[w];
    return x;
}
