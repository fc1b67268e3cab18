#include "common.cuh"
#include "flags.cuh"

// QR of a batch of panels by Householder reflectors, one block for each: a rows x b panel is
// (I - V T V^T) R with k = min(rows, b) reflectors, V unit lower trapezoidal, T upper triangular
// (LAPACK's geqrt with larft). For a batch this is what torch.geqrf does one matrix after another.
//
// Column c of panel m begins at given + m stride + c ld, its rows one after another: for a symmetric
// row-major matrix, the rows of the block that mirrors the panel.
// v: (batch, b, rows), column by column; columns from k on are scratch.
// t, r: (batch, b, b) row-major, zero on entry; T fills its first k rows and columns, R its first k
//   rows.
// The matrices must be scaled to entries of order 1: a column whose norm is below 1e-140 of that
// counts as zero below its first entry, far below n eps ||A||.
//
// Block: 1-D, any size (the bits do not depend on it); 512 is meant. Grid: (up to batch). Dynamic
// shared memory: rows + (LANES + 2) b numbers.
//
// One pass over the panel gives what column x below row j has in common with every other column:
// with v_j = (1, scale x), v_j^T a_c = a_c[j] + scale x^T a_c, for columns to come (their update) as
// for those before (column j of T).
#define LANES 32

#define LEAST_SQUARE 1e-280

__device__ void factorise(const double *given, long long ld, int rows, int b, double *v, double *t,
                          double *r) {
    double *const x = dynamic_shared<double>(), *const partial = x + rows;
    double *const sums = partial + LANES * b, *const heads = sums + b;
    const int me = threadIdx.x, threads = blockDim.x, k = min(rows, b), shares = LANES * b;

    for (int s = me; s < shares; s += threads) {
        const long long c = s / LANES;
        for (int i = s % LANES; i < rows; i += LANES) v[c * rows + i] = given[c * ld + i];
    }
    __syncthreads();

    for (int j = 0; j < k; ++j) {
        double *const column = v + (long long)j * rows;
        for (int i = me; i < rows; i += threads) {
            const double entry = column[i];
            x[i] = entry;
            if (i < j) {
                r[i * b + j] = entry;
                column[i] = 0;
            }
        }
        __syncthreads();

        for (int s = me; s < shares; s += threads) {
            const int c = s / LANES;
            const double *const other = c == j ? x : v + (long long)c * rows;
            double sum = 0;
            for (int i = j + 1 + s % LANES; i < rows; i += LANES) sum += x[i] * other[i];
            partial[s] = sum;
        }
        __syncthreads();
        for (int c = me; c < b; c += threads) {
            double sum = 0;
            for (int lane = 0; lane < LANES; ++lane) sum += partial[c * LANES + lane];
            sums[c] = sum;
            heads[c] = v[(long long)c * rows + j];
        }
        __syncthreads();

        // H = I - tau v v^T maps the column to beta (dlarfg); every thread computes the same
        const double alpha = x[j], tail = sums[j], square = alpha * alpha + tail;
        double beta = alpha, tau = 0, scale = 0;
        if (tail > 0 && square > LEAST_SQUARE) {
            const double norm = sqrt(square);
            beta = alpha > 0 ? -norm : norm;
            tau = (beta - alpha) / beta;
            scale = 1 / (alpha - beta);
        }
        for (int s = me; s < shares; s += threads) {
            const int c = s / LANES, lane = s % LANES, below = j + 1 + lane;
            if (c > j && tau != 0) {
                double *const other = v + (long long)c * rows;
                const double change = tau * (heads[c] + scale * sums[c]), each = change * scale;
                if (lane == 0) other[j] = heads[c] - change;
                for (int i = below; i < rows; i += LANES) other[i] -= each * x[i];
            } else if (c == j) {
                for (int i = below; i < rows; i += LANES) column[i] = scale * x[i];
                if (lane == 0) {
                    column[j] = 1;
                    r[j * b + j] = beta;
                    t[j * b + j] = tau;
                }
            } else if (c < j && lane == 0) {  // row c of T is this thread's alone
                double sum = 0;
                for (int q = c; q < j; ++q) sum += t[c * b + q] * (heads[q] + scale * sums[q]);
                t[c * b + j] = -tau * sum;
            }
        }
        __syncthreads();
    }
    for (int s = me; s < (b - k) * k; s += threads) {  // a panel wider than high
        const int c = k + s / k, i = s % k;
        r[i * b + c] = v[(long long)c * rows + i];
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(512)
    panel_batch_f64(const double *given, long long ld, long long stride, long long rows, int b,
                    long long batch, double *v, double *t, double *r) {
    for (long long m = blockIdx.x; m < batch; m += gridDim.x)
        factorise(given + m * stride, ld, (int)rows, b, v + m * b * rows, t + m * b * b,
                  r + m * b * b);
}
