#include "common.cuh"
#include "flags.cuh"
#include "sturm.cuh"

// All eigenvalues, ascending, of a batch of small symmetric matrices, one block for each:
// Householder reduction to tridiagonal form in shared memory (as LAPACK's dsytd2), then bisection.
//
// Matrix m begins at a + m stride, row-major with rows lda apart; only its lower triangle is read.
// Row m of eigenvalues begins at eigenvalues + m ld. info for each matrix: 0 ok; -1 an entry is not
// finite, all results are NaN; k > 0 eigenvalue k (from 1, the last such) was not found or exceeds
// float64; its result is NaN.
//
// Block: n rounded up to a multiple of 32; any size is correct. Grid: (up to batch); a block takes
// every gridDim.x-th matrix. Dynamic shared memory: 8 (4 n + n (n + 1) / 2) bytes, 108,160 for
// n = 160. Above 48 KB the launch must opt in. Static shared memory takes less than 1 KB more.
// Largest n:
//   64 KB per block (sm_75) 122; 99 KB (sm_86, sm_89, sm_120) 154; 163 KB (sm_80) 160 and more;
//   227 KB (sm_90, sm_100) 160 and more
//
// The triangle is packed by rows: half the memory, and no more than two of 32 neighbouring rows at
// one column share a bank, since triangular numbers meet every residue modulo 2^k.
#define LANES 32

__device__ inline int row_start(int r) { return r * (r + 1) / 2; }

// A sum is LANES partial sums, which every thread then adds up: the bits don't depend on the size
// of the block, and one barrier is enough.
__device__ inline double sum_of(const double *partial) {
    double sum = 0;
    for (int lane = 0; lane < LANES; ++lane) sum += partial[lane];
    return sum;
}

// Q^T A Q = T; d[i] = T_ii, e[i] = T_{i,i-1}, e[0] = 0. The largest entry of A must be of order 1.
__device__ void tridiagonalise(int n, double *a, double *v, double *p, double (*partial)[LANES],
                               double *d, double *e) {
    const int me = threadIdx.x, threads = blockDim.x;
    for (int i = 0; i + 2 < n; ++i) {
        const int first = i + 1;
        for (int r = first + me; r < n; r += threads) v[r] = a[row_start(r) + i];
        __syncthreads();

        // The column scaled to order 1: squares of what matters neither overflow nor underflow.
        for (int lane = me; lane < LANES; lane += threads) {
            double largest = 0;
            for (int r = first + lane; r < n; r += LANES) {
                const double x = v[r] < 0 ? -v[r] : v[r];
                if (x > largest) largest = x;
            }
            partial[0][lane] = largest;
        }
        __syncthreads();
        double largest = 0;
        for (int lane = 0; lane < LANES; ++lane)
            if (partial[0][lane] > largest) largest = partial[0][lane];
        const int q = exponent_of(largest);
        for (int lane = me; lane < LANES; lane += threads) {
            double sum = 0;
            for (int r = first + 1 + lane; r < n; r += LANES) {
                const double x = ldexp(v[r], -q);
                sum += x * x;
            }
            partial[1][lane] = sum;
        }
        const double unscaled = v[first];
        __syncthreads();

        const double below = sum_of(partial[1]);
        if (below == 0) {  // nothing to annihilate: no reflector (for all threads alike)
            if (me == 0) e[first] = unscaled;
            continue;
        }
        // H = I - tau v v^T, v_first = 1, maps the column to beta (dlarfg)
        const double alpha = ldexp(unscaled, -q), norm = sqrt(alpha * alpha + below);
        const double beta = alpha < 0 ? norm : -norm, tau = (beta - alpha) / beta;
        const double scale = 1 / (alpha - beta);
        for (int r = first + me; r < n; r += threads)
            v[r] = r == first ? 1 : ldexp(v[r], -q) * scale;
        if (me == 0) e[first] = ldexp(beta, q);
        __syncthreads();

        // A <- H A H = A - v w^T - w v^T; p = tau A v, w = p - (tau/2) (p^T v) v
        for (int r = first + me; r < n; r += threads) {
            double sum = 0;
            for (int c = first; c <= r; ++c) sum += a[row_start(r) + c] * v[c];
            for (int c = r + 1; c < n; ++c) sum += a[row_start(c) + r] * v[c];
            p[r] = tau * sum;
        }
        __syncthreads();
        for (int lane = me; lane < LANES; lane += threads) {
            double sum = 0;
            for (int r = first + lane; r < n; r += LANES) sum += p[r] * v[r];
            partial[2][lane] = sum;
        }
        __syncthreads();
        const double half = -tau * sum_of(partial[2]) / 2;
        for (int t = me; t < (n - first) * LANES; t += threads) {
            const int r = first + t / LANES;
            const double vr = v[r], wr = p[r] + half * vr;
            for (int c = first + t % LANES; c <= r; c += LANES)
                a[row_start(r) + c] -= vr * (p[c] + half * v[c]) + wr * v[c];
        }
        __syncthreads();
    }
    __syncthreads();
    for (int i = me; i < n; i += threads) d[i] = a[row_start(i) + i];
    if (me == 0) {
        e[0] = 0;
        if (n > 1) e[n - 1] = a[row_start(n - 1) + n - 2];
    }
    __syncthreads();
}

