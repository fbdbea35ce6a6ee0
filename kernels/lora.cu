// The low-rank branches of up to three linear layers: the projections onto them and the gradients
// of their tables. What they add to a product is linear.cu's.
//
// Computes  u_p = drop_p(inp) A_p^T,  v_p = scale_p dout_p B_p for each part p;  dA_p = sum of
//           v_p^T drop_p(inp),  dB_p = scale_p sum of dout_p^T u_p over the rows of each member.
// Arguments inp (rows, C) f16, dout (rows, sum of OC) f16; of each part: lora_a (G, Rp, C) f16,
//           lora_b (G, OC, Rp) f16, u v (rows, Rp) f16, dA (G, R, C) f32, dB (G, OC, R) f32; step
//           StepParams, tokens TokenParams.
// Layout    Rows lie a multiple of 8 halves apart, each pointer and each part's first column at 16
//           bytes; Rp is R rounded up to 8; columns past a width are zero where read and written as
//           zero. Rows of lora_a past R are zero. With dropout rows are tokens.
// Writes    = u, v; += dA, dB.
// Source    Hu et al., "LoRA: low-rank adaptation of large language models" (2021), 4.1.
#include "mma.cuh"
#include "parts.cuh"
#include "philox.cuh"
#include "step_params.cuh"
#include "vec.cuh"

// out (rows, Rp) = scale drop(inp) table_g.
struct Projection {
    __half* out;
    const __half* inp;
    const __half* table;   // (G, Rp, ld_table), or (G, K, Rp)
    int K;
    int Rp;
    int ld_inp;
    int ld_table;
    float scale;
    Dropout drop;
};

// Absent ones are all zeros.
struct Projections { Projection of[3]; };

// grad_g (R, N), or (N, R), += scale sum over the member's rows of coeff^T drop(x).
struct Sum {
    float* grad;
    const __half* x;       // (rows, N)
    const __half* coeff;   // (rows, R rounded up to 8)
    int N;
    int R;
    int ld_x;
    int r_first;           // 1: (N, R), r innermost
    float scale;
    Dropout drop;
};

// Absent ones are all zeros.
struct Sums { Sum of[6]; };

namespace {

enum class Table { N_K, K_N };

// Eight columns of a row, the dropped ones zero. The factor of the others goes on the sum: so
// nothing is rounded.
__forceinline__ __device__ uint4 masked(uint4 v, const Dropout& drop, const MemberParams& member,
                                        const TokenParams& token, int col) {
    float x[8];
    unpack8(x, v);
    drop8(x, {drop.threshold, 1.f, drop.site}, member.seed, member.step, token.what, token.place,
          col);
    return pack8(x);
}

// Column g, of lane 4 g + q, of eight rows of a table (K, Rp) from k + 8 q on; zeros past K. Lane l
// fetches row k + l; `turned` is the warp's.
__forceinline__ __device__ void columns8(unsigned (&b)[4], uint4 (&turned)[32], const __half* table,
                                         int k, int K, int ld) {
    int lane = threadIdx.x % 32;
    // Rows 8 t to 8 t + 7 lie apart in all banks, and so do rows 2 m and 2 m + 1 of every t.
    auto place = [](int row) { return row ^ row / 8 * 2; };
    __syncwarp();
    turned[place(lane)] = k + lane < K ? load16(table + (long long)(k + lane) * ld) : uint4{};
    __syncwarp();
    // Matrix m has rows 2 m and 2 m + 1 of every t: they become b[m].
    ldmatrix4_trans(b, turned + place(lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2));
}

// Four warps share K in groups of 32 and add up in order. Of a group, lane 4 g + q holds halves
// 8 q .. 8 q + 8 of its rows, one 16-byte load each: the same permutation of K on both sides.
template <Table TABLE>
__forceinline__ __device__ void project(const Projections& all, const StepParams* step,
                                        const TokenParams* tokens, int rows) {
    __shared__ __align__(8) float sums[4][16][8];
    __shared__ uint4 turned[4][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, q = lane % 4;
    int n_rows = step->n_rows[rows], row0 = blockIdx.x * 16;
    if (row0 >= n_rows) return;
    int chunk = blockIdx.y;
    const Projection& p =
        all.of[entry_of(all.of, chunk, [](const Projection& p) { return p.Rp / 8; })];
    int lo_row = row0 + g, hi_row = lo_row + 8;
    TokenParams lo_token = {}, hi_token = {};
    if (p.drop.threshold && lo_row < n_rows) lo_token = tokens[lo_row];
    if (p.drop.threshold && hi_row < n_rows) hi_token = tokens[hi_row];
    each_member(step, rows, row0, min(row0 + 16, n_rows), [&](int m, int start, int end) {
        const MemberParams& member = step->members()[m];
        long long table_rows = TABLE == Table::N_K ? p.Rp : p.K;
        const __half* own = p.table + m * table_rows * p.ld_table;
        float acc[4] = {};
        for (int k = warp * 32 + q * 8; k - q * 8 < p.K; k += 128) {
            uint4 lo = {}, hi = {};
            unsigned b[4] = {};
            const __half* x = p.inp + (long long)lo_row * p.ld_inp + k;
            if (k < p.K && lo_row < n_rows) lo = load16(x);
            if (k < p.K && hi_row < n_rows) hi = load16(x + 8ll * p.ld_inp);
            if (p.drop.threshold) {
                lo = masked(lo, p.drop, member, lo_token, k);
                hi = masked(hi, p.drop, member, hi_token, k);
            }
            if (TABLE == Table::K_N) {
                columns8(b, turned[warp], own + chunk * 8, k - q * 8, p.K, p.ld_table);
            } else if (k < p.K) {
                uint4 row = load16(own + (chunk * 8 + g) * (long long)p.ld_table + k);
                b[0] = row.x, b[1] = row.y, b[2] = row.z, b[3] = row.w;
            }
            unsigned even[4] = {lo.x, hi.x, lo.y, hi.y}, odd[4] = {lo.z, hi.z, lo.w, hi.w};
            mma16816(acc, even, b[0], b[1]);
            mma16816(acc, odd, b[2], b[3]);
        }
        *reinterpret_cast<float2*>(&sums[warp][g][2 * q]) = make_float2(acc[0], acc[1]);
        *reinterpret_cast<float2*>(&sums[warp][g + 8][2 * q]) = make_float2(acc[2], acc[3]);
        __syncthreads();
        // A number a thread, which it stores with its neighbour's.
        int row = threadIdx.x / 8, i = threadIdx.x % 8;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < 4; ++w) sum += sums[w][row][i];
        sum *= p.scale * p.drop.scale;
        float next = __shfl_down_sync(~0u, sum, 1);
        row += row0;
        if (i % 2 == 0 && row >= start && row < end)
            *reinterpret_cast<unsigned*>(p.out + (long long)row * p.Rp + chunk * 8 + i) =
                pack2(sum, next);
        __syncthreads();
    });
}

}  // namespace

