// Streams as queues that run only when something waits for them, so that memory which was given back too early, and work
// that nothing orders, shows in the results.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace hostcuda {

constexpr int kDevices = 2;
// Those of an H100, as of the emulator's device in preload.py.
constexpr int kMajor = 9, kMinor = 0, kMultiprocessors = 132;
constexpr int kMostShared = 227 << 10;

inline std::recursive_mutex mutex;

// One call at a time. Who waits for its turn must not hold Python's lock: a kernel that runs in another thread needs it.
class Turn {
public:
    Turn() {
        if (mutex.try_lock()) return;
        static const auto holds = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
        static const auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
        static const auto restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
        void* state = holds && holds() ? save() : nullptr;
        mutex.lock();
        if (state) restore(state);
    }
    ~Turn() { mutex.unlock(); }
    Turn(const Turn&) = delete;
};

struct Stream;
using StreamPtr = std::shared_ptr<Stream>;
using Action = std::function<cudaError_t()>;

// The first `count` operations of a stream.
struct Until {
    StreamPtr stream;
    long long count = 0;
};

struct Operation {
    Action action;
    std::vector<Until> after;
};

using Graph = std::vector<Action>;

struct Stream {
    int device = 0;
    bool legacy = false, blocking = true, broken = false;
    std::deque<Operation> queue;
    long long queued = 0, done = 0;
    std::shared_ptr<Graph> capture;

    Until now(const StreamPtr& self) const { return {self, queued}; }
};

inline thread_local int current_device = 0;
inline thread_local void* pushed_context = nullptr;  // one that is no device's primary context
// Of the first operation that failed; as in a CUDA context all that follows fails too.
inline cudaError_t failure = cudaSuccess;

inline std::map<cudaStream_t, StreamPtr> created;
inline std::vector<StreamPtr> destroyed;  // with work that is not done
inline std::vector<StreamPtr> defaults = [] {
    std::vector<StreamPtr> streams;
    for (int n = 0; n < 2 * kDevices; ++n) {
        auto stream = std::make_shared<Stream>();
        stream->device = n / 2;
        stream->legacy = n % 2 == 0;  // the other is the thread's own; one does for all threads
        streams.push_back(stream);
    }
    return streams;
}();

inline std::vector<StreamPtr> all_streams() {
    std::vector<StreamPtr> streams = defaults;
    for (const auto& [handle, stream] : created) streams.push_back(stream);
    streams.insert(streams.end(), destroyed.begin(), destroyed.end());
    return streams;
}

inline StreamPtr find(cudaStream_t handle) {
    if (handle == nullptr || handle == cudaStreamLegacy) return defaults[2 * current_device];
    if (handle == cudaStreamPerThread) return defaults[2 * current_device + 1];
    const auto found = created.find(handle);
    return found == created.end() ? nullptr : found->second;
}

inline cudaError_t run(const Until& until) {
    Stream& stream = *until.stream;
    while (stream.done < until.count) {
        if (stream.queue.empty()) abort();  // an operation of the stream waits for the stream
        const Operation next = stream.queue.front();
        for (const Until& other : next.after) run(other);
        stream.queue.pop_front();
        if (failure == cudaSuccess) failure = next.action();
        ++stream.done;
    }
    return failure;
}

inline cudaError_t run_all() {
    for (const auto& stream : all_streams()) run(stream->now(stream));
    return failure;
}

// What waits for the whole device breaks captures.
inline bool any_capture() {
    bool found = false;
    for (const auto& stream : all_streams())
        if (stream->capture) found = stream->broken = true;
    return found;
}

// Operations of the legacy stream take turns with those of every blocking stream of the device.
inline cudaError_t enqueue(const StreamPtr& stream, Action action, std::vector<Until> after = {}) {
    if (!stream) return cudaErrorInvalidResourceHandle;
    if (failure != cudaSuccess) return failure;
    if (stream->capture) {
        if (stream->broken) return cudaErrorStreamCaptureInvalidated;
        if (!after.empty()) return stream->broken = true, cudaErrorStreamCaptureIsolation;
        stream->capture->push_back(std::move(action));
        return cudaSuccess;
    }
    for (const auto& other : all_streams()) {
        if (other == stream || other->device != stream->device || !other->blocking || !stream->blocking) continue;
        if (!stream->legacy && !other->legacy) continue;
        if (other->capture) {
            other->broken = true;
            return cudaErrorStreamCaptureImplicit;
        }
        after.push_back(other->now(other));
    }
    stream->queue.push_back({std::move(action), std::move(after)});
    ++stream->queued;
    return cudaSuccess;
}

}  // namespace hostcuda
