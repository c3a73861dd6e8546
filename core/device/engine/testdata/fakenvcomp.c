// fakenvcomp.c - an nvCOMP 6 that decompresses nothing and writes how it was
// called to the file LOG, as fakecuda.c does.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct {
  uint32_t version, cudart_version;
} properties;
typedef struct {
  int backend;
  char reserved[60];
} options;

static void say(const char *format, size_t a, size_t b, size_t c, void *d) {
  FILE *f = fopen(LOG, "a");
  fprintf(f, format, a, b, c, (size_t)d);
  fclose(f);
}

int nvcompGetProperties(properties *p) { return p->version = 6000, p->cudart_version = 13000, 0; }

int nvcompBatchedZstdDecompressGetTempSize(size_t n, size_t largest, options o, size_t *out, size_t total, void *stream) {
  say("temp of %zu slots, %zu largest, %zu bytes stream %zx\n", n, largest, total, stream);
  return *out = 3 * total + 7000 * n + 1, 0;
}

int nvcompBatchedZstdDecompressAsync(const void *const *frames, const size_t *frame_bytes, const size_t *buffer_bytes,
                                     size_t *actual, size_t n, void *temp, size_t temp_bytes, void *const *buffers,
                                     options o, int *statuses, void *stream) {
  if ((size_t)frame_bytes - (size_t)frames != 8 * n || (size_t)buffers - (size_t)frame_bytes != 8 * n ||
      (size_t)buffer_bytes - (size_t)buffers != 8 * n || (size_t)actual - (size_t)buffer_bytes != 8 * n ||
      (size_t)statuses - (size_t)actual != 24 * n || (size_t)temp % 256 != 0) {
    return 10;
  }
  say("decompress %zu slots, scratch %zx to %zx stream %zx\n", n, (size_t)frames, (size_t)temp + temp_bytes, stream);
  return 0;
}
