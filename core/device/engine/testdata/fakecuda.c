// fakecuda.c - a driver of two GPUs that runs nothing: memory at address
// 1 << 40 and above is of GPU 0, at 2 << 40 and above of GPU 1. It writes what
// is called, in order, to the file LOG: one line a call, and for a launch its
// arguments in hexadecimal.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *out(void) {
  static FILE *f;
  if (!f) {
    f = fopen(LOG, "a");
    setbuf(f, NULL);
  }
  return f;
}

static __thread uintptr_t stack[16];
static __thread int depth;
static uintptr_t current(void) { return depth ? stack[depth - 1] : 0; }

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int *v) { return *v = 13020, 0; }
int cuGetErrorName(int e, const char **s) { return *s = e == 1 ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_ERROR_FAKE", 0; }
int cuGetErrorString(int e, const char **s) { return *s = "the fake driver refuses", 0; }
int cuDeviceGetCount(int *n) { return *n = 2, 0; }
int cuDeviceGet(int *d, int ordinal) { return ordinal > 1 ? 101 : (*d = 40 + ordinal, 0); }
int cuDeviceGetName(char *s, int cap, int d) { return snprintf(s, cap, "Fake %d", d - 40), 0; }
int cuDeviceGetAttribute(int *v, int a, int d) {  // 9.0 and 9.1, with the multiprocessors of an H200
  switch (a) {
    case 75: return *v = 9, 0;
    case 76: return *v = d - 40, 0;
    case 16: return *v = 132, 0;
    case 81: return *v = 228 << 10, 0;
    case 97: return *v = 227 << 10, 0;
    case 111: return *v = 1 << 10, 0;
  }
  return 1;
}
int cuDeviceGetPCIBusId(char *s, int cap, int d) { return snprintf(s, cap, "0000:%02x:00.0", d), 0; }
int cuDeviceTotalMem_v2(size_t *n, int d) { return *n = (size_t)1 << 37, 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { return *c = (void *)(uintptr_t)(0xc0 + d - 40), 0; }
int cuCtxPushCurrent_v2(void *c) { return stack[depth++] = (uintptr_t)c, 0; }
int cuCtxPopCurrent_v2(void **c) { return *c = (void *)stack[--depth], 0; }
int cuPointerGetAttribute(void *v, int a, uint64_t p) {
  int ordinal = (int)(p >> 40) - 1;
  if (a != 9 || ordinal < 0 || ordinal > 1) return 1;
  memcpy(v, &ordinal, sizeof ordinal);
  return 0;
}
int cuModuleLoadData(void **m, const void *image) {
  if (memcmp(image, "\x7f""ELF", 4) != 0) return 200;
  static int modules;
  fprintf(out(), "load context %zx\n", (size_t)current());
  return *m = (void *)(uintptr_t)(0x1000 + __sync_add_and_fetch(&modules, 1)), 0;
}
int cuModuleGetFunction(void **f, void *m, const char *name) { return *f = strdup(name), 0; }
int cuFuncSetAttribute(void *f, int a, int v) { return 0; }
static int launch(const char *f, const unsigned *grid, const unsigned *block, unsigned shared, void *stream, int early,
                  void **parameters, void **extra) {
  if (parameters || extra[0] != (void *)1 || extra[2] != (void *)2 || extra[4] != NULL) return 1;
  size_t n = *(size_t *)extra[3];
  char *hex = malloc(2 * n + 1);
  for (size_t i = 0; i < n; i++) sprintf(hex + 2 * i, "%02x", ((unsigned char *)extra[1])[i]);
  fprintf(out(), "launch %s context %zx grid %u %u %u block %u %u %u shared %u stream %zx early %d arguments %s\n", f,
          (size_t)current(), grid[0], grid[1], grid[2], block[0], block[1], block[2], shared, (size_t)stream, early, hex);
  free(hex);
  return 0;
}
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  return launch(f, (unsigned[]){gx, gy, gz}, (unsigned[]){bx, by, bz}, shared, stream, 0, parameters, extra);
}
struct config {  // CUlaunchConfig
  unsigned grid[3], block[3], shared;
  void *stream;
  struct {
    int id, pad, allowed, rest[15];
  } *attributes;
  unsigned count;
};
int cuLaunchKernelEx(const struct config *c, void *f, void **parameters, void **extra) {
  if (c->count != 1 || c->attributes->id != 6) return 1;
  return launch(f, c->grid, c->block, c->shared, c->stream, c->attributes->allowed, parameters, extra);
}
int cuMemsetD32Async(uint64_t dst, unsigned value, size_t words, void *stream) { return 0; }
int cuMemAlloc_v2(uint64_t *p, size_t n) { return *p = ((uint64_t)1 << 40), 0; }
int cuMemFree_v2(uint64_t p) { return 0; }
int cuMemcpyHtoD_v2(uint64_t dst, const void *src, size_t n) { return 0; }
int cuMemcpyDtoH_v2(void *dst, uint64_t src, size_t n) { return 0; }
int cuStreamCreate(void **s, unsigned flags) { return *s = (void *)0x5, 0; }
int cuStreamDestroy_v2(void *s) { return 0; }
int cuStreamSynchronize(void *s) { return 0; }
