// Eight f16 at a time between memory (16 bytes) and f32 registers, and sums over a warp or its quads.
#pragma once
#include <cuda_fp16.h>

__forceinline__ __device__ unsigned pack2(float lo, float hi) {
    __half2 h = __floats2half2_rn(lo, hi);
    return *reinterpret_cast<unsigned*>(&h);
}

__forceinline__ __device__ float2 unpack2(unsigned word) {
    return __half22float2(*reinterpret_cast<__half2*>(&word));
}

__forceinline__ __device__ void unpack8(float* x, uint4 v) {
    float2 a = unpack2(v.x), b = unpack2(v.y), c = unpack2(v.z), d = unpack2(v.w);
    x[0] = a.x; x[1] = a.y; x[2] = b.x; x[3] = b.y;
    x[4] = c.x; x[5] = c.y; x[6] = d.x; x[7] = d.y;
}

__forceinline__ __device__ uint4 pack8(const float* x) {
    return make_uint4(pack2(x[0], x[1]), pack2(x[2], x[3]), pack2(x[4], x[5]), pack2(x[6], x[7]));
}

__forceinline__ __device__ uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }

// A struct of 16 bytes in one request, which the compiler splits where a part alone is used. What it
// reads must not change while the kernel runs.
template <class T> __forceinline__ __device__ T load_whole(const T* p) {
    static_assert(sizeof(T) == 16, "a request is of 16 bytes");
    uint4 v;
    asm("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__cvta_generic_to_global(p)));
    return *reinterpret_cast<T*>(&v);
}

__forceinline__ __device__ void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

// Every lane gets the same bits: each step adds the same two numbers on both sides.
__forceinline__ __device__ float warp_sum(float x) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// Four such sums at once, in six exchanges instead of twenty, with the bits of `warp_sum`: lanes 8 j
// to 8 j + 7 get that of x[j].
__forceinline__ __device__ float warp_sums4(const float (&x)[4]) {
    // Half of a warp goes on with half of the sums.
    bool high = threadIdx.x & 16, odd = threadIdx.x & 8;
    float a = high ? x[2] : x[0], b = high ? x[3] : x[1];
    a += __shfl_xor_sync(~0u, high ? x[0] : x[2], 16);
    b += __shfl_xor_sync(~0u, high ? x[1] : x[3], 16);
    float sum = odd ? b : a;
    sum += __shfl_xor_sync(~0u, odd ? a : b, 8);
#pragma unroll
    for (int lane = 4; lane > 0; lane >>= 1) sum += __shfl_xor_sync(~0u, sum, lane);
    return sum;
}

// Over lanes 4 g to 4 g + 3, which share a row of an mma16816; the same bits in all four.
__forceinline__ __device__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__forceinline__ __device__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}
