// The end of a step: gradients are measured, unscaled, clipped and spent, for all trainable tensors
// of all members at once.
//
// Computes  norm = |grads of the member| / loss_scale. Where it is finite and the member takes part,
//           n += 1 and, with c = min(clip_norm / (norm + 1e-6), 1) / loss_scale:
//           d = c grad + weight_decay value,  m = beta1 m + (1 - beta1) d,
//           v = beta2 v + (1 - beta2) d d,
//           value -= lr / (1 - beta1^n) m / (sqrt(v) / sqrt(1 - beta2^n) + eps), then halves = value
//           and, for what products read whole, low = value - halves.
//           A member whose gradient is not finite is left as it is.
// Arguments values grads m v f32: tensor after tensor, each (G, len), at the places that tensors
//           (TensorParams) tells; halves f16: copies of some, rows padded, of all members, then
//           their low; chunks (NC) Chunk: where each begins; partials (G, NC), norm n (G), factors (G, 4) f32; step StepParams, adams
//           (G) AdamParams.
// Layout    All at 16 bytes; the padding of halves is left as it is.
// Writes    = partials, norm, factors, halves; values, m, v, n as above.
// Source    Kingma and Ba, "Adam" (2015), as torch.optim.Adam has it (weight decay is added to the
//           gradient, the corrections are applied apart); Micikevicius et al., "Mixed precision
//           training" (2018), for scale and masters.
#include "block_sum.cuh"
#include "step_params.cuh"
#include "vec.cuh"

namespace {

// Numbers of a block; four a thread at a time.
constexpr int BLOCK = 4096;
constexpr int THREADS = 256;

// Fixed per plan; src/cuda/ops/adam.rs packs these two.
struct alignas(16) TensorParams {
    long long at;        // of member 0's first number in values, grads, m and v
    long long half_at;   // of its first number in halves; -1: no copy
    int len, cols;       // numbers of a member's copy and of its rows
    int half_len, ld;    // halves of a member's copy and from row to row
    int is_head;         // 1: it takes the head's learning rate
    int split;           // 1: low follows the copies
    int unused[2];
};

struct Chunk {
    int tensor, start;
};

// What a member's step multiplies by; `moves` is 1 or 0.
struct alignas(16) Factors {
    float grad, step, root, moves;
};

// Up to four numbers: members' copies may begin anywhere.
__forceinline__ __device__ void load4(float* x, const float* p, int n, bool aligned) {
    if (aligned && n >= 4) {
        float4 v = *reinterpret_cast<const float4*>(p);
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) x[j] = j < n ? p[j] : 0.f;
    }
}

__forceinline__ __device__ void store4(float* p, const float* x, int n, bool aligned) {
    if (aligned && n >= 4) {
        *reinterpret_cast<float4*>(p) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            if (j < n) p[j] = x[j];
    }
}

// Runs `f(i, at, n, aligned)` on groups of four of the block's numbers: i in the member's copy, at
// in the flat buffers.
template <class F>
__forceinline__ __device__ void for_each4(const TensorParams& t, int start, F f) {
    long long own = t.at + (long long)blockIdx.y * t.len;
    int end = min(start + BLOCK, t.len);
    for (int i = start + 4 * threadIdx.x; i < end; i += 4 * THREADS)
        f(i, own + i, end - i, (own & 3) == 0);
}

__forceinline__ __device__ void copy_half(__half* halves, const TensorParams& t, int i,
                                          const float* x, int n) {
    if (t.half_at < 0) return;
    __half* own = halves + t.half_at + (long long)blockIdx.y * t.half_len;
    __half* low = own + (long long)gridDim.y * t.half_len;
    if (t.cols % 4 == 0) {
        // Four of one row, of which none is missing.
        long long at = (long long)(i / t.cols) * t.ld + i % t.cols;
        uint2 high = make_uint2(pack2(x[0], x[1]), pack2(x[2], x[3]));
        *reinterpret_cast<uint2*>(own + at) = high;
        float2 a = unpack2(high.x), b = unpack2(high.y);
        if (t.split)
            *reinterpret_cast<uint2*>(low + at) = make_uint2(pack2(x[0] - a.x, x[1] - a.y),
                                                             pack2(x[2] - b.x, x[3] - b.y));
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        if (j >= n) continue;
        long long at = (long long)((i + j) / t.cols) * t.ld + (i + j) % t.cols;
        __half half = __float2half_rn(x[j]);
        own[at] = half;
        if (t.split) low[at] = __float2half_rn(x[j] - __half2float(half));
    }
}

}  // namespace

