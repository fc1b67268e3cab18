// Householder reflectors, and how the threads of a 1-D block divide their sums.

template <typename T>
struct Reflector {  // H = I - tau v v^T, v = (1, x / big * scale), H (alpha, x) = (beta, 0)
    T beta, tau, big, scale;
};

// Between these a sum of squares keeps its bits: below the first, of 1e5 float squares those that
// vanish (under 1.2e-38) could be more than epsilon of it.
__device__ inline double least_square(double) { return 1e-280; }
__device__ inline double most_square(double) { return 1e300; }
__device__ inline float least_square(float) { return 1e-25f; }
__device__ inline float most_square(float) { return 1e36f; }
template <typename T>
__device__ inline bool keeps_bits(T square) {
    return square >= least_square(square) && square <= most_square(square);
}

// From alpha / big and tail = (x / big)^2. Nothing to annihilate: H = I.
template <typename T>
__device__ inline Reflector<T> reflector(T alpha, T tail, T big) {
    if (tail == (T)0) return {alpha * big, 0, big, 0};
    const T norm = sqrt(alpha * alpha + tail);
    const T beta = alpha > (T)0 ? -norm : norm;
    return {beta * big, (beta - alpha) / beta, big, (T)1 / (alpha - beta)};
}

// A thread's share of an array with b columns (or rows): those numbered row, row + step, ...; of
// what is summed over, every parts-th from part on.
struct Share {
    int row, step, part, parts;
};

__device__ inline Share share_of(int b) {
    const int t = threadIdx.x, threads = blockDim.x;
    if (threads < b) return {t, threads, 0, 1};
    const int parts = threads / b;
    return {t < parts * b ? t % b : b, b, t / b, parts};  // threads left over get no row
}

template <typename T>
__device__ T sum_of_parts(const T *sums, int i, int b, int parts) {
    T sum = 0;
    for (int p = 0; p < parts; ++p) sum += sums[p * b + i];
    return sum;
}

// x . y over [from, to), in four sums so that the additions need not wait for each other.
template <typename T>
__device__ T dot(const T *x, const T *y, int from, int to) {
    T a = 0, b = 0, c = 0, d = 0;
    int i = from;
    for (; i + 3 < to; i += 4) {
        a += x[i] * y[i];
        b += x[i + 1] * y[i + 1];
        c += x[i + 2] * y[i + 2];
        d += x[i + 3] * y[i + 3];
    }
    for (; i < to; ++i) a += x[i] * y[i];
    return (a + b) + (c + d);
}
