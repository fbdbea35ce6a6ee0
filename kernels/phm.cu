// Parameterised hypercomplex multiplication: the linear layers of a Compacter.
//
// Computes  Rows of K are n blocks of K / n, rows of OC n blocks of OC / n, and
//           u[a, i] = inp[a] . left[i],  s[b, i] = sum over a of rule[i, a, b] u[a, i],
//           out[b] = bias[b] + sum over i of s[b, i] right[i].
//           ds[b, i] = dout[b] . right[i],  du[a, i] = sum over b of rule[i, a, b] ds[b, i],
//           dinp[a] = resid[a] + sum over i of du[a, i] left[i];  over the rows of a member:
//           drule[i, a, b] = sum of u[a, i] ds[b, i],  dleft[i] = sum of du[a, i] inp[a],
//           dright[i] = sum of s[b, i] dout[b],  dbias = sum of dout.
// Arguments inp resid dinp (T, K) f16; out dout (T, OC) f16; u s ds du (T, n n) f32, which are few
//           and spent twice; rule (G, n, n, n), left (G, n, K / n), right (G, n, OC / n), bias (G,
//           OC) f32 and their gradients alike; step StepParams, tokens (T) TokenParams.
// Layout    Rows of f16 lie `ld_` halves apart, a multiple of 8, each pointer at 16 bytes; columns
//           past the last are written as zero. dinp may be resid. n at most 16, K and OC at most
//           1024 and multiples of n.
// Writes    = u, s, out; = ds, du, dinp (null: not wanted); += drule, dleft, dright, dbias (null:
//           not wanted).
// Source    Karimi Mahabadi et al., "Compacter: efficient low-rank hypercomplex adapter layers"
//           (2021), its low-rank layers, of rank one.
#include "step_params.cuh"
#include "vec.cuh"

namespace {

constexpr int WARPS = 8, MAX_C = 1024, MAX_N = 16;
// Rows that a block adds side by side.
constexpr int RUNS = 32;

// From K to OC; the gradient goes from OC to K. Parameters of all members.
struct Layer {
    const float *rule, *in_vecs, *out_vecs, *bias;
    int n, in_width, out_width, ld_in, ld_out;   // widths of a block
};

// A warp's copy of a row.
__forceinline__ __device__ void copy_row(__half* to, const __half* from, int ld) {
    for (int col = threadIdx.x % 32 * 8; col < ld; col += 256) store16(to + col, load16(from + col));
    __syncwarp();
}

// dots[a, i] = row[a] . vecs[i]; four products are on their way at a time.
__forceinline__ __device__ void dot_blocks(float* dots, const __half* row, const float* vecs, int n,
                                           int width) {
    int lane = threadIdx.x % 32;
    for (int a = 0; a < n; ++a) {
        for (int i = 0; i < n; i += 4) {
            float sum[4] = {};
            for (int p = lane; p < width; p += 32) {
                float x = __half2float(row[a * width + p]);
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sum[j] = fmaf(x, vecs[min(i + j, n - 1) * width + p], sum[j]);
            }
            float dot = warp_sums4(sum);
            if (lane % 8 == 0 && i + lane / 8 < n) dots[a * n + i + lane / 8] = dot;
        }
    }
    __syncwarp();
}

// One warp a row, which stays in shared memory. The gradient is the same with the rule's last two
// dimensions exchanged.
template <bool BACK>
__forceinline__ __device__ void run(__half* out, float* first, float* second, const __half* inp,
                                    const __half* resid, const Layer& w, const StepParams* step,
                                    const TokenParams* tokens) {
    __shared__ __align__(16) __half rows[WARPS][MAX_C];
    __shared__ float factors[WARPS][2][MAX_N * MAX_N];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = w.n;
    long long t = blockIdx.x * WARPS + warp;
    if (t >= step->n_rows[TOKENS]) return;
    long long g = tokens[t].member;
    const float* rule = w.rule + g * n * n * n;
    const float* out_vecs = w.out_vecs + g * n * w.out_width;
    __half* row = rows[warp];
    float *dots = factors[warp][0], *mixed = factors[warp][1];
    copy_row(row, inp + t * w.ld_in, w.ld_in);
    dot_blocks(dots, row, w.in_vecs + g * n * w.in_width, n, w.in_width);
    for (int o = lane; o < n * n; o += 32) {
        int to = o / n, i = o % n;
        float sum = 0.f;
        if (BACK && n % 4 == 0) {
            // The numbers that a lane takes lie side by side.
            const float* own = rule + (i * n + to) * n;
            for (int from = 0; from < n; from += 4) {
                float4 r = *reinterpret_cast<const float4*>(own + from);
                sum = fmaf(r.x, dots[from * n + i], sum);
                sum = fmaf(r.y, dots[(from + 1) * n + i], sum);
                sum = fmaf(r.z, dots[(from + 2) * n + i], sum);
                sum = fmaf(r.w, dots[(from + 3) * n + i], sum);
            }
        } else {
            for (int from = 0; from < n; ++from) {
                int a = BACK ? to : from, b = BACK ? from : to;
                sum = fmaf(rule[(i * n + a) * n + b], dots[from * n + i], sum);
            }
        }
        mixed[o] = sum;
        first[t * n * n + o] = dots[o];
        second[t * n * n + o] = sum;
    }
    if (!out) return;
    __syncwarp();
    if (resid) copy_row(row, resid + t * w.ld_out, w.ld_out);
    for (int b = 0; b < n; ++b) {
        for (int q = lane; q < w.out_width; q += 32) {
            int col = b * w.out_width + q;
            float y = resid ? __half2float(row[col]) : 0.f;
            if (w.bias) y = w.bias[g * n * w.out_width + col];
            for (int i = 0; i < n; ++i) y = fmaf(mixed[b * n + i], out_vecs[i * w.out_width + q], y);
            row[col] = __float2half_rn(y);
        }
    }
    for (int col = n * w.out_width + lane; col < w.ld_out; col += 32) row[col] = __half(0.f);
    __syncwarp();
    copy_row(out + t * w.ld_out, row, w.ld_out);
}

// Adds a member's rows to `dest` of `len` numbers: RUNS runs of rows side by side, then these in
// order. A thread has one number, term(row, o).
template <class Term>
__forceinline__ __device__ void add_rows(float* dest, int len, const MemberParams& member,
                                         Term term) {
    __shared__ float sums[RUNS][32];
    int x = threadIdx.x, y = threadIdx.y, o = blockIdx.x * 32 + x;
    if (!dest || blockIdx.x * 32 >= len) return;
    float sum = 0.f;
    if (o < len)
        for (long long row = member.rows[TOKENS][0] + y; row < member.rows[TOKENS][1]; row += RUNS)
            sum += term(row, o);
    sums[y][x] = sum;
    __syncthreads();
    if (y > 0 || o >= len || member.rows[TOKENS][0] == member.rows[TOKENS][1]) return;
    sum = 0.f;
    for (int k = 0; k < RUNS; ++k) sum += sums[k][x];
    dest[(long long)blockIdx.z * len + o] += sum;
}

// sum over a of coeff[a, i] x[a, p], at o = i width + p.
__forceinline__ __device__ float product(const float* coeff, const __half* x, int n, int width,
                                         int o) {
    int i = o / width, p = o % width;
    float sum = 0.f;
    for (int a = 0; a < n; ++a) sum = fmaf(coeff[a * n + i], __half2float(x[a * width + p]), sum);
    return sum;
}

}  // namespace

