// A tile of acc (M, N) = inp (M, K) table, f16 in and f32 in registers, by mma.sync.
//
// K is summed in steps of 16 in one order, whatever the tile and the row's place in it: the same
// bits for a row in any company and for any tile shape. Rows, columns and K past the true sizes
// are zeros and their memory is not touched.
#pragma once
#include "mma.cuh"

// How the other operand lies: as a weight (N, K), or with K first (K, N).
enum class Table { N_K, K_N };

struct Operand {
    const __half* data;
    int ld;        // halves from row to row, a multiple of 8
    int n_rows;    // rows that exist
};

// Of WARPS_M x WARPS_N warps, each with WM x WN of the block's BM x BN.
template <int BM_, int BN_, int WARPS_M, int WARPS_N> struct Tile {
    static constexpr int BM = BM_, BN = BN_, BK = 32, STAGES = 3;
    static constexpr int THREADS = 32 * WARPS_M * WARPS_N;
    static constexpr int WM = BM / WARPS_M, WN = BN / WARPS_N;
    static constexpr int MI = WM / 16, NI = WN / 8;
    static constexpr int STAGE = (BM + BN) * BK;       // halves
    static constexpr int SHARED = STAGES * STAGE;
    static_assert(NI % 2 == 0, "B fragments are read two at a time");

    static __forceinline__ __device__ int warp_m() { return threadIdx.x / 32 % WARPS_M * WM; }
    static __forceinline__ __device__ int warp_n() { return threadIdx.x / 32 / WARPS_M * WN; }

    // ROWS x CHUNKS 16-byte chunks from (row0, col0); `n_cols` is a multiple of 8.
    template <int ROWS, int CHUNKS>
    static __forceinline__ __device__ void copy(__half* to, const Operand& from, int row0, int col0,
                                                int n_cols) {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; ++i) {
            int at = i * THREADS + threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            bool ok = row0 + row < from.n_rows && col0 + chunk * 8 < n_cols;
            const __half* src =
                ok ? from.data + (long long)(row0 + row) * from.ld + col0 + chunk * 8 : from.data;
            cp_async16(to + swizzle<CHUNKS>(row, chunk), src, ok);
        }
    }

    template <Table TABLE>
    static __forceinline__ __device__ void load(__half* stage, const Operand& inp,
                                                const Operand& table, int row0, int col0, int k,
                                                int K) {
        copy<BM, BK / 8>(stage, inp, row0, k, K);
        if (TABLE == Table::N_K)
            copy<BN, BK / 8>(stage + BM * BK, table, col0, k, K);
        else
            copy<BK, BN / 8>(stage + BM * BK, table, k, col0, table.ld);
    }

    template <Table TABLE>
    static __forceinline__ __device__ void multiply(float (&acc)[MI][NI][4], const __half* stage) {
        int lane = threadIdx.x % 32;
        const __half* table = stage + BM * BK;
#pragma unroll
        for (int kk = 0; kk < BK; kk += 16) {
            unsigned a[MI][4], b[NI][2];
#pragma unroll
            for (int i = 0; i < MI; ++i) {
                int row = warp_m() + i * 16 + lane % 16;
                ldmatrix4(a[i], stage + swizzle<BK / 8>(row, kk / 8 + lane / 16));
            }
#pragma unroll
            for (int j = 0; j < NI; j += 2) {
                int n = warp_n() + j * 8;
                if (TABLE == Table::N_K) {
                    int row = n + lane % 8 + lane / 16 * 8;
                    ldmatrix4(b[j], table + swizzle<BK / 8>(row, kk / 8 + lane / 8 % 2));
                } else {
                    int row = kk + lane % 16;
                    ldmatrix4_trans(b[j], table + swizzle<BN / 8>(row, n / 8 + lane / 16));
                }
            }
#pragma unroll
            for (int i = 0; i < MI; ++i)
#pragma unroll
                for (int j = 0; j < NI; ++j) mma16816(acc[i][j], a[i], b[j][0], b[j][1]);
        }
    }

    // Ends with all copies landed and every warp past its last read of `shared`.
    template <Table TABLE>
    static __forceinline__ __device__ void run(float (&acc)[MI][NI][4], __half* shared,
                                               const Operand& inp, const Operand& table, int row0,
                                               int col0, int K) {
        int n_steps = (K + BK - 1) / BK;
#pragma unroll
        for (int s = 0; s < STAGES - 1; ++s) {
            if (s < n_steps) load<TABLE>(shared + s * STAGE, inp, table, row0, col0, s * BK, K);
            cp_async_commit();
        }
        for (int s = 0; s < n_steps; ++s) {
            cp_async_wait<STAGES - 2>();
            // Step s has landed for all, and all have left the stage that is filled next.
            __syncthreads();
            int next = s + STAGES - 1;
            if (next < n_steps)
                load<TABLE>(shared + next % STAGES * STAGE, inp, table, row0, col0, next * BK, K);
            cp_async_commit();
            multiply<TABLE>(acc, shared + s % STAGES * STAGE);
        }
        cp_async_wait<0>();
        __syncthreads();
    }

    // Writes acc as f16 through the warp's own part of `shared`, 16 bytes a lane. Rows from
    // `n_rows` and chunks from `n_cols`, a multiple of 8, are left alone.
    static __forceinline__ __device__ void store(__half* out, int ld, const float (&acc)[MI][NI][4],
                                                 __half* shared, int row0, int col0, int n_rows,
                                                 int n_cols) {
        constexpr int CHUNKS = WN / 8;
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        __half* own = shared + threadIdx.x / 32 * WM * WN;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
            for (int j = 0; j < NI; ++j)
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    int at = swizzle<CHUNKS>(i * 16 + g + h * 8, j) + 2 * q;
                    *reinterpret_cast<__half2*>(own + at) =
                        __floats2half2_rn(acc[i][j][2 * h], acc[i][j][2 * h + 1]);
                }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < WM * CHUNKS / 32; ++i) {
            int at = i * 32 + lane, row = at / CHUNKS, chunk = at % CHUNKS;
            int to_row = row0 + warp_m() + row, to_col = col0 + warp_n() + chunk * 8;
            if (to_row < n_rows && to_col < n_cols)
                *reinterpret_cast<uint4*>(out + (long long)to_row * ld + to_col) =
                    *reinterpret_cast<const uint4*>(own + swizzle<CHUNKS>(row, chunk));
        }
    }
};