// Grid: (NC, G); block: 256.
extern "C" __global__ void __launch_bounds__(THREADS) adam_partials_f32(
    float* partials, const float* grads, const TensorParams* tensors, const Chunk* chunks) {
    Chunk chunk = chunks[blockIdx.x];
    float sum = 0.f;
    for_each4(tensors[chunk.tensor], chunk.start, [&](int, long long at, int n, bool aligned) {
        float d[4];
        load4(d, grads + at, n, aligned);
#pragma unroll
        for (int j = 0; j < 4; ++j) sum = fmaf(d[j], d[j], sum);
    });
    sum = warps_sum<THREADS>(sum);
    if (threadIdx.x == 0) partials[(long long)blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

// Grid: G; block: 256.
extern "C" __global__ void __launch_bounds__(THREADS) adam_factors_f32(
    float* norm, float* n, Factors* factors, const float* partials, const StepParams* step,
    const AdamParams* adams, int n_chunks) {
    int g = blockIdx.x;
    float sum = 0.f;
    for (int i = threadIdx.x; i < n_chunks; i += THREADS)
        sum += partials[(long long)g * n_chunks + i];
    sum = warps_sum<THREADS>(sum);
    if (threadIdx.x != 0) return;
    float scale = step->members()[g].loss_scale, length = sqrtf(sum) / scale;
    AdamParams a = adams[g];
    norm[g] = length;
    Factors f = {};
    if (a.active && isfinite(length)) {
        n[g] += 1.f;
        f.grad = fminf(a.clip_norm / (length + 1e-6f), 1.f) / scale;
        // 1 - beta^n without the loss of digits that a beta near 1 brings.
        f.step = 1.f / -expm1f(n[g] * a.log_beta1);
        f.root = sqrtf(-expm1f(n[g] * a.log_beta2));
        f.moves = 1.f;
    }
    factors[g] = f;
}

// Grid: (NC, G); block: 256.
extern "C" __global__ void __launch_bounds__(THREADS) adam_step_f32(
    float* values, float* m, float* v, __half* halves, const float* grads, const Factors* factors,
    const TensorParams* tensors, const Chunk* chunks, const AdamParams* adams) {
    Factors f = factors[blockIdx.y];
    if (f.moves == 0.f) return;
    AdamParams a = adams[blockIdx.y];
    Chunk chunk = chunks[blockIdx.x];
    TensorParams t = tensors[chunk.tensor];
    float rate = (t.is_head ? a.head_lr : a.lr) * f.step;
    for_each4(t, chunk.start, [&](int i, long long at, int n, bool aligned) {
        float x[4], d[4], first[4], second[4];
        load4(x, values + at, n, aligned);
        load4(d, grads + at, n, aligned);
        load4(first, m + at, n, aligned);
        load4(second, v + at, n, aligned);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            float grad = fmaf(a.weight_decay, x[j], d[j] * f.grad);
            first[j] = fmaf(a.rest1, grad - first[j], first[j]);
            second[j] = fmaf(a.rest2 * grad, grad, a.beta2 * second[j]);
            x[j] -= rate * first[j] / (sqrtf(second[j]) / f.root + a.eps);
        }
        store4(values + at, x, n, aligned);
        store4(m + at, first, n, aligned);
        store4(v + at, second, n, aligned);
        copy_half(halves, t, i, x, n);
    });
}

// The copies of all, where values came from elsewhere. Grid: (NC, G); block: 256.
extern "C" __global__ void __launch_bounds__(THREADS) adam_copy_f16(
    __half* halves, const float* values, const TensorParams* tensors, const Chunk* chunks) {
    Chunk chunk = chunks[blockIdx.x];
    TensorParams t = tensors[chunk.tensor];
    for_each4(t, chunk.start, [&](int i, long long at, int n, bool aligned) {
        float x[4];
        load4(x, values + at, n, aligned);
        copy_half(halves, t, i, x, n);
    });
}
