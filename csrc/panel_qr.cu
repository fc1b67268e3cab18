#include "common.cuh"
#include "flags.cuh"
#include "householder.cuh"

// Householder QR of one (m, b) panel, Q = I - V T V^T = I - W V^T, by a grid that stays resident:
// every block keeps its share of the rows in shared memory and the blocks meet once a column.
//
// a: row i at a + i * stride; only read. m * max|a| must not overflow.
// v, w: (m, k), k = min(m, b). V is unit lower trapezoidal, W = V T.
// r: (k, b), upper triangular. On its diagonal is -sign(a_jj) times the norm of what is left of
//   the column, as in LAPACK's dgeqrf. A column with nothing to annihilate has tau = 0 there: its
//   reflector is the identity, its columns of V and W are zero.
// work: 2 b (blocks + 1) + blocks b^2 numbers; nothing need be in them.
// flags: one word a block, at most `turn` on entry, at most turn + 3 k on return.
// failure: one word; 0, or 1 + a block that waited in vain: v, w and r are then worthless, and
//   every later launch that is given the word leaves at once.
// spin_limit: how often a wait looks before it gives up.
// Block: 1-D; a multiple of b threads is best. Grid: at most as many blocks as the device holds at
//   once, for each waits for all others. Dynamic shared memory for blocks of T threads, with
//   rows = ceil(m / blocks): (rows (b+1) + max(b, T) + 3 b) numbers and 8 bytes.
//
// One meeting a column. Over the rows below the diagonal, x of column j with every column A_c, the
// blocks sum x . A_c. Right of j these are the products that apply the reflector; at c = j the
// square of x, a sum of its own from which nothing is subtracted, so the norm has no cancellation;
// left of j, where columns hold their v, what V^T V needs. v = (1, x / (alpha - beta)) is known
// only afterwards, so v . A_c = A_jc + (x . A_c) / (alpha - beta): as backward stable as LAPACK's
// order, which divides before it multiplies. A column whose squares would lose bits, or products
// that overflow, meet twice more, with x divided by its largest entry.
//
// T^-1 has 1 / tau on its diagonal and V^T V above it (Puglisi 1992), so a row of W follows from
// the row of V by substitution.
//
// Every sum is taken in one order: for one number of blocks and of threads the bits are the same.
// Partial sums of two meetings alternate: a block writes those of meeting t + 2 after all came to
// t + 1, hence had read those of t. None of the pointers is __restrict__: no read may go through
// the read-only cache.

template <typename T>
struct Panel {  // a block's share, in shared memory, and what the blocks share in global memory
    int b, begin, own;  // rows begin .. begin + own of the panel
    T *a;               // (own, b + 1)
    T *sums;            // partial sums, max(b, threads)
    T *totals, *row;    // of the last meeting: sums over all blocks, and row j of the panel
    T *tau;
    unsigned *told;     // a wait failed; a sum is not finite
    T *parts, *rows;    // (2, blocks, b) and (2, b)
    unsigned *flags, *failure, turn, spin_limit;
};

template <bool LARGEST, typename T>
__device__ inline T joined(T x, T y) {
    if (!LARGEST) return x + y;
    return y > x || y != y ? y : x;  // NaN stays
}

