// Eigenvalues of a symmetric tridiagonal matrix T by bisection on Sturm counts, with the safeguards
// of LAPACK's dstebz. The arithmetic is float64 for float32 input too: rounded to 2^-24 |T| the
// many levels near zero of a Hessian would coincide.
//
// T is given as d[j] and e2[j], the square of the coupling of rows j - 1 and j; e2[0] = 0. It must
// be scaled so that the largest entry is of order 1.
#include "common.cuh"

#define ULP 2.220446049250313e-16        // dlamch('P'), 2^-52
#define SAFE_MIN 2.2250738585072014e-308  // dlamch('S'), 2^-1022
#define FUDGE 2.1                         // dstebz's
#define MAX_PASSES 64                     // 54 halvings reach the tolerance
#define NOT_FINITE 0x7ff0000000000000ULL  // ordered bits of infinity; a NaN's are larger
#define NOT_A_NUMBER from_bits(~0ULL >> 1)

__device__ inline u64 magnitude(double x) { return ordered_bits(fabs(x)); }

__device__ inline double from_bits(u64 bits) { return __longlong_as_double((long long)bits); }

// Exponent q with |x| 2^-q in [1/2, 1); 0 for x = 0. Multiplying by powers of two is exact.
__device__ inline int exponent_of(double x) {
    int q = 0;
    if (x != 0.0) frexp(x, &q);
    return q;
}

// e^2, or 0 where the matrix may be split into two: dropping such an e moves no eigenvalue by more
// than ulp |T|.
__device__ inline double split_square(double above, double below, double e) {
    const double square = e * e;
    return fabs(above * below) * (ULP * ULP) + SAFE_MIN > square ? 0.0 : square;
}

struct Bounds {
    double radius;     // every eigenvalue is inside (-radius, radius), strictly
    double tolerance;  // width of a bracket that is narrow enough
    double pivmin;     // least modulus of a pivot: e2 / pivot can't overflow
};

// norm = max_j |d_j| + |e_{j-1}| + |e_j|, Gershgorin's bound; widened as dstebz does, so that the
// rounded counts at the ends are 0 and n too. norm^2 >= max e^2.
__device__ inline Bounds bounds(double norm, long long n) {
    Bounds b;
    b.pivmin = SAFE_MIN * fmax(1.0, norm * norm);
    b.tolerance = ULP * norm;
    b.radius = norm == 0.0 ? 0.0 : norm + FUDGE * norm * ULP * (double)n + FUDGE * 2.0 * b.pivmin;
    return b;
}

// Counts at SHIFTS shifts of how many pivots of T - x are negative, i.e. how many eigenvalues are
// below x; their independent divisions hide each other's latency.
template <int SHIFTS>
struct Sturm {
    double x[SHIFTS], pivot[SHIFTS];
    int count[SHIFTS];

    // Shifts that cut (lower, upper) into SHIFTS + 1 equal parts.
    __device__ void start(double lower, double upper) {
        const double part = (upper - lower) / (SHIFTS + 1);
#pragma unroll
        for (int s = 0; s < SHIFTS; ++s) {
            x[s] = lower + (s + 1) * part;
            pivot[s] = 1.0;
            count[s] = 0;
        }
    }

    // The next rows of T: p_j = d_j - x - e2_j / p_{j-1}. Computed counts never fall as x grows
    // (Kahan 1966; Demmel, Dhillon and Ren 1995, ETNA 3, 116) if each rounded operation is monotone
    // in x and in the pivot before it. Correctly rounded differences, reciprocals and fma are, and
    // so is replacing a tiny pivot by -pivmin. fma is written out so that no compiler contracts one
    // copy of the line and not another. dstebz divides e2 by the pivot and subtracts x last; here
    // only the reciprocal, cheaper than a quotient, and fma wait for the pivot before. The counts
    // are exact for a T whose entries differ by little more than ulp |T|, for any n.
    __device__ void advance(const double *d, const double *e2, int rows, double pivmin) {
        for (int j = 0; j < rows; ++j) {
#pragma unroll
            for (int s = 0; s < SHIFTS; ++s) {
                double p = fma(-e2[j], 1.0 / pivot[s], d[j] - x[s]);
                if (fabs(p) < pivmin) p = -pivmin;
                pivot[s] = p;
                count[s] += p < 0.0;
            }
        }
    }

    // The part of (lower, upper) that holds eigenvalue k, counted from 0.
    __device__ void narrow(long long k, double &lower, double &upper) const {
#pragma unroll
        for (int s = 0; s < SHIFTS; ++s)
            if (count[s] <= k) lower = x[s];
#pragma unroll
        for (int s = SHIFTS - 1; s >= 0; --s)
            if (count[s] > k) upper = x[s];
    }
};

// Passes that narrow (-radius, radius) to the tolerance: the same number for every eigenvalue, so
// that no thread leaves a loop with barriers early, and 0 if radius is NaN. Every bracket is a node
// of one tree at one depth; with monotone counts the results therefore ascend.
template <int SHIFTS>
__device__ inline int passes(const Bounds &b) {
    int count = 0;
    for (double width = 2.0 * b.radius; width > b.tolerance && count < MAX_PASSES; ++count)
        width /= SHIFTS + 1;
    return count;
}

// The eigenvalue, scaled back; NaN if the bracket is not what bisection must end with (rounded ends
// cost at most 4/3 ulp |T| of width), or if the eigenvalue is too large for float64.
__device__ inline double midpoint(const Bounds &b, double lower, double upper, int exponent) {
    const bool found = lower > -b.radius && upper < b.radius && upper - lower <= 4.0 * b.tolerance;
    const double value = ldexp(0.5 * (lower + upper), exponent);
    if (!found && b.radius != 0.0) return NOT_A_NUMBER;
    return magnitude(value) < NOT_FINITE ? value : NOT_A_NUMBER;
}
