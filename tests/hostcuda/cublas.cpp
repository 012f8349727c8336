// What CuPy calls of cuBLAS for products of matrices; the rest returns CUBLAS_STATUS_NOT_SUPPORTED. Declared here: NVIDIA's
// headers come with the library, hundreds of megabytes.
#include <cuda_runtime_api.h>
#include <library_types.h>

#include <functional>
#include <type_traits>
#include <vector>

// Of runtime.cpp.
cudaError_t hostcuda_enqueue(cudaStream_t stream, std::function<cudaError_t()> action);

namespace {

enum Status { kSuccess = 0, kExecutionFailed = 13, kNotSupported = 15 };

struct Handle {
    cudaStream_t stream = nullptr;
    int math_mode = 0, pointer_mode = 0;  // pointer mode 1: factors lie in device memory
};

// A matrix, column by column.
struct Matrix {
    const void* data;
    int rows_apart, transposed;
};

template <typename T>
std::vector<T> columns_of(const Matrix& matrix, int rows, int columns) {
    std::vector<T> values(static_cast<size_t>(rows) * columns);
    const T* data = static_cast<const T*>(matrix.data);
    for (int column = 0; column < columns; ++column)
        for (int row = 0; row < rows; ++row) {
            const size_t major = matrix.transposed ? row : column, minor = matrix.transposed ? column : row;
            values[static_cast<size_t>(column) * rows + row] = data[major * matrix.rows_apart + minor];
        }
    return values;
}

template <typename T>
void multiply(int m, int n, int k, T alpha, const Matrix& a, const Matrix& b, T beta, T* c, int ldc) {
    const std::vector<T> left = columns_of<T>(a, m, k), right = columns_of<T>(b, k, n);
    std::vector<T> sums(m);
    for (int column = 0; column < n; ++column) {
        sums.assign(m, T{});
        for (int inner = 0; inner < k; ++inner) {
            const T factor = right[static_cast<size_t>(column) * k + inner];
            for (int row = 0; row < m; ++row) sums[row] += left[static_cast<size_t>(inner) * m + row] * factor;
        }
        T* to = c + static_cast<size_t>(column) * ldc;
        for (int row = 0; row < m; ++row) to[row] = alpha * sums[row] + (beta == T{} ? T{} : beta * to[row]);
    }
}

template <typename T>
Status enqueue(const Handle* handle, int m, int n, int k, const T* alpha, Matrix a, long long next_a, Matrix b, long long next_b,
               const T* beta, T* c, int ldc, long long next_c, int count) {
    if (handle->pointer_mode) return kNotSupported;
    const cudaError_t status = hostcuda_enqueue(handle->stream, [=, alpha = *alpha, beta = *beta] {
        for (int n_th = 0; n_th < count; ++n_th) {
            const Matrix left{static_cast<const T*>(a.data) + n_th * next_a, a.rows_apart, a.transposed};
            const Matrix right{static_cast<const T*>(b.data) + n_th * next_b, b.rows_apart, b.transposed};
            multiply<T>(m, n, k, alpha, left, right, beta, c + n_th * next_c, ldc);
        }
        return cudaSuccess;
    });
    return status == cudaSuccess ? kSuccess : kExecutionFailed;
}

}  // namespace

extern "C" {

Status cublasCreate_v2(Handle** handle) { return *handle = new Handle, kSuccess; }
Status cublasDestroy_v2(Handle* handle) { return delete handle, kSuccess; }
Status cublasGetVersion_v2(Handle*, int* version) { return *version = 120900, kSuccess; }
Status cublasSetStream_v2(Handle* handle, cudaStream_t stream) { return handle->stream = stream, kSuccess; }
Status cublasGetStream_v2(Handle* handle, cudaStream_t* stream) { return *stream = handle->stream, kSuccess; }
Status cublasSetPointerMode_v2(Handle* handle, int mode) { return handle->pointer_mode = mode, kSuccess; }
Status cublasGetPointerMode_v2(Handle* handle, int* mode) { return *mode = handle->pointer_mode, kSuccess; }
Status cublasSetMathMode(Handle* handle, int mode) { return handle->math_mode = mode, kSuccess; }
Status cublasGetMathMode(Handle* handle, int* mode) { return *mode = handle->math_mode, kSuccess; }

Status cublasGemmStridedBatchedEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                                  int type_a, int lda, long long next_a, const void* b, int type_b, int ldb, long long next_b,
                                  const void* beta, void* c, int type_c, int ldc, long long next_c, int count, int, int) {
    if (type_a != type_b || type_a != type_c) return kNotSupported;
    const Matrix left{a, lda, op_a}, right{b, ldb, op_b};
    const auto call = [&](auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        const T *alpha_t = static_cast<const T*>(alpha), *beta_t = static_cast<const T*>(beta);
        return enqueue<T>(handle, m, n, k, alpha_t, left, next_a, right, next_b, beta_t, out, ldc, next_c, count);
    };
    if (type_a == CUDA_R_32F) return call(static_cast<float*>(c));
    if (type_a == CUDA_R_64F) return call(static_cast<double*>(c));
    return kNotSupported;
}

Status cublasGemmEx(Handle* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a, int lda,
                    const void* b, int type_b, int ldb, const void* beta, void* c, int type_c, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c, type_c,
                                      ldc, 0, 1, compute, algorithm);
}

}  // extern "C"