// The sums of all blocks, or their largest, for each of b columns; false if a block waited in vain.
template <bool LARGEST, typename T>
__device__ bool meet(Panel<T> &p, const Share &mine, int j) {
    const int b = p.b, blocks = gridDim.x, lane = threadIdx.x, pivot = j - p.begin;
    const bool owner = pivot >= 0 && pivot < p.own;
    const unsigned turn = ++p.turn, half = turn & 1;
    T *const parts = p.parts + half * blocks * b, *const row = p.rows + half * b;
    __syncthreads();
    if (mine.part == 0)
        for (int c = mine.row; c < b; c += mine.step) {
            T sum = 0;
            for (int part = 0; part < mine.parts; ++part)
                sum = joined<LARGEST>(sum, p.sums[part * b + c]);
            parts[blockIdx.x * b + c] = sum;
            if (owner) row[c] = p.a[pivot * (b + 1) + c];
        }
    __syncthreads();
    if (lane == 0) store_release(p.flags + blockIdx.x, turn);
    for (int other = lane; other < blocks; other += blockDim.x)
        if (other != (int)blockIdx.x &&
            !wait_for(p.flags + other, turn, p.failure, blockIdx.x, p.spin_limit))
            atomicExch(p.told, 1u);
    __syncthreads();
    if (p.told[0]) return false;
    for (int c = mine.row; c < b; c += mine.step) {
        T sum = 0;
#pragma unroll 8
        for (int other = mine.part; other < blocks; other += mine.parts)
            sum = joined<LARGEST>(sum, parts[other * b + c]);
        p.sums[mine.part * b + c] = sum;
    }
    __syncthreads();
    if (mine.part == 0)
        for (int c = mine.row; c < b; c += mine.step) {
            T total = 0;
            for (int part = 0; part < mine.parts; ++part)
                total = joined<LARGEST>(total, p.sums[part * b + c]);
            p.totals[c] = total;
            p.row[c] = row[c];
            if (!(total - total == (T)0)) atomicExch(p.told + 1, 1u);
        }
    __syncthreads();
    return true;
}

// What the reflector of the last meeting takes from column c.
template <typename T>
__device__ inline T taken(const Panel<T> &p, int c, T tau, T scale) {
    return tau * (p.row[c] + p.totals[c] * scale);
}

// Column j below its diagonal times every column, from row j on; with the reflector before (its v
// in column j - 1) applied to the columns right of j on the way.
template <typename T>
__device__ void products(const Panel<T> &p, const Share &mine, int j, T tau, T scale) {
    const int pitch = p.b + 1, pivot = j - p.begin;
    for (int c = mine.row; c < p.b; c += mine.step) {
        const bool later = c > j && tau != (T)0;
        const T w = later ? taken(p, c, tau, scale) : (T)0;
        T sum = 0;
        for (int i = max(0, pivot) + mine.part; i < p.own; i += mine.parts) {
            T *const x = p.a + i * pitch, y = later ? x[c] - w * x[j - 1] : x[c];
            if (later) x[c] = y;
            if (i != pivot) sum += x[j] * y;
        }
        p.sums[mine.part * p.b + c] = sum;
    }
}

// Divides column j, from row j on, by its largest entry, which it returns, and meets once more;
// 0 if there is nothing but zeros. False as a meeting.
template <typename T>
__device__ bool rescaled(Panel<T> &p, const Share &mine, int j, T &big) {
    const int pitch = p.b + 1, from = max(0, j - p.begin), lane = threadIdx.x;
    const int slots = mine.parts * p.b;
    for (int slot = lane; slot < slots; slot += blockDim.x) {
        T most = 0;
        for (int i = from + slot; i < p.own; i += slots)
            most = joined<true>(most, (T)fabs(p.a[i * pitch + j]));
        p.sums[slot] = most;
    }
    if (!meet<true>(p, mine, j)) return false;
    big = 0;
    for (int c = 0; c < p.b; ++c) big = joined<true>(big, p.totals[c]);
    if (lane == 0) p.told[1] = 0;
    if (big == (T)0) return true;
    for (int i = from + lane; i < p.own; i += blockDim.x) p.a[i * pitch + j] /= big;
    __syncthreads();
    products(p, mine, j, (T)0, (T)0);
    return meet<false>(p, mine, j);
}

