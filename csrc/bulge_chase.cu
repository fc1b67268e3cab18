#include "common.cuh"
#include "flags.cuh"
#include "householder.cuh"

// Symmetric band -> tridiagonal by bulge chasing, for a batch of matrices of one size.
//
// Sweep s makes column s tridiagonal with a reflector over rows s+1 .. s+b (step 0), then chases
// the bulge that this makes down the band: step k works on rows s+1+k*b and the b - 1 after them.
// From the right it applies step k-1's reflector to the b x b block left of the diagonal block, it
// annihilates that block's first column with a reflector of its own and applies this one from the
// left and, from both sides, to the diagonal block. The rest of the bulge waits for later sweeps
// (LAPACK's dsytrd_sb2st; Haidar, Ltaief & Dongarra, SC'11). 6 n^2 b operations per matrix.
//
// band: (batch, n, 2b+1), entry [j][k] = A[j+k][j]; rows k > b hold zeros on entry, the bulges in
//   between. Overwritten.
// d, e: (batch, n) each; e[j] = A[j+1][j], and 0 in the last place.
// state: 2 + batch * n words, zero on entry. state[0]: the queue, number s * batch + matrix is next;
//   state[1]: on return 0, or 1 + a number that waited in vain (d and e are then worthless); then
//   (batch, n) steps done of each sweep.
// spin_limit: how often a wait looks before it gives up.
// Block: 1-D; a multiple of b threads is best. Dynamic shared memory for blocks of T threads:
//   (2 b (b+1) + 2 max(b, T) + 4 b) numbers and 8 bytes. b <= 64 keeps it at 73 kB.
//
// Order. Step k of sweep s touches rows s+1+k*b .. s+(k+1)*b, in columns from s+1+(k-1)*b on. Step
// k of sweep s+1 reaches one row further, into step k+1 of sweep s and no later one. So it starts
// when sweep s has done k+2 steps or all it has: sweep s+1 trails sweep s by two steps, 2b columns,
// and n / (2b) sweeps are in flight. Every entry is changed by the same operations in the same
// order whatever the number of blocks: so are the bits of the result.
//
// No deadlock. Sweeps leave the queue in order, s of every matrix before s+1 of any, and a block
// ends its sweep before it takes another. A sweep waits only for its predecessor, which left the
// queue earlier, so that a resident block has it or has ended it. Of the sweeps taken but not ended
// the first in the queue waits for none, so some block always advances. Any number of blocks will
// do, resident together or not.
//
// Memory. A block reads the band only after thread 0 acquired the predecessor's count and the block
// passed a barrier, and counts its own step up after a barrier, with release. The pointers are
// neither const nor __restrict__: no read may go through the read-only cache.

// Every thread computes the same. Scaled only where squares would lose bits, or all.
template <typename T>
__device__ Reflector<T> reflector(const T *x, int rows) {
    T big = 1, alpha = x[0], tail = dot(x, x, 1, rows);
    const T square = alpha * alpha + tail;
    if (!keeps_bits(square)) {
        big = fabs(alpha);
        for (int i = 1; i < rows; ++i) big = fabs(x[i]) > big ? fabs(x[i]) : big;
        if (big == (T)0) return {square, 0, 1, 0};  // zeros; or NaN, which stays one
        alpha /= big;
        tail = 0;
        for (int i = 1; i < rows; ++i) tail += (x[i] / big) * (x[i] / big);
    }
    if (tail == (T)0) return {x[0], 0, 1, 0};
    return reflector(alpha, tail, big);
}

#define FETCH 8

template <typename T>
struct Workspace {
    T *left, *middle;        // the block left of the diagonal block, the diagonal block; by columns
    T *sums, *other_sums;    // partial sums, max(b, threads) each
    T *before, *now, *z, *p; // step k-1's v, step k's v; tau B^T v, tau D v
};

