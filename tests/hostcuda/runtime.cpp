// What CuPy and programs call of the CUDA runtime, as its reference has it; the rest returns cudaErrorNotSupported.
#include <cstdio>

#include "memory.hpp"

using namespace hostcuda;

namespace {

struct Event {
    Until recorded;  // no stream: nothing to wait for
    bool captured = false;
};

cudaError_t not_while_capturing(const StreamPtr& stream) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (!stream->capture) return cudaSuccess;
    stream->broken = true;
    return cudaErrorStreamCaptureUnsupported;
}

}  // namespace

// For libraries of CUDA beside the runtime.
cudaError_t hostcuda_enqueue(cudaStream_t stream, Action action) {
    const Turn turn;
    return enqueue(find(stream), std::move(action));
}

extern "C" {

// Devices

cudaError_t cudaGetDeviceCount(int* count) { return *count = kDevices, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = current_device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
    pushed_context = nullptr;
    return current_device = device, cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
    const Turn turn;
    return any_capture() ? cudaErrorStreamCaptureUnsupported : run_all();
}
cudaError_t cudaDriverGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 12090, cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) {
    static thread_local char name[32];
    snprintf(name, sizeof name, "cudaError_t %d", error);
    return name;
}
const char* cudaGetErrorString(cudaError_t) { return "see the reference of the CUDA runtime"; }

cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* properties, int device) {
    if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
    *properties = {};
    snprintf(properties->name, sizeof properties->name, "host memory");
    properties->major = kMajor;
    properties->minor = kMinor;
    properties->multiProcessorCount = kMultiprocessors;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = kMostShared;
    properties->totalGlobalMem = kCapacity;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = kMajor; break;
        case cudaDevAttrComputeCapabilityMinor: *value = kMinor; break;
        case cudaDevAttrMultiProcessorCount: *value = kMultiprocessors; break;
        case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int device) {
    snprintf(id, size, "0000:%02x:00.0", device);
    return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }

// Memory

cudaError_t cudaMalloc(void** pointer, size_t size) {
    const Turn turn;
    return take(pointer, size, false);
}
cudaError_t cudaFree(void* pointer) {
    const Turn turn;
    if (pointer == nullptr) return cudaSuccess;
    run_all();  // it waits for the device
    return give_back(pointer);
}
cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
    const Turn turn;
    return take(pointer, size, true);
}
cudaError_t cudaFreeHost(void* pointer) { return cudaFree(pointer); }
cudaError_t cudaMallocAsync(void** pointer, size_t size, cudaStream_t stream) {
    const Turn turn;
    const StreamPtr found = find(stream);
    if (!found) return cudaErrorInvalidResourceHandle;
    if (found->capture) return cudaErrorNotSupported;  // each replay would take memory of its own
    return take(pointer, size, false);
}
cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t size, cudaMemPool_t, cudaStream_t stream) {
    return cudaMallocAsync(pointer, size, stream);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
    const Turn turn;
    const StreamPtr found = find(stream);
    if (found && found->capture) return cudaErrorNotSupported;
    return enqueue(found, [=] { return give_back(pointer); });
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    const Turn turn;
    *free = kCapacity - taken;
    *total = kCapacity;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int) { return *pool = nullptr, cudaSuccess; }
cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int) { return *pool = nullptr, cudaSuccess; }
cudaError_t cudaDeviceSetMemPool(int, cudaMemPool_t) { return cudaSuccess; }
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, size_t) { return cudaSuccess; }
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void* value) {
    *static_cast<uint64_t*>(value) = attribute == cudaMemPoolAttrReservedMemCurrent ? kCapacity : 0;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
    const Turn turn;
    const Block* block = holder(pointer);
    *attributes = {};
    attributes->type = !block ? cudaMemoryTypeUnregistered : block->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->device = block ? block->device : -2;
    attributes->devicePointer = block ? const_cast<void*>(pointer) : nullptr;
    attributes->hostPointer = !block || block->pinned ? const_cast<void*>(pointer) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
    const Turn turn;
    return enqueue_copy(to, from, size, find(stream), false);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
    const Turn turn;
    return enqueue_copy(to, from, size, find(nullptr), true);
}
cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t size) {
    const Turn turn;
    const cudaError_t status = run_all();
    return status == cudaSuccess ? copy(to, from, size) : status;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
    const Turn turn;
    return enqueue(find(stream), [=] {
        if (!fits(to, size)) return cudaErrorIllegalAddress;
        memset(to, value, size);
        return cudaSuccess;
    });
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return cudaMemsetAsync(to, value, size, nullptr); }

