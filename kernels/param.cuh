// Vectors of parameters, frozen or of each member, f16 or f32.
#pragma once
#include "vec.cuh"

// Weight or bias of a layer norm: one vector, or one a member `stride` numbers apart.
struct Param {
    const void* data;
    bool is_half;
    long long stride;
};

// Four numbers from `col` on, zero past C.
__forceinline__ __device__ float4 load4(const float* f, int col, int C) {
    return col < C ? *reinterpret_cast<const float4*>(f + col) : make_float4(0.f, 0.f, 0.f, 0.f);
}

// Eight numbers of a lane, from `col` on, zero past C; col is 8 lane in each 256. All lanes of a warp
// take part, with one p and one member. Of f32, two neighbours read the first halves of both and then
// the second halves, and exchange what is the other's: so each request fills the sectors that it
// touches. f32 vectors of members need not be 16-byte aligned.
__forceinline__ __device__ void load_param(float* w, const Param& p, unsigned member, int col,
                                           int C) {
    const __half* h = static_cast<const __half*>(p.data) + p.stride * member;
    const float* f = static_cast<const float*>(p.data) + p.stride * member;
    if (!p.is_half && C % 8 == 0 && p.stride % 4 == 0) {
        int odd = threadIdx.x % 2, pair = col - 8 * odd;
        float4 a = load4(f, pair + 4 * odd, C), b = load4(f, pair + 8 + 4 * odd, C);
        float own[4] = {odd ? b.x : a.x, odd ? b.y : a.y, odd ? b.z : a.z, odd ? b.w : a.w};
        float other[4] = {odd ? a.x : b.x, odd ? a.y : b.y, odd ? a.z : b.z, odd ? a.w : b.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float got = __shfl_xor_sync(~0u, other[j], 1);
            w[j] = odd ? got : own[j];
            w[4 + j] = odd ? own[j] : got;
        }
    } else if (p.is_half && col + 8 <= C && p.stride % 8 == 0) {
        unpack8(w, load16(h + col));
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
            w[j] = col + j >= C ? 0.f : p.is_half ? __half2float(h[col + j]) : f[col + j];
    }
}
