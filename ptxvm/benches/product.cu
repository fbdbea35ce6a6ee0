// A matrix product for the benchmark of the virtual machine: cp.async, ldmatrix, mma.sync.
// nvcc -ptx -arch=compute_80 -lineinfo product.cu
// sed -i 's/^.version .*/.version 8.0/' product.ptx
#include <cuda_fp16.h>

constexpr int TILE = 64, DEPTH = 32, PITCH = DEPTH + 8;

__device__ __forceinline__ unsigned shared_address(const void *p) {
    return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

__device__ __forceinline__ void load(__half (*tile)[PITCH], const __half *from, int stride) {
    // 64 rows of 64 bytes: two copies of 16 bytes a thread.
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int at = threadIdx.x + 128 * i, row = at / 4, col = at % 4 * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                         shared_address(&tile[row][col])),
                     "l"(from + size_t(row) * stride + col));
    }
}

// out (M, N) f32 = a (M, K) f16 times b (N, K) f16 transposed. M, N are multiples of 64, K of 32.
// Blocks of 128 threads, grid (N / 64, M / 64); each warp makes 32 x 32.
extern "C" __global__ void product(float *out, const __half *a, const __half *b, int N, int K) {
    __shared__ __align__(16) __half as[2][TILE][PITCH], bs[2][TILE][PITCH];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row0 = warp / 2 * 32, col0 = warp % 2 * 32;
    a += size_t(blockIdx.y) * TILE * K;
    b += size_t(blockIdx.x) * TILE * K;
    float acc[2][4][4] = {};
    load(as[0], a, K);
    load(bs[0], b, K);
    asm volatile("cp.async.commit_group;");
    for (int k = 0, now = 0; k < K; k += DEPTH, now ^= 1) {
        if (k + DEPTH < K) {
            load(as[now ^ 1], a + k + DEPTH, K);
            load(bs[now ^ 1], b + k + DEPTH, K);
        }
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;");
        __syncthreads();
#pragma unroll
        for (int step = 0; step < DEPTH; step += 16) {
            unsigned x[2][4], y[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                unsigned at = shared_address(
                    &as[now][row0 + 16 * i + lane % 16][step + lane / 16 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(x[i][0]), "=r"(x[i][1]), "=r"(x[i][2]), "=r"(x[i][3])
                             : "r"(at));
                at = shared_address(
                    &bs[now][col0 + 16 * i + lane % 8 + lane / 16 * 8][step + lane / 8 % 2 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                             : "=r"(y[i][0]), "=r"(y[i][1]), "=r"(y[i][2]), "=r"(y[i][3])
                             : "r"(at));
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    asm volatile(
                        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                        : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]),
                          "+f"(acc[i][j][3])
                        : "r"(x[i][0]), "r"(x[i][1]), "r"(x[i][2]), "r"(x[i][3]),
                          "r"(y[j / 2][j % 2 * 2]), "r"(y[j / 2][j % 2 * 2 + 1]));
        }
        __syncthreads();
    }
    int row = blockIdx.y * TILE + row0 + lane / 4, col = blockIdx.x * TILE + col0 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                size_t at = size_t(row + 16 * i + 8 * half) * N + col + 8 * j;
                *reinterpret_cast<float2 *>(out + at) =
                    make_float2(acc[i][j][2 * half], acc[i][j][2 * half + 1]);
            }
}
