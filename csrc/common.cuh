// Shared by every kernel. No host headers: the text must compile under NVRTC, nvcc and, through a
// shim that defines the CUDA names, as host C++.
typedef unsigned long long u64;

// Bits of a non-negative floating-point number order as integers do, and a NaN's bits are larger
// than any number's: an integer maximum over |x| therefore also reports "some x was NaN".
__device__ inline u64 ordered_bits(double x) { return (u64)__double_as_longlong(x); }
__device__ inline u64 ordered_bits(float x) { return ordered_bits((double)x); }
