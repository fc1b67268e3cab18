#include "common.cuh"
#include "sturm.cuh"

// Eigenvalues first ... first + wanted - 1 (from 0, ascending) of a batch of n x n symmetric
// tridiagonal matrices: first sturm_prepare_f64 or _f32, then sturm_bisect_f64, which serves both,
// since all results are float64. n < 2^31; offsets are 64-bit.
//
// Error at most 5 ulp max_j (|d_j| + |e_{j-1}| + |e_j|) for any n: 3 from splitting and counting, 2
// from the width of the last bracket and its rounded ends.
//
// work holds 2 n + 2 numbers for each matrix: d and e^2 of the scaled matrix, its norm, the
// exponent of the scale. info for each matrix: 0 ok; -1 an input is not finite, all results are
// NaN; k > 0 eigenvalue k (from 1, the last such) was not found or exceeds float64; its result is
// NaN.
#define TILE 512
#define AT_ONCE 3  // shifts

// Matrix m: n numbers from d + m ld_d, n - 1 numbers from e + m ld_e.
// Block: any, 256 say. Grid: (up to batch); a block takes every gridDim.x-th matrix.
template <typename T>
__device__ void prepare(const T *d, const T *e, long long n, long long ld_d, long long ld_e,
                        long long batch, double *work, int *info) {
    __shared__ u64 largest, norm;
    for (long long m = blockIdx.x; m < batch; m += gridDim.x) {
        const T *dm = d + m * ld_d, *em = e + m * ld_e;
        double *diagonal = work + m * (2 * n + 2), *squares = diagonal + n, *rest = squares + n;
        if (threadIdx.x == 0) largest = norm = 0;
        __syncthreads();

        u64 mine = 0;
        for (long long j = threadIdx.x; j < n; j += blockDim.x) {
            const u64 x = magnitude(dm[j]), y = j + 1 < n ? magnitude(em[j]) : 0;
            if (x > mine) mine = x;
            if (y > mine) mine = y;
        }
        atomicMax(&largest, mine);
        __syncthreads();

        const bool finite = largest < NOT_FINITE;
        const int q = finite ? exponent_of(from_bits(largest)) : 0;
        mine = 0;
        for (long long j = threadIdx.x; j < n; j += blockDim.x) {
            const double here = ldexp((double)dm[j], -q);
            const double left = j > 0 ? ldexp((double)em[j - 1], -q) : 0.0;
            const double right = j + 1 < n ? ldexp((double)em[j], -q) : 0.0;
            const double above = j > 0 ? ldexp((double)dm[j - 1], -q) : 0.0;
            const u64 row = ordered_bits(fabs(here) + fabs(left) + fabs(right));
            if (row > mine) mine = row;
            diagonal[j] = here;
            squares[j] = split_square(above, here, left);
        }
        atomicMax(&norm, mine);
        __syncthreads();

        if (threadIdx.x == 0) {
            rest[0] = finite ? from_bits(norm) : NOT_A_NUMBER;
            rest[1] = q;
            info[m] = finite ? 0 : -1;
        }
        __syncthreads();
    }
}

extern "C" __global__ void sturm_prepare_f64(const double *d, const double *e, long long n,
                                             long long ld_d, long long ld_e, long long batch,
                                             double *work, int *info) {
    prepare<double>(d, e, n, ld_d, ld_e, batch, work, info);
}
extern "C" __global__ void sturm_prepare_f32(const float *d, const float *e, long long n,
                                             long long ld_d, long long ld_e, long long batch,
                                             double *work, int *info) {
    prepare<float>(d, e, n, ld_d, ld_e, batch, work, info);
}

// Row m of eigenvalues begins at eigenvalues + m ld. One thread per eigenvalue; a pass over the
// matrix counts at 3 shifts (27 passes instead of 54). Block: (128). Grid: (wanted / 128 rounded
// up, up to batch).
extern "C" __global__ void sturm_bisect_f64(const double *work, long long n, long long batch,
                                            long long first, long long wanted,
                                            double *eigenvalues, long long ld, int *info) {
    __shared__ double tile_d[TILE], tile_e2[TILE];
    const long long index = blockIdx.x * (long long)blockDim.x + threadIdx.x, k = first + index;
    for (long long m = blockIdx.y; m < batch; m += gridDim.y) {
        const double *diagonal = work + m * (2 * n + 2), *squares = diagonal + n;
        const Bounds b = bounds(squares[n], n);
        const int exponent = (int)squares[n + 1], todo = passes<AT_ONCE>(b);
        double lower = -b.radius, upper = b.radius;
        for (int pass = 0; pass < todo; ++pass) {
            Sturm<AT_ONCE> sturm;
            sturm.start(lower, upper);
            for (long long start = 0; start < n; start += TILE) {
                const int rows = n - start < TILE ? (int)(n - start) : TILE;
                __syncthreads();  // everybody has read the tile before
                for (int j = threadIdx.x; j < rows; j += blockDim.x) {
                    tile_d[j] = diagonal[start + j];
                    tile_e2[j] = squares[start + j];
                }
                __syncthreads();
                sturm.advance(tile_d, tile_e2, rows, b.pivmin);
            }
            sturm.narrow(k, lower, upper);
        }
        if (index < wanted && k < n) {
            const double value = midpoint(b, lower, upper, exponent);
            eigenvalues[m * ld + index] = value;
            if (value != value && b.radius == b.radius) atomicMax(info + m, (int)k + 1);
        }
    }
}
