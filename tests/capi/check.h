/* check.h - what the C tests share: checks that name file and line and end the
 * program, and tensors to work on. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tpde.h"

#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition)) {                                                              \
      fprintf(stderr, "%s:%d: %s is false\n", __FILE__, __LINE__, #condition);       \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)

/* The call must return the status. */
#define STATUS(expected, call)                                                                         \
  do {                                                                                                 \
    int32_t got_ = (call);                                                                             \
    if (got_ != (expected)) {                                                                          \
      fprintf(stderr, "%s:%d: %s\n  returned %s (%s), expected %s\n", __FILE__, __LINE__, #call,       \
              tpde_status_name(got_), tpde_last_error(), tpde_status_name(expected));                  \
      exit(1);                                                                                         \
    }                                                                                                  \
  } while (0)

#define OK(call) STATUS(TPDE_OK, call)

/* The call must return the status, with the words in its text. */
#define FAILS(expected, words, call)                                                                        \
  do {                                                                                                      \
    STATUS(expected, call);                                                                                 \
    if (strstr(tpde_last_error(), words) == NULL) {                                                         \
      fprintf(stderr, "%s:%d: %s\n  said \"%s\", expected \"%s\" in it\n", __FILE__, __LINE__, #call,       \
              tpde_last_error(), words);                                                                    \
      exit(1);                                                                                              \
    }                                                                                                       \
  } while (0)

enum { F32 = 12 };

/* A pair of tensors, the second with every tenth word changed. */
typedef struct {
  uint64_t n, bytes;
  uint32_t *base, *target;
} pair;

static inline pair make_pair(uint64_t n) {
  pair p = {n, 4 * n, malloc(4 * n), malloc(4 * n)};
  CHECK(p.base != NULL && p.target != NULL);
  uint32_t state = 1;
  for (uint64_t i = 0; i < n; i++) {
    state = state * 1664525u + 1013904223u;
    p.base[i] = 0x3c000000u | state >> 8;
    p.target[i] = i % 10 == 3 ? p.base[i] + (state >> 20) + 1 : p.base[i];
  }
  return p;
}

static inline void free_pair(pair p) {
  free(p.base);
  free(p.target);
}

/* The packed form of a pair. */
typedef struct {
  uint64_t index_bytes, blob_bytes;
  uint8_t *index, *blob;
} packed;

static inline packed pack_pair(pair p, const tpde_encode_options *options) {
  tpde_handle encoded = 0;
  packed k;
  OK(tpde_encode(&encoded, p.base, p.bytes, p.target, p.bytes, F32, &p.n, 1, options));
  OK(tpde_encoded_bytes(&k.index_bytes, &k.blob_bytes, encoded));
  k.index = malloc(k.index_bytes);
  k.blob = malloc(k.blob_bytes + 1);
  OK(tpde_encoded_copy(k.index, k.index_bytes, k.blob, k.blob_bytes, encoded));
  OK(tpde_encoded_free(encoded));
  return k;
}

static inline void free_packed(packed k) {
  free(k.index);
  free(k.blob);
}

#endif /* CHECK_H */
