#include "common.cuh"

// Matrices of the Gaussian orthogonal ensemble: off-diagonal N(0, 1), diagonal N(0, 2), symmetric
// to the bit. Element (i, j), i >= j, of matrix m is a function of (key, m, i (i + 1) / 2 + j)
// alone, so neither the launch nor the split of a batch changes it.
//
// Counter-based Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC'11, doi 10.1145/2063384.2063405) and
// Box-Muller (Ann. Math. Stat. 29, 610 (1958)) in double precision: elements e = 2p and 2p + 1
// share the counter (p, m), 64 bits each, and take the cosine and the sine.
//
// One block for each pair of mirror tiles; the strict upper half of the grid has nothing to do.
// Block: (32, 8). Grid: (tiles, tiles, min(count, 65535)).
#define TILE 32

typedef unsigned int u32;

__device__ inline void philox4x32_10(u32 counter[4], u32 key0, u32 key1) {
    for (int round = 0; round < 10; ++round) {
        const u64 even = 0xD2511F53ULL * counter[0], odd = 0xCD9E8D57ULL * counter[2];
        counter[0] = (u32)(odd >> 32) ^ counter[1] ^ key0;
        counter[1] = (u32)odd;
        counter[2] = (u32)(even >> 32) ^ counter[3] ^ key1;
        counter[3] = (u32)even;
        key0 += 0x9E3779B9U;
        key1 += 0xBB67AE85U;
    }
}

__device__ inline double standard_normal(u64 key, u64 matrix, u64 element) {
    const u64 pair = element >> 1;
    u32 word[4] = {(u32)pair, (u32)(pair >> 32), (u32)matrix, (u32)(matrix >> 32)};
    philox4x32_10(word, (u32)key, (u32)(key >> 32));
    const double unit = 1.0 / 9007199254740992.0;  // 2^-53
    const u64 one = (u64)word[1] << 32 | word[0], two = (u64)word[3] << 32 | word[2];
    const double distance = (double)((one >> 11) + 1) * unit;  // in (0, 1]
    const double angle = 6.283185307179586 * ((double)(two >> 11) * unit);
    return sqrt(-2.0 * log(distance)) * (element & 1 ? sin(angle) : cos(angle));
}

__device__ void goe_tile(double *a, long long n, u64 key, u64 matrix) {
    __shared__ double lower[TILE][TILE + 1];
    const long long bi = blockIdx.y, bj = blockIdx.x;
    const long long rows = bi * TILE, columns = bj * TILE;
    __syncthreads();  // the matrix before is no longer read
    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        const long long i = rows + r, j = columns + threadIdx.x;
        if (i >= n || j > i) continue;
        const double z = standard_normal(key, matrix, (u64)i * (u64)(i + 1) / 2 + (u64)j);
        lower[r][threadIdx.x] = i == j ? 1.4142135623730951 * z : z;
    }
    __syncthreads();
    for (int r = threadIdx.y; r < TILE; r += blockDim.y) {
        const int c = threadIdx.x;
        const bool mirrored = bi == bj && c > r;
        if (rows + r < n && columns + c < n)
            a[(rows + r) * n + columns + c] = mirrored ? lower[c][r] : lower[r][c];
        if (bi != bj && columns + r < n && rows + c < n)
            a[(columns + r) * n + rows + c] = lower[c][r];
    }
}

// a[count][n][n], the matrices first ... first + count - 1 of the key's sequence
extern "C" __global__ void goe_fill_f64(double *a, long long n, long long count, u64 key,
                                        u64 first) {
    if (blockIdx.x > blockIdx.y) return;  // the whole block leaves: no barrier is split
    for (long long m = blockIdx.z; m < count; m += gridDim.z)
        goe_tile(a + m * n * n, n, key, first + (u64)m);
}