// Step with rows r0 .. of one sweep. tau: step k-1's on entry, step k's on return. In the first
// step of a sweep the block on the left is the one column r0 - 1.
template <typename T>
__device__ void chase_step(T *band, int n, int b, int r0, bool first, const Share &mine,
                           const Workspace<T> &w, T &tau) {
    const int rows = min(b, n - r0), columns = first ? 1 : b, pitch = b + 1;
    const long long wide = 2 * b;  // A[i][j] of the band's lower half is band[2 b j + i]
    T *const left = band + wide * (r0 - columns) + r0;
    T *const middle = band + wide * r0 + r0;

    for (int r = mine.row; r < rows; r += mine.step)
        for (int c0 = mine.part; c0 < b; c0 += FETCH * mine.parts) {
            T x[FETCH], y[FETCH];  // all on their way before the first is needed
#pragma unroll
            for (int j = 0; j < FETCH; ++j) {
                const int c = c0 + j * mine.parts;
                x[j] = c < columns ? left[c * wide + r] : (T)0;
                y[j] = c <= r ? middle[c * wide + r] : (T)0;
            }
#pragma unroll
            for (int j = 0; j < FETCH; ++j) {
                const int c = c0 + j * mine.parts;
                if (c < columns) w.left[c * pitch + r] = x[j];
                if (c <= r) w.middle[c * pitch + r] = w.middle[r * pitch + c] = y[j];
            }
        }
    __syncthreads();

    if (!first && tau != (T)0) {  // B <- B H of step k-1
        for (int r = mine.row; r < rows; r += mine.step) {
            T sum = 0;
            for (int c = mine.part; c < columns; c += mine.parts)
                sum += w.left[c * pitch + r] * w.before[c];
            w.sums[mine.part * b + r] = sum;
        }
        __syncthreads();
        for (int r = mine.row; r < rows; r += mine.step) {
            const T y = tau * sum_of_parts(w.sums, r, b, mine.parts);
            for (int c = mine.part; c < columns; c += mine.parts)
                w.left[c * pitch + r] -= y * w.before[c];
        }
        __syncthreads();
    }

    const Reflector<T> h = reflector(w.left, rows);
    tau = h.tau;
    if (mine.part == 0)
        for (int r = mine.row; r < rows; r += mine.step) {
            const T x = h.big == (T)1 ? w.left[r] : w.left[r] / h.big;
            w.now[r] = r == 0 ? (T)1 : x * h.scale;
        }
    __syncthreads();

    for (int i = mine.row; i < b; i += mine.step) {
        T sum = 0, other = 0;
        if (i < columns)
            for (int r = mine.part; r < rows; r += mine.parts)
                sum += w.left[i * pitch + r] * w.now[r];
        if (i < rows)
            for (int c = mine.part; c < rows; c += mine.parts)
                other += w.middle[c * pitch + i] * w.now[c];
        w.sums[mine.part * b + i] = sum;
        w.other_sums[mine.part * b + i] = other;
    }
    __syncthreads();
    if (mine.part == 0)
        for (int i = mine.row; i < b; i += mine.step) {
            w.z[i] = tau * sum_of_parts(w.sums, i, b, mine.parts);
            w.p[i] = tau * sum_of_parts(w.other_sums, i, b, mine.parts);
        }
    __syncthreads();

    // B <- H B;  D <- H D H = D - v q^T - q v^T, q = p - (tau / 2) (p^T v) v
    const T half = tau * dot(w.p, w.now, 0, rows) / (T)2;
    for (int r = mine.row; r < rows; r += mine.step) {
        const T v = w.now[r], q = w.p[r] - half * v;
        for (int c = mine.part; c < columns; c += mine.parts)
            left[c * wide + r] = c > 0    ? w.left[c * pitch + r] - v * w.z[c]
                                       : r == 0 ? h.beta
                                                : (T)0;
        for (int c = mine.part; c <= r; c += mine.parts)
            middle[c * wide + r] =
                w.middle[c * pitch + r] - v * (w.p[c] - half * w.now[c]) - q * w.now[c];
    }
    __syncthreads();
}

template <typename T>
__device__ void bulge_chase(T *band, int n, int b, int batch, T *d, T *e, unsigned *state,
                            unsigned spin_limit) {
    const int lane = threadIdx.x, wide = max(b, (int)blockDim.x);
    unsigned *const told = dynamic_shared<unsigned>();  // by thread 0: the sweep; whether to go on
    Workspace<T> w;
    w.left = dynamic_shared<T>() + 8 / sizeof(T);
    w.middle = w.left + b * (b + 1);
    w.sums = w.middle + b * (b + 1);
    w.other_sums = w.sums + wide;
    w.before = w.other_sums + wide;
    w.now = w.before + b;
    w.z = w.now + b;
    w.p = w.z + b;
    const Share mine = share_of(b);
    unsigned *const done = state + 2;
    const unsigned sweeps = (unsigned)batch * (unsigned)n;

    for (;;) {
        if (lane == 0) told[0] = load_acquire(state + 1) ? sweeps : atomicAdd(state, 1u);
        __syncthreads();
        const unsigned sweep = told[0];
        if (sweep >= sweeps) return;
        const int matrix = sweep % batch, s = sweep / batch;
        unsigned *const own = done + (long long)matrix * n + s;
        T *const a = band + (long long)matrix * n * (2 * b + 1);
        const int steps = (n - 1 - s + b - 1) / b, steps_before = (n - s + b - 1) / b;

        T tau = 0;
        for (int k = 0; k == 0 || k < steps; ++k) {
            if (lane == 0)
                told[1] = s == 0 || wait_for(own - 1, min(k + 2, steps_before), state + 1, sweep,
                                             spin_limit);
            __syncthreads();
            if (!told[1]) return;
            if (k < steps) chase_step(a, n, b, s + 1 + k * b, k == 0, mine, w, tau);
            if (lane == 0) {
                if (k == 0) {  // column s is final
                    T *const column = a + (long long)s * (2 * b + 1);
                    d[(long long)matrix * n + s] = column[0];
                    e[(long long)matrix * n + s] = s < n - 1 ? column[1] : (T)0;
                }
                store_release(own, k + 1);
            }
            T *const v = w.before;
            w.before = w.now;
            w.now = v;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256)
    bulge_chase_f64(double *band, int n, int b, int batch, double *d, double *e, unsigned *state,
                    unsigned spin_limit) {
    bulge_chase<double>(band, n, b, batch, d, e, state, spin_limit);
}
extern "C" __global__ void __launch_bounds__(256)
    bulge_chase_f32(float *band, int n, int b, int batch, float *d, float *e, unsigned *state,
                    unsigned spin_limit) {
    bulge_chase<float>(band, n, b, batch, d, e, state, spin_limit);
}
