// The CUDA names that csrc/ uses, as host C++20: one thread of the machine for each CUDA thread of
// a block, blocks one after another. Only for tests: it shows that the source computes what it
// should and splits no barrier, not how fast.
#pragma once
#include <atomic>
#include <barrier>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

inline dim3 blockIdx, blockDim, gridDim;
inline thread_local dim3 threadIdx;
inline std::unique_ptr<std::barrier<>> block_barrier;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one after another, so one copy serves them all

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

inline long long __double_as_longlong(double x) {
    long long bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <typename T>
T atomicMax(T *address, T value) {
    std::atomic_ref<T> shared(*address);
    T old = shared.load();
    while (old < value && !shared.compare_exchange_weak(old, value)) {
    }
    return old;
}

// kernel<<<grid, block>>>(arguments...)
template <typename Kernel, typename... Arguments>
void launch(dim3 grid, dim3 block, Kernel kernel, Arguments... arguments) {
    gridDim = grid;
    blockDim = block;
    const unsigned threads = block.x * block.y * block.z;
    for (unsigned b = 0; b < grid.x * grid.y * grid.z; ++b) {
        blockIdx = {b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y)};
        block_barrier = std::make_unique<std::barrier<>>(threads);
        std::vector<std::jthread> running;
        for (unsigned t = 0; t < threads; ++t)
            running.emplace_back([=] {
                threadIdx = {t % block.x, t / block.x % block.y, t / (block.x * block.y)};
                kernel(arguments...);
                block_barrier->arrive_and_drop();  // a thread that has left holds nobody up
            });
    }
}
