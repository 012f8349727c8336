// Device memory: pages of its own for each allocation, which are never given out again and cannot be touched once freed.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>

#include "streams.hpp"

namespace hostcuda {

constexpr size_t kCapacity = size_t{2} << 30;
constexpr size_t kPage = 4096;
constexpr int kFresh = 0xA5;  // what fresh memory holds: as a float small, as an integer large

struct Block {
    size_t size;
    int device;
    bool pinned;  // page-locked memory of the host
};

inline std::map<char*, Block> blocks, freed;
inline size_t taken = 0;
// Tells the emulator which memory kernels may touch.
inline void (*know)(uint64_t begin, uint64_t size, int exists) = nullptr;

inline size_t whole_pages(size_t size) { return (size + kPage - 1) / kPage * kPage + 2 * kPage; }

inline cudaError_t take(void** pointer, size_t size, bool pinned) {
    *pointer = nullptr;
    if (size == 0) return cudaSuccess;
    if (!pinned && taken + size > kCapacity) return cudaErrorMemoryAllocation;
    void* pages = mmap(nullptr, whole_pages(size), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) return cudaErrorMemoryAllocation;
    char* begin = static_cast<char*>(pages) + kPage;
    mprotect(begin, whole_pages(size) - 2 * kPage, PROT_READ | PROT_WRITE);
    memset(begin, kFresh, size);
    blocks[begin] = {size, current_device, pinned};
    if (!pinned) taken += size;
    if (!pinned && know) know(reinterpret_cast<uint64_t>(begin), size, 1);
    *pointer = begin;
    return cudaSuccess;
}

inline cudaError_t give_back(void* pointer) {
    const auto found = blocks.find(static_cast<char*>(pointer));
    if (found == blocks.end()) return cudaErrorInvalidValue;
    const auto [begin, block] = *found;
    freed[begin] = block;
    blocks.erase(found);
    if (!block.pinned) taken -= block.size;
    if (!block.pinned && know) know(reinterpret_cast<uint64_t>(begin), block.size, 0);
    const size_t pages = whole_pages(block.size) - 2 * kPage;
    mmap(begin, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return cudaSuccess;
}

// The block that holds an address, or null: then it is the host's.
inline const Block* holder(const void* address, size_t* rest = nullptr, const std::map<char*, Block>& among = blocks) {
    char* where = static_cast<char*>(const_cast<void*>(address));
    auto found = among.upper_bound(where);
    if (found == among.begin()) return nullptr;
    --found;
    const size_t offset = where - found->first;
    if (offset >= found->second.size) return nullptr;
    if (rest) *rest = found->second.size - offset;
    return &found->second;
}

inline bool on_device(const void* address) {
    const Block* block = holder(address);
    return block && !block->pinned;
}

inline bool is_pageable(const void* address) { return holder(address) == nullptr; }

inline bool fits(const void* address, size_t size) {
    size_t rest = 0;
    return holder(address, &rest) ? size <= rest : !holder(address, nullptr, freed);
}

inline cudaError_t copy(void* to, const void* from, size_t size) {
    if (!fits(to, size) || !fits(from, size)) return cudaErrorIllegalAddress;
    memcpy(to, from, size);
    return cudaSuccess;
}

// Pageable memory is read and written before the call returns, so no graph has such copies here; all other when its turn
// comes, also where cudaMemcpy copies within the device.
inline cudaError_t enqueue_copy(void* to, const void* from, size_t size, const StreamPtr& stream, bool wait) {
    if (size == 0) return cudaSuccess;
    if (!stream) return cudaErrorInvalidResourceHandle;
    wait = is_pageable(to) || (wait && !(on_device(to) && on_device(from)));
    if (stream->capture && (wait || is_pageable(from))) return cudaErrorStreamCaptureUnsupported;
    Action action = [=] { return copy(to, from, size); };
    if (is_pageable(from)) {
        const auto own = std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + size);
        action = [=] { return copy(to, own->data(), size); };
    }
    const cudaError_t status = enqueue(stream, std::move(action));
    return status == cudaSuccess && wait ? run(stream->now(stream)) : status;
}

}  // namespace hostcuda
