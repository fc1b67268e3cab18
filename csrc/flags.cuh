// What blocks that run at the same time need of each other: flags in global memory, and shared
// memory of a size known at launch. Under a host compiler the shim defines the same names.
#ifdef __CUDACC__

// Everything that the storing thread wrote, or saw through a barrier of its block, before
// store_release is seen by whoever reads the stored value with load_acquire, and by its block after
// a barrier; ld.acquire also drops stale lines of the first-level cache.
__device__ inline unsigned load_acquire(const unsigned *flag) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    return value;
}
__device__ inline void store_release(unsigned *flag, unsigned value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" : : "l"(flag), "r"(value) : "memory");
}

// The block's dynamic shared memory.
template <typename T>
__device__ inline T *dynamic_shared() {
    extern __shared__ __align__(16) unsigned char dynamic_shared_bytes[];
    return reinterpret_cast<T *>(dynamic_shared_bytes);
}

#endif

// Whether the flag came to its value within spin_limit looks; if not, or if another waiter failed,
// the kernel is to give up: *failure is then 1 + who of the first that waited in vain.
__device__ inline bool wait_for(const unsigned *flag, unsigned value, unsigned *failure,
                                unsigned who, unsigned spin_limit) {
    for (unsigned spin = 0; spin < spin_limit; ++spin) {
        if (load_acquire(flag) >= value) return true;
        if (spin % 64 == 63) {
            if (load_acquire(failure)) return false;
            __nanosleep(64);
        }
    }
    atomicCAS(failure, 0u, who + 1);
    return false;
}