// Streams

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* handle, unsigned flags) {
    const Turn turn;
    auto stream = std::make_shared<Stream>();
    stream->device = current_device;
    stream->blocking = !(flags & cudaStreamNonBlocking);
    *handle = reinterpret_cast<cudaStream_t>(stream.get());
    created[*handle] = stream;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* handle) { return cudaStreamCreateWithFlags(handle, cudaStreamDefault); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* handle, unsigned flags, int) {
    return cudaStreamCreateWithFlags(handle, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->done < stream->queued) destroyed.push_back(stream);
    created.erase(handle);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    const cudaError_t status = not_while_capturing(stream);
    return status == cudaSuccess ? run(stream->now(stream)) : status;
}
cudaError_t cudaStreamQuery(cudaStream_t handle) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    const cudaError_t status = not_while_capturing(stream);
    if (status != cudaSuccess) return status;
    return stream->done < stream->queued ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
    const Turn turn;
    return enqueue(find(stream), [=] { return function(data), cudaSuccess; });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = reinterpret_cast<cudaEvent_t>(new Event), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Event*>(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    const cudaError_t status = enqueue(stream, [] { return cudaSuccess; });
    if (status == cudaSuccess) *reinterpret_cast<Event*>(event) = {stream->now(stream), stream->capture != nullptr};
    return status;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    const Turn turn;
    const auto& [recorded, captured] = *reinterpret_cast<Event*>(event);
    if (captured) return cudaErrorCapturedEvent;
    return recorded.stream && recorded.stream->done < recorded.count ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    const Turn turn;
    const auto& [recorded, captured] = *reinterpret_cast<Event*>(event);
    if (captured) return cudaErrorCapturedEvent;
    return recorded.stream ? run(recorded) : cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
    *ms = 1;
    const cudaError_t status = cudaEventQuery(start);
    return status == cudaSuccess ? cudaEventQuery(end) : status;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    const Turn turn;
    const auto& [recorded, captured] = *reinterpret_cast<Event*>(event);
    if (captured) return cudaErrorNotSupported;  // a graph of several streams
    if (!recorded.stream) return cudaSuccess;
    return enqueue(find(stream), [] { return cudaSuccess; }, {recorded});
}

// Graphs: the operations of one stream, in order.

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (stream->legacy || stream->capture) return cudaErrorStreamCaptureUnsupported;
    stream->capture = std::make_shared<Graph>();
    stream->broken = false;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    if (!stream) return cudaErrorInvalidResourceHandle;
    for (const auto& other : all_streams())
        if (stream->legacy && other->capture && other->blocking) return cudaErrorStreamCaptureImplicit;
    *status = !stream->capture ? cudaStreamCaptureStatusNone
              : stream->broken ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
    const Turn turn;
    const StreamPtr stream = find(handle);
    if (!stream || !stream->capture) return cudaErrorIllegalState;
    *graph = stream->broken ? nullptr : reinterpret_cast<cudaGraph_t>(new Graph(*stream->capture));
    stream->capture = nullptr;
    return stream->broken ? cudaErrorStreamCaptureInvalidated : cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long flags) {
    return cudaGraphInstantiate(executable, graph, flags);
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
    const Turn turn;
    for (const Action& action : *reinterpret_cast<Graph*>(executable))
        if (const cudaError_t status = enqueue(find(handle), action)) return status;
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return delete reinterpret_cast<Graph*>(graph), cudaSuccess; }

}  // extern "C"
