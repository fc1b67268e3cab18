// The CUDA names that csrc/ uses, as host C++20: one thread of the machine for each CUDA thread.
// Only for tests: it shows that the source computes what it should, splits no barrier and orders
// its memory, not how fast.
//
//   launch(grid, block, kernel, arguments...)       blocks one after another
//   launch_in_flight(how_many, grid, block, shared_bytes, kernel, arguments...)
//       that many blocks at once, the next one when one has ended, as on a device with room for so
//       many. Their shared memory must come from dynamic_shared(): a __shared__ variable is one
//       for all.
//
// Atomics are as weak as CUDA's (relaxed), so that -fsanitize=thread finds an order that the kernel
// only hopes for. `jitter_percent` makes that share of the synchronising calls dawdle.
#pragma once
#include <math.h>  // the overloads of sqrt, fabs, fma, ... in the global namespace

#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // launch() runs blocks one after another, so one copy serves them all

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

struct HostBlock {
    static constexpr std::size_t GUARD = 64;

    HostBlock(unsigned threads, std::size_t shared_bytes)
        : barrier(threads),
          bytes(shared_bytes),
          // all bits set: NaN as a number, so nothing comes of memory that nobody wrote
          shared(static_cast<unsigned char *>(std::aligned_alloc(64, rounded(shared_bytes)))) {
        std::memset(shared.get(), 0xff, rounded(shared_bytes));
    }
    ~HostBlock() {
        for (std::size_t i = bytes; i < bytes + GUARD; ++i)
            if (shared[i] != 0xff) {
                std::fputs("a kernel wrote behind its dynamic shared memory\n", stderr);
                std::abort();
            }
    }
    static std::size_t rounded(std::size_t n) { return (n + GUARD + 63) / 64 * 64; }
    struct Free {
        void operator()(unsigned char *p) const { std::free(p); }
    };

    std::barrier<> barrier;
    std::size_t bytes;
    std::unique_ptr<unsigned char[], Free> shared;
};

inline dim3 blockDim, gridDim;
inline thread_local dim3 blockIdx, threadIdx;
inline thread_local HostBlock *host_block;
inline unsigned jitter_percent = 0;  // set it before a launch

inline void jitter() {
    if (jitter_percent == 0) return;
    static std::atomic<unsigned> seeds{1};
    thread_local unsigned state = 2654435761u * seeds.fetch_add(1, std::memory_order_relaxed) | 1u;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    if (state % 100 >= jitter_percent) return;
    if (state & 128)
        std::this_thread::yield();
    else
        std::this_thread::sleep_for(std::chrono::microseconds(state >> 8 & 63));
}

inline void __syncthreads() {
    jitter();
    host_block->barrier.arrive_and_wait();
}

// ---- memory between blocks ----

inline void __nanosleep(unsigned nanoseconds) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(nanoseconds));  // lets others have the core
}
#ifndef __SANITIZE_THREAD__  // which knows no fences: say load_acquire and store_release instead
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { __threadfence(); }
#endif

// csrc/flags.cuh defines the next three for a CUDA compiler
inline unsigned load_acquire(const unsigned *flag) {
    jitter();
    return std::atomic_ref<unsigned>(const_cast<unsigned &>(*flag)).load(std::memory_order_acquire);
}
inline void store_release(unsigned *flag, unsigned value) {
    jitter();
    std::atomic_ref<unsigned>(*flag).store(value, std::memory_order_release);
}
template <typename T>
T *dynamic_shared() {
    return reinterpret_cast<T *>(host_block->shared.get());
}

inline std::atomic<unsigned long long> host_atomics{0};  // how many there were, set it back yourself

template <typename T, typename Change>
T host_atomic(T *address, Change change) {
    jitter();
    host_atomics.fetch_add(1, std::memory_order_relaxed);
    std::atomic_ref<T> shared(*address);
    T old = shared.load(std::memory_order_relaxed);
    while (!shared.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
    }
    return old;
}
template <typename T>
T atomicAdd(T *address, std::type_identity_t<T> value) {
    return host_atomic(address, [=](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T *address, std::type_identity_t<T> value) {
    return host_atomic(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T *address, std::type_identity_t<T> value) {
    return host_atomic(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T *address, std::type_identity_t<T> value) {
    return host_atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T *address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    return host_atomic(address, [=](T old) { return old == expected ? value : old; });
}

// ---- numbers ----

template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}
template <typename To, typename From>
To host_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
inline long long __double_as_longlong(double x) { return host_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return host_bits<double>(x); }

// ---- launches ----

template <typename Kernel, typename... Arguments>
void host_run_block(unsigned b, dim3 grid, dim3 block, std::size_t shared_bytes, Kernel kernel,
                    Arguments... arguments) {
    const unsigned threads = block.x * block.y * block.z;
    HostBlock here(threads, shared_bytes);
    std::vector<std::jthread> running;
    for (unsigned t = 0; t < threads; ++t)
        running.emplace_back([=, &here] {
            blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
            threadIdx = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
            host_block = &here;
            kernel(arguments...);
            here.barrier.arrive_and_drop();  // a thread that has left holds nobody up
        });
    running.clear();  // joins: the block's threads leave before its memory does
}

// kernel<<<grid, block>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    blockDim = block;
    for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b)
        host_run_block(b, grid, block, 0, kernel, arguments...);
}

// kernel<<<grid, block, shared_bytes>>>(arguments...) on a device with room for that many blocks
template <typename Kernel, typename... Arguments>
void launch_in_flight(unsigned how_many, dim3 grid, dim3 block, std::size_t shared_bytes,
                      Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    blockDim = block;
    std::atomic<unsigned> next{0};
    std::vector<std::jthread> places;
    for (unsigned place = 0; place < how_many; ++place)
        places.emplace_back([=, &next] {
            for (unsigned b; (b = next.fetch_add(1)) < grid.x * grid.y * grid.z;)
                host_run_block(b, grid, block, shared_bytes, kernel, arguments...);
        });
    places.clear();
}