// Grid: ceil(T / 8) of the bucket; block: 256, one warp a row.
extern "C" __global__ void __launch_bounds__(32 * WARPS) phm_forward_f16(
    __half* out, float* u, float* s, const __half* inp, const float* rule, const float* left,
    const float* right, const float* bias, const StepParams* step, const TokenParams* tokens, int n,
    int K, int OC, int ld_inp, int ld_out) {
    Layer layer = {rule, left, right, bias, n, K / n, OC / n, ld_inp, ld_out};
    run<false>(out, u, s, inp, nullptr, layer, step, tokens);
}

// Geometry as above.
extern "C" __global__ void __launch_bounds__(32 * WARPS) phm_backward_f16(
    __half* dinp, float* ds, float* du, const __half* dout, const __half* resid, const float* rule,
    const float* left, const float* right, const StepParams* step, const TokenParams* tokens, int n,
    int K, int OC, int ld_inp, int ld_out) {
    Layer layer = {rule, right, left, nullptr, n, OC / n, K / n, ld_out, ld_inp};
    run<true>(dinp, ds, du, dout, resid, layer, step, tokens);
}

// Grid: (ceil(the longest of the four / 32), 4: rule, left, right, bias, G); block: (32, 32).
extern "C" __global__ void __launch_bounds__(32 * RUNS) phm_backward_params_f32(
    float* drule, float* dleft, float* dright, float* dbias, const __half* inp, const __half* dout,
    const float* u, const float* s, const float* ds, const float* du, const StepParams* step, int n,
    int K, int OC, int ld_inp, int ld_out) {
    const MemberParams& member = step->members()[blockIdx.z];
    int nn = n * n;
    if (blockIdx.y == 0) {
        add_rows(drule, nn * n, member, [=](long long row, int o) {
            int i = o / nn, a = o / n % n, b = o % n;
            return u[row * nn + a * n + i] * ds[row * nn + b * n + i];
        });
    } else if (blockIdx.y == 1) {
        add_rows(dleft, K, member, [=](long long row, int o) {
            return product(du + row * nn, inp + row * ld_inp, n, K / n, o);
        });
    } else if (blockIdx.y == 2) {
        add_rows(dright, OC, member, [=](long long row, int o) {
            return product(s + row * nn, dout + row * ld_out, n, OC / n, o);
        });
    } else {
        add_rows(dbias, OC, member, [=](long long row, int o) {
            return __half2float(dout[row * ld_out + o]);
        });
    }
}
