// calls.h - the driver API as far as it is used: our own declarations, since
// CUDA need not be there when this is built. Types and numbers are those of
// cuda.h, which NVIDIA keeps stable: every function goes by its versioned name.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef uint64_t CUdeviceptr;

// The addresses of the functions, by the names that they are looked up with.
typedef struct {
  int (*cuInit)(unsigned flags);
  int (*cuDriverGetVersion)(int *version);
  int (*cuGetErrorName)(int error, const char **name);
  int (*cuGetErrorString)(int error, const char **text);
  int (*cuDeviceGetCount)(int *count);
  int (*cuDeviceGet)(int *device, int ordinal);
  int (*cuDeviceGetName)(char *name, int cap, int device);
  int (*cuDeviceGetAttribute)(int *value, int attribute, int device);
  int (*cuDeviceGetPCIBusId)(char *id, int cap, int device);
  int (*cuDeviceTotalMem_v2)(size_t *bytes, int device);
  int (*cuDevicePrimaryCtxRetain)(void **context, int device);
  int (*cuCtxPushCurrent_v2)(void *context);
  int (*cuCtxPopCurrent_v2)(void **context);
  int (*cuPointerGetAttribute)(void *value, int attribute, CUdeviceptr pointer);
  int (*cuModuleLoadData)(void **module, const void *image);
  int (*cuModuleGetFunction)(void **function, void *module, const char *name);
  int (*cuFuncSetAttribute)(void *function, int attribute, int value);
  int (*cuLaunchKernel)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **parameters,
                        void **extra);
  int (*cuMemsetD32Async)(CUdeviceptr dst, unsigned value, size_t words, void *stream);
  int (*cuMemAlloc_v2)(CUdeviceptr *pointer, size_t bytes);
  int (*cuMemFree_v2)(CUdeviceptr pointer);
  int (*cuMemcpyHtoD_v2)(CUdeviceptr dst, const void *src, size_t bytes);
  int (*cuMemcpyDtoH_v2)(void *dst, CUdeviceptr src, size_t bytes);
  int (*cuStreamCreate)(void **stream, unsigned flags);
  int (*cuStreamDestroy_v2)(void *stream);
  int (*cuStreamSynchronize)(void *stream);
} tpde_cuda;

// Name and address of the i-th function of the table; NULL behind the last.
const char *tpde_cuda_name(size_t i);
void **tpde_cuda_slot(tpde_cuda *table, size_t i);

// One kernel launch on a grid of one dimension. The kernel's arguments lie one
// behind the other in `arguments`, each aligned to its size; they are copied.
int tpde_cuda_launch(const tpde_cuda *cu, uintptr_t function, unsigned blocks, unsigned threads, unsigned shared_bytes,
                     uintptr_t stream, void *arguments, size_t bytes);

// The others, with handles as integers: they are addresses, but not Go's.
int tpde_cuda_init(const tpde_cuda *cu);
int tpde_cuda_driver_version(const tpde_cuda *cu, int *version);
const char *tpde_cuda_error_name(const tpde_cuda *cu, int error);
const char *tpde_cuda_error_text(const tpde_cuda *cu, int error);
int tpde_cuda_device_count(const tpde_cuda *cu, int *count);
int tpde_cuda_device_get(const tpde_cuda *cu, int *device, int ordinal);
int tpde_cuda_device_name(const tpde_cuda *cu, char *name, int cap, int device);
int tpde_cuda_device_attribute(const tpde_cuda *cu, int *value, int attribute, int device);
int tpde_cuda_device_bus_id(const tpde_cuda *cu, char *id, int cap, int device);
int tpde_cuda_device_memory(const tpde_cuda *cu, size_t *bytes, int device);
int tpde_cuda_primary_retain(const tpde_cuda *cu, uintptr_t *context, int device);
int tpde_cuda_push(const tpde_cuda *cu, uintptr_t context);
int tpde_cuda_pop(const tpde_cuda *cu);
int tpde_cuda_pointer_device(const tpde_cuda *cu, int *ordinal, uint64_t pointer);
int tpde_cuda_module_load(const tpde_cuda *cu, uintptr_t *module, const void *image);
int tpde_cuda_module_function(const tpde_cuda *cu, uintptr_t *function, uintptr_t module, const char *name);
int tpde_cuda_function_attribute(const tpde_cuda *cu, uintptr_t function, int attribute, int value);
int tpde_cuda_fill(const tpde_cuda *cu, uint64_t dst, unsigned value, size_t words, uintptr_t stream);
int tpde_cuda_alloc(const tpde_cuda *cu, uint64_t *pointer, size_t bytes);
int tpde_cuda_free(const tpde_cuda *cu, uint64_t pointer);
int tpde_cuda_upload(const tpde_cuda *cu, uint64_t dst, const void *src, size_t bytes);
int tpde_cuda_download(const tpde_cuda *cu, void *dst, uint64_t src, size_t bytes);
int tpde_cuda_stream_create(const tpde_cuda *cu, uintptr_t *stream, unsigned flags);
int tpde_cuda_stream_destroy(const tpde_cuda *cu, uintptr_t stream);
int tpde_cuda_stream_wait(const tpde_cuda *cu, uintptr_t stream);
