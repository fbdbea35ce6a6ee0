// Vectors of parameters, frozen or of each member, f16 or f32.
#pragma once
#include "vec.cuh"

// Weight or bias of a layer norm: one vector, or one a member `stride` numbers apart.
struct Param {
    const void* data;
    bool is_half;
    long long stride;
};

// Eight numbers from `col` on, zero past C. f32 vectors of members need not be 16-byte aligned.
__forceinline__ __device__ void load_param(float* w, const Param& p, unsigned member, int col,
                                           int C) {
    long long at = p.stride * member + col;
    const __half* h = static_cast<const __half*>(p.data) + at;
    const float* f = static_cast<const float*>(p.data) + at;
    bool whole = col + 8 <= C;
    if (p.is_half && whole && p.stride % 8 == 0) {
        unpack8(w, load16(h));
    } else if (!p.is_half && whole && p.stride % 4 == 0) {
        float4 a = *reinterpret_cast<const float4*>(f), b = *reinterpret_cast<const float4*>(f + 4);
        w[0] = a.x; w[1] = a.y; w[2] = a.z; w[3] = a.w;
        w[4] = b.x; w[5] = b.y; w[6] = b.z; w[7] = b.w;
    } else {
#pragma unroll
        for (int j = 0; j < 8; ++j)
            w[j] = col + j >= C ? 0.f : p.is_half ? __half2float(h[j]) : f[j];
    }
}