template <typename T>
__device__ void panel_qr(const T *a, long long stride, int m, int b, T *v, T *w, T *r, T *work,
                         unsigned *flags, unsigned *failure, unsigned turn, unsigned spin_limit) {
    const int lane = threadIdx.x, threads = blockDim.x, blocks = gridDim.x, pitch = b + 1;
    const int each = (m + blocks - 1) / blocks, k = min(m, b);
    const Share mine = share_of(b);
    Panel<T> p;
    p.b = b;
    p.begin = blockIdx.x * each;
    p.own = max(0, min(each, m - p.begin));
    p.told = dynamic_shared<unsigned>();
    p.a = dynamic_shared<T>() + 8 / sizeof(T);
    p.sums = p.a + each * pitch;
    p.totals = p.sums + max(b, threads);
    p.row = p.totals + b;
    p.tau = p.row + b;
    p.parts = work;
    p.rows = p.parts + 2 * blocks * b;
    T *const gram = p.rows + 2 * b + (long long)blockIdx.x * b * b;  // row j: V^T v_j; own copy
    p.flags = flags;
    p.failure = failure;
    p.turn = turn;
    p.spin_limit = spin_limit;

    if (lane == 0) {
        p.told[0] = load_acquire(failure) != 0;
        p.told[1] = 0;
    }
    for (int c = mine.row; c < b; c += mine.step)
        for (int i = mine.part; i < p.own; i += mine.parts)
            p.a[i * pitch + c] = a[(p.begin + i) * stride + c];
    __syncthreads();
    if (p.told[0]) return;

    T tau = 0, scale = 0;
    for (int j = 0; j < k; ++j) {
        if (j > 0) {  // v of the step before, and column j made ready
            const T wj = tau != (T)0 ? taken(p, j, tau, scale) : (T)0;
            for (int i = max(0, j - p.begin) + lane; i < p.own; i += threads) {
                T *const x = p.a + i * pitch + j;
                x[-1] *= scale;
                x[0] -= wj * x[-1];
            }
        }
        __syncthreads();
        products(p, mine, j, tau, scale);
        if (!meet<false>(p, mine, j)) return;

        T big = 1;
        if (p.told[1] || !keeps_bits(p.row[j] * p.row[j] + p.totals[j]))
            if (!rescaled(p, mine, j, big)) return;
        const Reflector<T> h = reflector(p.row[j], p.totals[j], big);
        tau = h.tau;
        scale = h.scale;

        if (lane == 0) p.tau[j] = tau;
        if (mine.part == 0)
            for (int c = mine.row; c < b; c += mine.step) {
                if (c < j) gram[j * b + c] = p.row[c] + p.totals[c] * scale;
                if (blockIdx.x == 0)
                    r[(long long)j * b + c] = c < j    ? (T)0
                                              : c == j ? h.beta
                                                       : p.row[c] - taken(p, c, tau, scale);
            }
    }

    for (int i = max(0, k - p.begin) + lane; i < p.own; i += threads)
        p.a[i * pitch + k - 1] *= scale;
    __syncthreads();
    for (int c = mine.row; c < k; c += mine.step)
        for (int i = mine.part; i < p.own; i += mine.parts) {
            const int at = p.begin + i;
            T *const x = p.a + i * pitch + c;
            *x = at > c ? *x : at == c && p.tau[c] != (T)0 ? (T)1 : (T)0;
            v[(long long)at * k + c] = *x;
        }
    __syncthreads();
    for (int i = lane; i < p.own; i += threads) {
        T *const x = p.a + i * pitch;
        for (int j = 0; j < k; ++j) x[j] = p.tau[j] * (x[j] - dot(x, gram + j * b, 0, j));
    }
    __syncthreads();
    for (int c = mine.row; c < k; c += mine.step)
        for (int i = mine.part; i < p.own; i += mine.parts)
            w[(long long)(p.begin + i) * k + c] = p.a[i * pitch + c];
}

extern "C" __global__ void __launch_bounds__(512)
    panel_qr_f64(const double *a, long long stride, int m, int b, double *v, double *w, double *r,
                 double *work, unsigned *flags, unsigned *failure, unsigned turn,
                 unsigned spin_limit) {
    panel_qr<double>(a, stride, m, b, v, w, r, work, flags, failure, turn, spin_limit);
}
extern "C" __global__ void __launch_bounds__(512)
    panel_qr_f32(const float *a, long long stride, int m, int b, float *v, float *w, float *r,
                 float *work, unsigned *flags, unsigned *failure, unsigned turn,
                 unsigned spin_limit) {
    panel_qr<float>(a, stride, m, b, v, w, r, work, flags, failure, turn, spin_limit);
}
