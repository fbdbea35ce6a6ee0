// The low-rank branch of each member, added to a tile of a product.
#pragma once
#include "gemm.cuh"
#include "step_params.cuh"

// The low-rank operands of a product. `table` is lora_b (G, N, Rp), or lora_a (G, Rp, ld).
struct Branch {
    const __half* coeff;   // (rows, Rp); null: no branch
    const __half* table;
    int Rp;
    int ld_table;
    float scale;
};

__forceinline__ __device__ unsigned pair_at(const __half* p) {
    return *reinterpret_cast<const unsigned*>(p);
}

// acc += scale coeff table_g, one member at a time: a row takes only its own member's sum, so that
// another member's infinities never reach it.
template <class T, Table TABLE>
__forceinline__ __device__ void add_branch(float (&acc)[T::MI][T::NI][4], const Branch& branch,
                                           const StepParams* step, int rows, int row0, int col0,
                                           int n_rows, int n_cols) {
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    int first = row0 + T::warp_m(), last = min(first + T::WM, n_rows);
    if (first >= last) return;
    int left = n_rows - first - g;
    const __half* coeff = branch.coeff + (long long)(first + g) * branch.Rp;
    int m = find_member(step, first, [=](const MemberParams& p) { return p.rows[rows][0]; });
    for (; m < int(step->n_members); ++m) {
        int start = int(step->members()[m].rows[rows][0]) - first - g;
        int end = int(step->members()[m].rows[rows][1]) - first - g;
        if (start + g >= last - first) break;
        if (end + g <= 0) continue;
        int table_rows = TABLE == Table::N_K ? n_cols : branch.Rp;
        const __half* table = branch.table + (long long)m * table_rows * branch.ld_table;
        // One fragment at a time and 32-bit offsets within a member's table: registers are few.
#pragma unroll
        for (int j = 0; j < T::NI; ++j) {
            int n = col0 + T::warp_n() + j * 8 + g;
#pragma unroll
            for (int i = 0; i < T::MI; ++i) {
                float sum[4] = {};
#pragma unroll 1
                for (int r = 2 * q; r - 2 * q < branch.Rp; r += 16) {
                    unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        if (n >= n_cols || r + 8 * h >= branch.Rp) continue;
                        if (TABLE == Table::N_K) {
                            b[h] = pair_at(table + n * branch.Rp + r + 8 * h);
                        } else {
                            const __half* at = table + (r + 8 * h) * branch.ld_table + n;
                            __half2 two = __halves2half2(at[0], at[branch.ld_table]);
                            b[h] = *reinterpret_cast<unsigned*>(&two);
                        }
                    }
#pragma unroll
                    for (int h = 0; h < 4; ++h) {
                        int row = i * 16 + h % 2 * 8, k = r + h / 2 * 8;
                        if (row < left && k < branch.Rp)
                            a[h] = pair_at(coeff + row * branch.Rp + k);
                    }
                    mma16816(sum, a, b[0], b[1]);
                }
#pragma unroll
                for (int h = 0; h < 4; ++h) {
                    int row = i * 16 + h / 2 * 8;
                    if (row >= start && row < end)
                        acc[i][j][h] = fmaf(branch.scale, sum[h], acc[i][j][h]);
                }
            }
        }
    }
}
