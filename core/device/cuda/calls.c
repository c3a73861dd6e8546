#include "calls.h"

#define FUNCTION(name) {#name, offsetof(cuda_calls, name)}

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
    FUNCTION(cuLaunchKernelEx),
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
_Static_assert(kFunctions * sizeof(void *) == sizeof(cuda_calls), "a function of the table is not looked up");

const char *cuda_call_name(size_t i) { return i < kFunctions ? functions[i].name : NULL; }
void **cuda_call_slot(cuda_calls *table, size_t i) { return (void **)((char *)table + functions[i].offset); }

// CUlaunchAttribute and CUlaunchConfig of cuda.h.
typedef struct {
  int id;
  char padding[4];
  union {
    char bytes[64];
    int allowed;
  } value;
} launch_attribute;
_Static_assert(sizeof(launch_attribute) == 72, "layout is shared with the driver");

typedef struct {
  unsigned grid[3], block[3], shared_bytes;
  void *stream;
  const launch_attribute *attributes;
  unsigned attribute_count;
} launch_config;
_Static_assert(sizeof(launch_config) == 56, "layout is shared with the driver");

int cuda_call_launch(const cuda_calls *cu, uintptr_t function, unsigned blocks, unsigned threads, unsigned shared_bytes,
                     uintptr_t stream, void *arguments, size_t bytes, int early) {
  // CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
  void *extra[] = {(void *)1, arguments, (void *)2, &bytes, (void *)0};
  if (early) {
    const launch_attribute attribute = {.id = 6, .value.allowed = 1};  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    const launch_config config = {{blocks, 1, 1}, {threads, 1, 1}, shared_bytes, (void *)stream, &attribute, 1};
    return cu->cuLaunchKernelEx(&config, (void *)function, NULL, extra);
  }
  return cu->cuLaunchKernel((void *)function, blocks, 1, 1, threads, 1, 1, shared_bytes, (void *)stream, NULL, extra);
}

int cuda_call_init(const cuda_calls *cu) { return cu->cuInit(0); }
int cuda_call_driver_version(const cuda_calls *cu, int *version) { return cu->cuDriverGetVersion(version); }
const char *cuda_call_error_name(const cuda_calls *cu, int error) {
  const char *s = NULL;
  return cu->cuGetErrorName(error, &s) == 0 && s ? s : "unknown error";
}
const char *cuda_call_error_text(const cuda_calls *cu, int error) {
  const char *s = NULL;
  return cu->cuGetErrorString(error, &s) == 0 && s ? s : "no description";
}
int cuda_call_device_count(const cuda_calls *cu, int *count) { return cu->cuDeviceGetCount(count); }
int cuda_call_device_get(const cuda_calls *cu, int *device, int ordinal) { return cu->cuDeviceGet(device, ordinal); }
int cuda_call_device_name(const cuda_calls *cu, char *name, int cap, int device) {
  return cu->cuDeviceGetName(name, cap, device);
}
int cuda_call_device_attribute(const cuda_calls *cu, int *value, int attribute, int device) {
  return cu->cuDeviceGetAttribute(value, attribute, device);
}
int cuda_call_device_bus_id(const cuda_calls *cu, char *id, int cap, int device) {
  return cu->cuDeviceGetPCIBusId(id, cap, device);
}
int cuda_call_device_memory(const cuda_calls *cu, size_t *bytes, int device) {
  return cu->cuDeviceTotalMem_v2(bytes, device);
}
int cuda_call_primary_retain(const cuda_calls *cu, uintptr_t *context, int device) {
  return cu->cuDevicePrimaryCtxRetain((void **)context, device);
}
int cuda_call_push(const cuda_calls *cu, uintptr_t context) { return cu->cuCtxPushCurrent_v2((void *)context); }
int cuda_call_pop(const cuda_calls *cu) {
  void *popped;
  return cu->cuCtxPopCurrent_v2(&popped);
}
int cuda_call_pointer_device(const cuda_calls *cu, int *ordinal, uint64_t pointer) {
  enum { CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL = 9 };
  return cu->cuPointerGetAttribute(ordinal, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, pointer);
}
int cuda_call_module_load(const cuda_calls *cu, uintptr_t *module, const void *image) {
  return cu->cuModuleLoadData((void **)module, image);
}
int cuda_call_module_function(const cuda_calls *cu, uintptr_t *function, uintptr_t module, const char *name) {
  return cu->cuModuleGetFunction((void **)function, (void *)module, name);
}
int cuda_call_function_attribute(const cuda_calls *cu, uintptr_t function, int attribute, int value) {
  return cu->cuFuncSetAttribute((void *)function, attribute, value);
}
int cuda_call_fill(const cuda_calls *cu, uint64_t dst, unsigned value, size_t words, uintptr_t stream) {
  return cu->cuMemsetD32Async(dst, value, words, (void *)stream);
}
int cuda_call_alloc(const cuda_calls *cu, uint64_t *pointer, size_t bytes) { return cu->cuMemAlloc_v2(pointer, bytes); }
int cuda_call_free(const cuda_calls *cu, uint64_t pointer) { return cu->cuMemFree_v2(pointer); }
int cuda_call_upload(const cuda_calls *cu, uint64_t dst, const void *src, size_t bytes) {
  return cu->cuMemcpyHtoD_v2(dst, src, bytes);
}
int cuda_call_download(const cuda_calls *cu, void *dst, uint64_t src, size_t bytes) {
  return cu->cuMemcpyDtoH_v2(dst, src, bytes);
}
int cuda_call_stream_create(const cuda_calls *cu, uintptr_t *stream, unsigned flags) {
  return cu->cuStreamCreate((void **)stream, flags);
}
int cuda_call_stream_destroy(const cuda_calls *cu, uintptr_t stream) { return cu->cuStreamDestroy_v2((void *)stream); }
int cuda_call_stream_wait(const cuda_calls *cu, uintptr_t stream) { return cu->cuStreamSynchronize((void *)stream); }
