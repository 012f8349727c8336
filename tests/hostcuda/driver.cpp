// What CuPy calls of the CUDA driver: contexts, modules and launches. Kernels are Python's, by number.
#include <cuda.h>

#include <string>

#include "memory.hpp"

using namespace hostcuda;

namespace {

constexpr int kMostParameters = 64;
constexpr int kStaticShared = 48 << 10;

// Finds a kernel: returns its number, or 0, and the bytes of its parameters, of which -1 ends the list.
int (*find_kernel)(const char* module, const char* name, int* sizes) = nullptr;
// Runs it; parameters lie one after another, each at a multiple of 8 bytes.
int (*run_kernel)(int number, unsigned grid, unsigned block, unsigned shared, const void* parameters, int bytes) = nullptr;

struct Kernel {
    int number;
    std::vector<int> sizes;
    int shared = kStaticShared;
};

// Primary contexts have the device's number; all others are somebody's own.
CUcontext primary(int device) { return reinterpret_cast<CUcontext>(static_cast<uintptr_t>(device + 1)); }

}  // namespace

extern "C" {

void hostcuda_connect(decltype(find_kernel) find, decltype(run_kernel) run, decltype(know) tell) {
    const Turn turn;
    find_kernel = find;
    run_kernel = run;
    know = tell;
    for (const auto& [begin, block] : blocks)
        if (!block.pinned) know(reinterpret_cast<uint64_t>(begin), block.size, 1);
}

CUresult cuGetErrorName(CUresult error, const char** name) {
    return *name = cudaGetErrorName(static_cast<cudaError_t>(error)), CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char** text) {
    return *text = "see the reference of the CUDA driver", CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext* context) {
    *context = pushed_context ? static_cast<CUcontext>(pushed_context) : primary(current_device);
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) {
    pushed_context = nullptr;
    for (int device = 0; device < kDevices; ++device)
        if (context == primary(device)) return current_device = device, CUDA_SUCCESS;
    return pushed_context = context, CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) { return *device = current_device, CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream stream, CUcontext* context) {
    const Turn turn;
    const StreamPtr found = find(stream);
    if (!found) return CUDA_ERROR_INVALID_HANDLE;
    return *context = primary(found->device), CUDA_SUCCESS;
}

CUresult cuModuleLoad(CUmodule* module, const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) return CUDA_ERROR_FILE_NOT_FOUND;
    char magic[4] = {};
    const bool read = fread(magic, 1, sizeof magic, file) == sizeof magic;
    fclose(file);
    if (!read || memcmp(magic, "\177ELF", sizeof magic) != 0) return CUDA_ERROR_INVALID_IMAGE;
    return *module = reinterpret_cast<CUmodule>(new std::string(path)), CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void* image) {  // one that the Python side made up: a name
    return *module = reinterpret_cast<CUmodule>(new std::string(static_cast<const char*>(image))), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule module) { return delete reinterpret_cast<std::string*>(module), CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    const Turn turn;
    int sizes[kMostParameters + 1];
    const int number = find_kernel(reinterpret_cast<std::string*>(module)->c_str(), name, sizes);
    if (number == 0) return CUDA_ERROR_NOT_FOUND;
    auto* kernel = new Kernel{number, {}};
    for (const int* size = sizes; *size >= 0; ++size) kernel->sizes.push_back(*size);
    return *function = reinterpret_cast<CUfunction>(kernel), CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    if (value > kMostShared) return CUDA_ERROR_INVALID_VALUE;
    return reinterpret_cast<Kernel*>(function)->shared = value, CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction function, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned block, unsigned block_y,
                        unsigned block_z, unsigned shared, CUstream handle, void** parameters, void**) {
    const Turn turn;
    const Kernel& kernel = *reinterpret_cast<Kernel*>(function);
    const StreamPtr stream = find(handle);
    // A stream of another device, or of the device where another context is current, is an invalid handle.
    if (!stream || pushed_context || stream->device != current_device) return CUDA_ERROR_INVALID_HANDLE;
    if (grid == 0 || static_cast<int>(shared) > kernel.shared) return CUDA_ERROR_INVALID_VALUE;
    if (grid_y * grid_z * block_y * block_z != 1) return CUDA_ERROR_NOT_SUPPORTED;
    std::string own;
    for (size_t n = 0; n < kernel.sizes.size(); ++n) {
        own.append(static_cast<const char*>(parameters[n]), kernel.sizes[n]);
        if (n + 1 < kernel.sizes.size()) own.resize((own.size() + 7) / 8 * 8);
    }
    return static_cast<CUresult>(enqueue(stream, [=, number = kernel.number] {
        return static_cast<cudaError_t>(run_kernel(number, grid, block, shared, own.data(), static_cast<int>(own.size())));
    }));
}

}  // extern "C"
