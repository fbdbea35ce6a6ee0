// Philox4x32-10 (Salmon et al., SC 2011), bit for bit as src/ops/philox.rs.
#pragma once

__forceinline__ __device__ uint4 philox(unsigned long long key, uint4 c) {
    unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        unsigned h0 = __umulhi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x;
        unsigned h1 = __umulhi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// Dropout of one site; fixed per plan.
struct Dropout {
    unsigned threshold;   // a number is kept where its word is at least this; 0 keeps all
    float scale;          // what a kept number is multiplied by
    unsigned site;
};

// Multiplies eight columns from `col` on, a multiple of 8, by their factors, 0 or scale.
__forceinline__ __device__ void drop8(float* x, const Dropout& d, unsigned long long seed,
                                      unsigned step, unsigned what, unsigned place, int col) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        uint4 w = philox(seed, make_uint4(col / 4 + i, place, d.site << 22 | what, step));
        x[4 * i + 0] *= w.x >= d.threshold ? d.scale : 0.f;
        x[4 * i + 1] *= w.y >= d.threshold ? d.scale : 0.f;
        x[4 * i + 2] *= w.z >= d.threshold ? d.scale : 0.f;
        x[4 * i + 3] *= w.w >= d.threshold ? d.scale : 0.f;
    }
}

// The same for two columns from `col` on, which is even.
__forceinline__ __device__ void drop2(float* x, const Dropout& d, unsigned long long seed,
                                      unsigned step, unsigned what, unsigned place, int col) {
    uint4 w = philox(seed, make_uint4(col / 4, place, d.site << 22 | what, step));
    bool second = col % 4;
    x[0] *= (second ? w.z : w.x) >= d.threshold ? d.scale : 0.f;
    x[1] *= (second ? w.w : w.y) >= d.threshold ? d.scale : 0.f;
}
