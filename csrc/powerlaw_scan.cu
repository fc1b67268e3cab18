#include "common.cuh"

// Power-law fits of many ragged layers at every candidate x_min at once. Layer l holds the values
// offsets[l] ... offsets[l + 1] - 1: ascending, positive, finite (the caller checks). For each
// value x_i as x_min, with the tail {x_j >= x_i} of n_i values (Clauset, Shalizi, Newman, SIAM Rev.
// 51, 661 (2009), eqs. 3.1 and 3.9; F(x) = 1 - (x / x_i)^(1 - alpha)):
//   alpha[i] <- 1 + n_i / sum ln(x_j / x_i)
//   ks[i]    <- max over the tail of |F(x_j) - #{tail < x_j} / n_i|; with two_sided the supremum
//               over all x, to which the steps' upper ends #{tail <= x_j} / n_i contribute as well
// NaN where the tail holds one distinct value. Equal candidates get equal results.
//
// One thread for each candidate, the tail passes through shared memory tile by tile, twice: for
// alpha, then for ks. Block: (TILE). Grid: (ceil(longest layer / TILE), min(layers, 65535)).
//
// What passes is the depth ln(x_max / x_j), by log1p: its error is relative to itself, so a depth
// difference is good to a few ulp of the tail's own extent, in whatever unit x comes and however
// narrow the tail is. Survival probabilities, exp((1 - alpha) ln(x_j / x_i)) and (n_i - #) / n_i,
// are compared rather than distributions: they need no subtraction from 1.
#define TILE 128

__device__ inline double log_ratio(double high, double low) {
    const double excess = (high - low) / low;
    return excess < 1e300 ? log1p(excess) : log(high) - log(low);  // overflows only near 1e308
}

__device__ long long first_not_below(const double *x, long long n, double value) {
    long long low = 0, high = n;
    while (low < high) {
        const long long middle = low + (high - low) / 2;
        if (x[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

__device__ void scan_layer(const double *x, long long n, int two_sided, double *alpha, double *ks) {
    __shared__ double depth[TILE];
    __shared__ int fresh[TILE];  // 0 where the value before is the same: no step of its own
    const long long base = (long long)blockIdx.x * TILE, i = base + threadIdx.x;
    if (base >= n) return;  // the whole block
    const double top = x[n - 1];
    const bool fits = i < n && x[i] < x[n - 1];
    // tile where the block's longest tail begins; tiles lie alike for all blocks, so that equal
    // candidates in two of them add up the same partial sums
    const long long start = first_not_below(x, n, x[base]) / TILE * TILE;
    const long long first = fits ? first_not_below(x, n, x[i]) : n;
    const double own = fits ? log_ratio(top, x[i]) : 0.0;
    const double size = (double)(n - first), share = 1.0 / size;  // share unused if size is 0
    double sum = 0.0, slope = 0.0, worst = 0.0;

    for (int pass = 0; pass < 2; ++pass) {
        for (long long tile = start; tile < n; tile += TILE) {
            const long long j = tile + threadIdx.x;
            __syncthreads();  // the tile before is no longer read
            if (j < n) {
                depth[threadIdx.x] = log_ratio(top, x[j]);
                fresh[threadIdx.x] = two_sided || j == 0 || x[j - 1] < x[j];
            }
            __syncthreads();
            if (first >= tile + TILE) continue;
            const int from = first > tile ? (int)(first - tile) : 0;
            const int to = n - tile < TILE ? (int)(n - tile) : TILE;
            if (pass == 0) {
                double part = 0.0;  // tile sums first: the error grows with TILE + n / TILE
                for (int k = from; k < to; ++k) part += own - depth[k];
                sum += part;
            } else {
                double left = (double)(n - tile - from);  // values of the tail not below x_j
                for (int k = from; k < to; ++k, left -= 1.0) {
                    if (!fresh[k]) continue;
                    const double model = exp(slope * (depth[k] - own));
                    worst = fmax(worst, fabs(left * share - model));
                    if (two_sided) worst = fmax(worst, model - (left - 1.0) * share);
                }
            }
        }
        if (pass == 0 && fits) slope = size / sum;  // alpha - 1
    }
    if (i < n) {
        alpha[i] = fits ? 1.0 + slope : nan("");
        ks[i] = fits ? worst : nan("");
    }
}

extern "C" __global__ void powerlaw_scan_f64(const double *values, const long long *offsets,
                                             long long layers, int two_sided, double *alpha,
                                             double *ks) {
    for (long long l = blockIdx.y; l < layers; l += gridDim.y) {
        const long long at = offsets[l];
        scan_layer(values + at, offsets[l + 1] - at, two_sided, alpha + at, ks + at);
    }
}