extern "C" __global__ void batched_small_f64(const double *a, long long size, long long lda,
                                             long long stride, long long batch,
                                             double *eigenvalues, long long ld, int *info) {
    const int n = (int)size;
    double *d = dynamic_shared<double>(), *e = d + n;
    double *v = e + n, *p = v + n, *packed = p + n;
    __shared__ double partial[3][LANES];
    __shared__ u64 largest, norm;
    __shared__ int failed;
    const int me = threadIdx.x, threads = blockDim.x;
    for (long long m = blockIdx.x; m < batch; m += gridDim.x) {
        if (me == 0) {
            largest = norm = 0;
            failed = 0;
        }
        __syncthreads();
        u64 mine = 0;
        for (int t = me; t < n * LANES; t += threads) {
            const int r = t / LANES;
            for (int c = t % LANES; c <= r; c += LANES) {
                const double x = a[m * stride + r * lda + c];
                const u64 bits = magnitude(x);
                if (bits > mine) mine = bits;
                packed[row_start(r) + c] = x;
            }
        }
        atomicMax(&largest, mine);
        __syncthreads();

        const bool finite = largest < NOT_FINITE;
        const int q = finite ? exponent_of(from_bits(largest)) : 0;
        if (finite) {
            for (int t = me; t < row_start(n); t += threads) packed[t] = ldexp(packed[t], -q);
            __syncthreads();
            tridiagonalise(n, packed, v, p, partial, d, e);
            mine = 0;
            for (int j = me; j < n; j += threads) {
                const double right = j + 1 < n ? fabs(e[j + 1]) : 0.0;
                const u64 row = ordered_bits(fabs(d[j]) + fabs(e[j]) + right);
                if (row > mine) mine = row;
            }
            atomicMax(&norm, mine);
            __syncthreads();
            for (int j = me; j < n; j += threads)
                e[j] = split_square(j > 0 ? d[j - 1] : 0.0, d[j], e[j]);
            __syncthreads();
        }
        const Bounds b = bounds(finite ? from_bits(norm) : NOT_A_NUMBER, n);
        const int todo = passes<1>(b);
        for (int k = me; k < n; k += threads) {
            double lower = -b.radius, upper = b.radius;
            for (int pass = 0; pass < todo; ++pass) {
                Sturm<1> sturm;
                sturm.start(lower, upper);
                sturm.advance(d, e, n, b.pivmin);
                sturm.narrow(k, lower, upper);
            }
            const double value = midpoint(b, lower, upper, q);
            eigenvalues[m * ld + k] = value;
            if (value != value) atomicMax(&failed, k + 1);
        }
        __syncthreads();
        if (me == 0) info[m] = finite ? failed : -1;
    }
}
