// The few functions of cuBLASLt that the large matrix products need, opened at run time: its headers come with a full
// CUDA toolkit only. tests/cuda/cublaslt_headers.cc compares these declarations with the headers where they are installed.
// Source of types and values: NVIDIA's cuBLAS documentation, section "Using the cuBLASLt API".
#pragma once

#include <cuda_runtime.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace m4j::cuda {

struct CublasLt {
  using Status = int;  // cublasStatus_t; 0 is success
  using Handle = void*;
  using MatmulDesc = void*;
  using MatrixLayout = void*;
  using Preference = void*;
  struct Algo {
    uint64_t data[8];
  };
  struct HeuristicResult {
    Algo algo;
    std::size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
  };

  static constexpr int kCompute32F = 68;       // CUBLAS_COMPUTE_32F: without tf32
  static constexpr int kDescTransA = 3;        // CUBLASLT_MATMUL_DESC_TRANSA
  static constexpr int kOpT = 1;               // CUBLAS_OP_T
  static constexpr int kPrefMaxWorkspace = 1;  // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
  static constexpr int kPrefMinAlignments[] = {5, 6, 7, 8};  // ..._MIN_ALIGNMENT_A_BYTES to D

  Status (*create)(Handle*);
  Status (*destroy)(Handle);
  Status (*desc_create)(MatmulDesc*, int compute_type, cudaDataType_t scale_type);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, int attribute, const void* value, std::size_t bytes);
  Status (*layout_create)(MatrixLayout*, cudaDataType_t, uint64_t rows, uint64_t cols, int64_t ld);
  Status (*layout_destroy)(MatrixLayout);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, int attribute, const void* value, std::size_t bytes);
  Status (*heuristic)(Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, Preference,
                      int requested, HeuristicResult*, int* returned);
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout, const void* b, MatrixLayout,
                   const void* beta, const void* c, MatrixLayout, void* d, MatrixLayout, const Algo*, void* workspace,
                   std::size_t workspace_bytes, cudaStream_t);

  // Opens the library once per process; throws Failure (M4J_ERR_UNSUPPORTED) with the reason if there is none.
  static const CublasLt& instance();
};

}  // namespace m4j::cuda
