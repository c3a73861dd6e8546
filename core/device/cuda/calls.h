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
  int (*cuLaunchKernelEx)(const void *config, void *function, void **parameters, void **extra);
  int (*cuMemsetD32Async)(CUdeviceptr dst, unsigned value, size_t words, void *stream);
  int (*cuMemAlloc_v2)(CUdeviceptr *pointer, size_t bytes);
  int (*cuMemFree_v2)(CUdeviceptr pointer);
  int (*cuMemcpyHtoD_v2)(CUdeviceptr dst, const void *src, size_t bytes);
  int (*cuMemcpyDtoH_v2)(void *dst, CUdeviceptr src, size_t bytes);
  int (*cuStreamCreate)(void **stream, unsigned flags);
  int (*cuStreamDestroy_v2)(void *stream);
  int (*cuStreamSynchronize)(void *stream);
} cuda_calls;

// Name and address of the i-th function of the table; NULL behind the last.
const char *cuda_call_name(size_t i);
void **cuda_call_slot(cuda_calls *table, size_t i);

// One kernel launch on a grid of one dimension. The kernel's arguments lie one
// behind the other in `arguments`, each aligned to its size; they are copied. If
// `early` is not 0, thread blocks may start before what is in the stream has ended,
// and wait for it themselves.
int cuda_call_launch(const cuda_calls *cu, uintptr_t function, unsigned blocks, unsigned threads, unsigned shared_bytes,
                     uintptr_t stream, void *arguments, size_t bytes, int early);

// The others, with handles as integers: they are addresses, but not Go's.
int cuda_call_init(const cuda_calls *cu);
int cuda_call_driver_version(const cuda_calls *cu, int *version);
const char *cuda_call_error_name(const cuda_calls *cu, int error);
const char *cuda_call_error_text(const cuda_calls *cu, int error);
int cuda_call_device_count(const cuda_calls *cu, int *count);
int cuda_call_device_get(const cuda_calls *cu, int *device, int ordinal);
int cuda_call_device_name(const cuda_calls *cu, char *name, int cap, int device);
int cuda_call_device_attribute(const cuda_calls *cu, int *value, int attribute, int device);
int cuda_call_device_bus_id(const cuda_calls *cu, char *id, int cap, int device);
int cuda_call_device_memory(const cuda_calls *cu, size_t *bytes, int device);
int cuda_call_primary_retain(const cuda_calls *cu, uintptr_t *context, int device);
int cuda_call_push(const cuda_calls *cu, uintptr_t context);
int cuda_call_pop(const cuda_calls *cu);
int cuda_call_pointer_device(const cuda_calls *cu, int *ordinal, uint64_t pointer);
int cuda_call_module_load(const cuda_calls *cu, uintptr_t *module, const void *image);
int cuda_call_module_function(const cuda_calls *cu, uintptr_t *function, uintptr_t module, const char *name);
int cuda_call_function_attribute(const cuda_calls *cu, uintptr_t function, int attribute, int value);
int cuda_call_fill(const cuda_calls *cu, uint64_t dst, unsigned value, size_t words, uintptr_t stream);
int cuda_call_alloc(const cuda_calls *cu, uint64_t *pointer, size_t bytes);
int cuda_call_free(const cuda_calls *cu, uint64_t pointer);
int cuda_call_upload(const cuda_calls *cu, uint64_t dst, const void *src, size_t bytes);
int cuda_call_download(const cuda_calls *cu, void *dst, uint64_t src, size_t bytes);
int cuda_call_stream_create(const cuda_calls *cu, uintptr_t *stream, unsigned flags);
int cuda_call_stream_destroy(const cuda_calls *cu, uintptr_t stream);
int cuda_call_stream_wait(const cuda_calls *cu, uintptr_t stream);
