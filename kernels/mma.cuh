// sm_80 matrix instructions and asynchronous copies.
#pragma once
#include <cuda_fp16.h>

__forceinline__ __device__ unsigned shared_addr(const void* p) {
    return unsigned(__cvta_generic_to_shared(p));
}

// Copies 16 bytes, or writes zeros and leaves the source alone where `ok` is false.
__forceinline__ __device__ void cp_async16(void* dst, const void* src, bool ok) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_addr(dst)), "l"(src),
                 "r"(ok ? 16 : 0) : "memory");
}

__forceinline__ __device__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `N` of this thread's groups are under way.
template <int N> __forceinline__ __device__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__forceinline__ __device__ void ldmatrix4(unsigned* r, const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_addr(p)) : "memory");
}

__forceinline__ __device__ void ldmatrix4_trans(unsigned* r, const void* p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_addr(p)) : "memory");
}

// d (16, 8) f32 += a (16, 16) f16 b (16, 8) f16. Lane l = 4 g + q holds d at rows g and g + 8,
// columns 2q and 2q + 1.
__forceinline__ __device__ void mma16816(float* d, const unsigned* a, unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Where 16-byte chunk `chunk` of row `row` lies in a tile of `CHUNKS` chunks a row (4, 8 or more),
// in halves. The order of chunks turns with the row, so that the eight rows of an ldmatrix hit all
// banks once.
template <int CHUNKS> __forceinline__ __device__ int swizzle(int row, int chunk) {
    int turn = CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
    return (row * CHUNKS + (chunk ^ turn)) * 8;
}
