// The low-rank branch of each member, added to a tile of a product.
#pragma once
#include "gemm.cuh"
#include "philox.cuh"
#include "step_params.cuh"
#include "vec.cuh"

// The low-rank operands of a product. `table` is lora_b (G, N, Rp), or lora_a (G, Rp, ld).
struct Branch {
    const __half* coeff;   // (rows, Rp); null: no branch
    const __half* table;
    int Rp;
    int ld_table;
    float scale;
    Dropout drop;          // on coeff lora_a; rows are then tokens
};

__forceinline__ __device__ unsigned pair_at(const __half* p) {
    return *reinterpret_cast<const unsigned*>(p);
}

// sum (16, 8) += rows from `row` on of coeff, columns from `col` on of table. Both pointers are at
// the lane's first row or column, which `n_rows` and `n_cols` count from.
template <Table TABLE>
__forceinline__ __device__ void multiply_branch(float (&sum)[4], const __half* coeff,
                                                const __half* table, int Rp, int ld_table, int row,
                                                int n_rows, int col, int n_cols) {
    int q = threadIdx.x % 4;
#pragma unroll 1
    for (int r = 2 * q; r - 2 * q < Rp; r += 16) {
        unsigned a[4] = {0, 0, 0, 0}, b[2] = {0, 0};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            if (col >= n_cols || r + 8 * h >= Rp) continue;
            if (TABLE == Table::N_K) {
                b[h] = pair_at(table + col * Rp + r + 8 * h);
            } else {
                const __half* at = table + (r + 8 * h) * ld_table + col;
                __half2 two = __halves2half2(at[0], at[ld_table]);
                b[h] = *reinterpret_cast<unsigned*>(&two);
            }
        }
#pragma unroll
        for (int h = 0; h < 4; ++h) {
            int i = row + h % 2 * 8, k = r + h / 2 * 8;
            if (i < n_rows && k < Rp) a[h] = pair_at(coeff + i * Rp + k);
        }
        mma16816(sum, a, b[0], b[1]);
    }
}

// Which elements of a tile a dropout keeps in the rows [start, end) of a member, counted from the
// lane's first row: bit 4 (j MI + i) + h for acc[i][j][h]. Not unrolled: Philox is long.
template <class T>
__forceinline__ __device__ unsigned kept(const Dropout& drop, const MemberParams& member,
                                         const TokenParams* tokens, int start, int end, int col) {
    static_assert(T::MI * T::NI * 4 == 32, "a bit for each element of a lane");
    unsigned bits = 0;
#pragma unroll 1
    for (int n = 0; n < 16; ++n) {
        int row = n / 2 % T::MI * 16 + n % 2 * 8;
        float x[2] = {1.f, 1.f};
        if (row >= start && row < end) {
            TokenParams token = load_whole(tokens + row);
            drop2(x, drop, member.seed, member.step, token.what, token.place,
                  col + n / 2 / T::MI * 8);
        }
        bits = bits >> 2 | (x[0] != 0.f ? 1u << 30 : 0) | (x[1] != 0.f ? 1u << 31 : 0);
    }
    return bits;
}

// acc += scale drop(coeff table_g), one member at a time: a row takes only its own member's sum, so
// that another member's infinities never reach it.
template <class T, Table TABLE, bool DROP>
__forceinline__ __device__ void add_branch(float (&acc)[T::MI][T::NI][4], const Branch& branch,
                                           const StepParams* step, const TokenParams* tokens,
                                           int rows, int row0, int col0, int n_rows, int n_cols) {
    int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    int first = row0 + T::warp_m(), last = min(first + T::WM, n_rows);
    each_member(step, rows, first, last, [&](int m, int start, int end) {
        int row = first + g, col = col0 + T::warp_n() + g, Rp = branch.Rp;
        const __half* coeff = branch.coeff + (long long)row * Rp;
        const __half* table =
            branch.table +
            (TABLE == Table::N_K ? ((long long)m * n_cols + col) * Rp
                                 : (long long)m * Rp * branch.ld_table + col);
        start -= row, end -= row;
        unsigned bits = ~0u;
        if constexpr (DROP)
            if (branch.drop.threshold)
                bits = kept<T>(branch.drop, step->members()[m], tokens + row, start, end,
                               col0 + T::warp_n() + 2 * q);
        float scale = branch.scale * branch.drop.scale;
        // One fragment at a time and 32-bit offsets within a member's table: registers are few.
#pragma unroll
        for (int j = 0; j < T::NI; ++j) {
            // Lest the compiler keep the places of all fragments from one j to the next.
            asm volatile("" : "+l"(coeff), "+r"(start), "+r"(end));
#pragma unroll
            for (int i = 0; i < T::MI; ++i) {
                float sum[4] = {};
                multiply_branch<TABLE>(sum, coeff, table, Rp, branch.ld_table, i * 16, end, j * 8,
                                       n_cols - col);
#pragma unroll
                for (int h = 0; h < 4; ++h) {
                    int at = i * 16 + h / 2 * 8;
                    if (at < start || at >= end) continue;
                    bool keep = !DROP || bits >> 4 * (j * T::MI + i) + h & 1;
                    acc[i][j][h] = fmaf(keep ? scale : 0.f, sum[h], acc[i][j][h]);
                }
            }
        }
    });
}
