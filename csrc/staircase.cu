#include "common.cuh"

// The counting function of a pool of levels: counts[q] <- #{k < m: pool[k] < queries[q]}, strict,
// as np.searchsorted(side="left"). Pool ascending, no NaN on either side (the caller checks). One
// thread for each query. Grid: ceil(n / blockDim.x); any block.
//
// A binary search per thread, not a merge path: queries come ascending, so neighbouring threads
// walk the same way down and a step is one or two cache lines for a warp; a merge path would read
// the whole pool, of which a search with m > n sees little. Unsorted queries are right too, slower.

template <typename T>
__device__ void staircase(const T *pool, long long m, const T *queries, long long n,
                          long long *counts) {
    const long long q = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (q >= n) return;
    const T level = queries[q];
    long long low = 0, high = m;  // pool[k] < level for k < low, not for k >= high
    while (low < high) {
        const long long middle = low + (high - low) / 2;
        if (pool[middle] < level)
            low = middle + 1;
        else
            high = middle;
    }
    counts[q] = low;
}

extern "C" __global__ void staircase_f64(const double *pool, long long m, const double *queries,
                                         long long n, long long *counts) {
    staircase<double>(pool, m, queries, n, counts);
}
extern "C" __global__ void staircase_f32(const float *pool, long long m, const float *queries,
                                         long long n, long long *counts) {
    staircase<float>(pool, m, queries, n, counts);
}
