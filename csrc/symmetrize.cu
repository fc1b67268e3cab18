#include "common.cuh"

// A <- (A + A^T) / 2 in place for a row-major n x n matrix, and worst <- max |A_ij - A_ji| as
// ordered bits (NaN if any entry is not finite). One block per pair of mirror tiles; the strict
// upper half of the grid has nothing to do. Block: (32, 8). Grid: (tiles, tiles). Sizes are 64-bit,
// since n * n passes 2^31 at n = 46,341. A block finds its own largest difference first and touches
// worst once: an atomic for every thread on one word would cost more than the matrix does.
#define TILE 32
#define THREADS 256

template <typename T>
__device__ void symmetrize(T *a, long long n, u64 *worst) {
    __shared__ T lower[TILE][TILE + 1];
    __shared__ T upper[TILE][TILE + 1];
    __shared__ u64 gaps[THREADS];
    const long long bi = blockIdx.y, bj = blockIdx.x;
    if (bj > bi) return;  // the whole block leaves: no barrier is split

    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        const long long il = bi * TILE + r, jl = bj * TILE + threadIdx.x;
        const long long iu = bj * TILE + r, ju = bi * TILE + threadIdx.x;
        lower[r][threadIdx.x] = (il < n && jl < n) ? a[il * n + jl] : (T)0;
        upper[r][threadIdx.x] = (iu < n && ju < n) ? a[iu * n + ju] : (T)0;
    }
    __syncthreads();

    u64 mine = 0;
    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        const long long il = bi * TILE + r, jl = bj * TILE + threadIdx.x;
        const long long iu = bj * TILE + r, ju = bi * TILE + threadIdx.x;
        const T x = lower[r][threadIdx.x], y = upper[threadIdx.x][r];
        const T gap = x - y;  // inf - inf is NaN
        const u64 bits = ordered_bits(gap < (T)0 ? -gap : gap) & 0x7fffffffffffffffULL;
        if (bits > mine) mine = bits;
        if (il < n && jl < n) a[il * n + jl] = (x + y) / (T)2;
        const T u = upper[r][threadIdx.x], v = lower[threadIdx.x][r];
        if (bi != bj && iu < n && ju < n) a[iu * n + ju] = (v + u) / (T)2;
    }

    const unsigned me = threadIdx.y * blockDim.x + threadIdx.x;
    gaps[me] = mine;
    for (unsigned left = blockDim.x * blockDim.y; left > 1;) {
        const unsigned half = (left + 1) / 2;
        __syncthreads();
        if (me + half < left && gaps[me + half] > gaps[me]) gaps[me] = gaps[me + half];
        left = half;
    }
    // only thread 0 wrote gaps[0] since the last barrier
    if (me == 0 && gaps[0]) atomicMax(worst, gaps[0]);
}

extern "C" __global__ void symmetrize_f64(double *a, long long n, u64 *worst) {
    symmetrize<double>(a, n, worst);
}
extern "C" __global__ void symmetrize_f32(float *a, long long n, u64 *worst) {
    symmetrize<float>(a, n, worst);
}