// u. Grid: (ceil(rows / 16) of the bucket, sum over parts of Rp / 8); block: 128.
extern "C" __global__ void __launch_bounds__(128) lora_project_f16(
    const __grid_constant__ Projections all, const StepParams* step, const TokenParams* tokens,
    int rows) {
    project<Table::N_K>(all, step, tokens, rows);
}

// v. Geometry as above.
extern "C" __global__ void __launch_bounds__(128) lora_project_backward_f16(
    const __grid_constant__ Projections all, const StepParams* step, const TokenParams* tokens,
    int rows) {
    project<Table::K_N>(all, step, tokens, rows);
}

// dA from v and inp, dB from u and dout. Every 64th row from the member's first on is summed by
// the same four lanes, and the 64 sums are added in a fixed order.
// Grid: (sum over tables of ceil(N / 32), the largest Rp / 8, G); block: 256.
extern "C" __global__ void __launch_bounds__(256) lora_backward_params_f16(
    const __grid_constant__ Sums all, const StepParams* step, const TokenParams* tokens, int rows) {
    __shared__ float sums[8][8][36];   // 36: no bank is hit twice, whichever way it is read
    const MemberParams& member = step->members()[blockIdx.z];
    unsigned start = member.rows[rows][0], end = member.rows[rows][1];
    int tile = blockIdx.x;
    const Sum& s =
        all.of[entry_of(all.of, tile, [](const Sum& s) { return (s.N + 31) / 32; })];
    int Rp = (s.R + 7) / 8 * 8, r0 = blockIdx.y * 8;
    if (start == end || r0 >= Rp) return;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = tile * 32 + lane % 4 * 8;
    float acc[8][8] = {};
    if (n < s.N) {
#pragma unroll 2
        for (unsigned t = start + warp * 8 + lane / 4; t < end; t += 64) {
            float a[8], b[8];
            unpack8(a, load16(s.coeff + (long long)t * Rp + r0));
            unpack8(b, load16(s.x + (long long)t * s.ld_x + n));
            if (s.drop.threshold) {
                TokenParams token = load_whole(tokens + t);
                drop8(b, s.drop, member.seed, member.step, token.what, token.place, n);
            }
#pragma unroll
            for (int i = 0; i < 8; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
            for (int far = 4; far < 32; far *= 2)
                acc[i][j] += __shfl_xor_sync(~0u, acc[i][j], far);
            if (lane < 4) sums[warp][i][lane * 8 + j] = acc[i][j];
        }
    __syncthreads();
    // Neighbours in memory to neighbouring threads.
    int i = s.r_first ? threadIdx.x % 8 : warp, col = s.r_first ? threadIdx.x / 8 : lane;
    int r = r0 + i;
    n = tile * 32 + col;
    if (r >= s.R || n >= s.N) return;
    float sum = 0.f;
    for (int w = 0; w < 8; ++w) sum += sums[w][i][col];
    long long at = s.r_first ? (long long)n * s.R + r : (long long)r * s.N + n;
    s.grad[(long long)blockIdx.z * s.R * s.N + at] += s.scale * sum;
}
