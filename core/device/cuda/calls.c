#include "calls.h"

#define FUNCTION(name) {#name, offsetof(tpde_cuda, name)}

static const struct {
  const char *name;
  size_t offset;
} functions[] = {
    FUNCTION(cuInit),
    FUNCTION(cuDriverGetVersion),
    FUNCTION(cuGetErrorName),
    FUNCTION(cuGetErrorString),
    FUNCTION(cuDeviceGetCount),
    FUNCTION(cuDeviceGet),
    FUNCTION(cuDeviceGetName),
    FUNCTION(cuDeviceGetAttribute),
    FUNCTION(cuDeviceGetPCIBusId),
    FUNCTION(cuDeviceTotalMem_v2),
    FUNCTION(cuDevicePrimaryCtxRetain),
    FUNCTION(cuCtxPushCurrent_v2),
    FUNCTION(cuCtxPopCurrent_v2),
    FUNCTION(cuPointerGetAttribute),
    FUNCTION(cuModuleLoadData),
    FUNCTION(cuModuleGetFunction),
    FUNCTION(cuFuncSetAttribute),
    FUNCTION(cuLaunchKernel),
    FUNCTION(cuMemsetD32Async),
    FUNCTION(cuMemAlloc_v2),
    FUNCTION(cuMemFree_v2),
    FUNCTION(cuMemcpyHtoD_v2),
    FUNCTION(cuMemcpyDtoH_v2),
    FUNCTION(cuStreamCreate),
    FUNCTION(cuStreamDestroy_v2),
    FUNCTION(cuStreamSynchronize),
};

enum { kFunctions = sizeof(functions) / sizeof(functions[0]) };
_Static_assert(kFunctions * sizeof(void *) == sizeof(tpde_cuda), "a function of the table is not looked up");

const char *tpde_cuda_name(size_t i) { return i < kFunctions ? functions[i].name : NULL; }
void **tpde_cuda_slot(tpde_cuda *table, size_t i) { return (void **)((char *)table + functions[i].offset); }

int tpde_cuda_launch(const tpde_cuda *cu, uintptr_t function, unsigned blocks, unsigned threads, unsigned shared_bytes,
                     uintptr_t stream, void *arguments, size_t bytes) {
  // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
  void *extra[] = {(void *)1, arguments, (void *)2, &bytes, (void *)0};
  return cu->cuLaunchKernel((void *)function, blocks, 1, 1, threads, 1, 1, shared_bytes, (void *)stream, NULL, extra);
}

int tpde_cuda_init(const tpde_cuda *cu) { return cu->cuInit(0); }
int tpde_cuda_driver_version(const tpde_cuda *cu, int *version) { return cu->cuDriverGetVersion(version); }
const char *tpde_cuda_error_name(const tpde_cuda *cu, int error) {
  const char *s = NULL;
  return cu->cuGetErrorName(error, &s) == 0 && s ? s : "unknown error";
}
const char *tpde_cuda_error_text(const tpde_cuda *cu, int error) {
  const char *s = NULL;
  return cu->cuGetErrorString(error, &s) == 0 && s ? s : "no description";
}
int tpde_cuda_device_count(const tpde_cuda *cu, int *count) { return cu->cuDeviceGetCount(count); }
int tpde_cuda_device_get(const tpde_cuda *cu, int *device, int ordinal) { return cu->cuDeviceGet(device, ordinal); }
int tpde_cuda_device_name(const tpde_cuda *cu, char *name, int cap, int device) {
  return cu->cuDeviceGetName(name, cap, device);
}
int tpde_cuda_device_attribute(const tpde_cuda *cu, int *value, int attribute, int device) {
  return cu->cuDeviceGetAttribute(value, attribute, device);
}
int tpde_cuda_device_bus_id(const tpde_cuda *cu, char *id, int cap, int device) {
  return cu->cuDeviceGetPCIBusId(id, cap, device);
}
int tpde_cuda_device_memory(const tpde_cuda *cu, size_t *bytes, int device) {
  return cu->cuDeviceTotalMem_v2(bytes, device);
}
int tpde_cuda_primary_retain(const tpde_cuda *cu, uintptr_t *context, int device) {
  return cu->cuDevicePrimaryCtxRetain((void **)context, device);
}
int tpde_cuda_push(const tpde_cuda *cu, uintptr_t context) { return cu->cuCtxPushCurrent_v2((void *)context); }
int tpde_cuda_pop(const tpde_cuda *cu) {
  void *popped;
  return cu->cuCtxPopCurrent_v2(&popped);
}
int tpde_cuda_pointer_device(const tpde_cuda *cu, int *ordinal, uint64_t pointer) {
  enum { CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9 };
  return cu->cuPointerGetAttribute(ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer);
}
int tpde_cuda_module_load(const tpde_cuda *cu, uintptr_t *module, const void *image) {
  return cu->cuModuleLoadData((void **)module, image);
}
int tpde_cuda_module_function(const tpde_cuda *cu, uintptr_t *function, uintptr_t module, const char *name) {
  return cu->cuModuleGetFunction((void **)function, (void *)module, name);
}
int tpde_cuda_function_attribute(const tpde_cuda *cu, uintptr_t function, int attribute, int value) {
  return cu->cuFuncSetAttribute((void *)function, attribute, value);
}
int tpde_cuda_fill(const tpde_cuda *cu, uint64_t dst, unsigned value, size_t words, uintptr_t stream) {
  return cu->cuMemsetD32Async(dst, value, words, (void *)stream);
}
int tpde_cuda_alloc(const tpde_cuda *cu, uint64_t *pointer, size_t bytes) { return cu->cuMemAlloc_v2(pointer, bytes); }
int tpde_cuda_free(const tpde_cuda *cu, uint64_t pointer) { return cu->cuMemFree_v2(pointer); }
int tpde_cuda_upload(const tpde_cuda *cu, uint64_t dst, const void *src, size_t bytes) {
  return cu->cuMemcpyHtoD_v2(dst, src, bytes);
}
int tpde_cuda_download(const tpde_cuda *cu, void *dst, uint64_t src, size_t bytes) {
  return cu->cuMemcpyDtoH_v2(dst, src, bytes);
}
int tpde_cuda_stream_create(const tpde_cuda *cu, uintptr_t *stream, unsigned flags) {
  return cu->cuStreamCreate((void **)stream, flags);
}
int tpde_cuda_stream_destroy(const tpde_cuda *cu, uintptr_t stream) { return cu->cuStreamDestroy_v2((void *)stream); }
int tpde_cuda_stream_wait(const tpde_cuda *cu, uintptr_t stream) { return cu->cuStreamSynchronize((void *)stream); }
