/* scatter.c - tpde_scatter_add. */
#include "check.h"
#include "tests.h"

enum { I32 = 7, F64 = 13, C64 = 14, F4 = 22, N = 1000 };

void test_scatter_add(const char *folder) {
  (void)folder;
  int32_t base[N], out[N], values[] = {10, 20, 30, 40};
  for (int i = 0; i < N; i++) base[i] = i;
  const int64_t indices[] = {0, 5, 500, N - 1}, starts[] = {0, 2, 2, 4};
  OK(tpde_scatter_add(out, sizeof out, base, sizeof base, I32, indices, values, 4, starts, 3, 0));
  for (int i = 0; i < N; i++)
    CHECK(out[i] == i + (i == 0 ? 10 : i == 5 ? 20 : i == 500 ? 30 : i == N - 1 ? 40 : 0));

  OK(tpde_scatter_add(base, sizeof base, base, sizeof base, I32, indices, values, 4, starts, 3, 2)); /* in place */
  CHECK(memcmp(base, out, sizeof out) == 0);

  const int64_t none[] = {0};
  memset(out, 0, sizeof out);
  OK(tpde_scatter_add(out, sizeof out, base, sizeof base, I32, NULL, NULL, 0, none, 0, 0));
  CHECK(memcmp(base, out, sizeof out) == 0);
  OK(tpde_scatter_add(NULL, 0, NULL, 0, I32, NULL, NULL, 0, none, 0, 0));

  /* A complex element is two words. */
  float complex_base[] = {1, 2, 3, 4, 5, 6}, complex_values[] = {0.5f, 0.25f}, complex_out[6];
  const int64_t one[] = {1}, whole[] = {0, 1};
  OK(tpde_scatter_add(complex_out, 24, complex_base, 24, C64, one, complex_values, 1, whole, 1, 0));
  const float expected[] = {1, 2, 3.5f, 4.25f, 5, 6};
  CHECK(memcmp(complex_out, expected, sizeof expected) == 0);
}

void test_scatter_add_refusals(const char *folder) {
  (void)folder;
  int32_t base[N] = {0}, out[N], values[4] = {1, 2, 3, 4};
  memset(out, 0x55, sizeof out);
  const int64_t indices[] = {0, 5, 500, N - 1}, starts[] = {0, 2, 4};
#define ADD(words, ...) FAILS(TPDE_ARGUMENT, words, tpde_scatter_add(out, sizeof out, base, sizeof base, __VA_ARGS__, 0))
  const int64_t falling[] = {0, 5, 4, 9}, twice[] = {0, 5, 5, 9}, negative[] = {-1, 5, 6, 9}, beyond[] = {0, 5, 6, N};
  ADD("strictly increasing", I32, falling, values, 4, starts, 2);
  ADD("strictly increasing", I32, twice, values, 4, starts, 2);
  ADD("strictly increasing", I32, negative, values, 4, starts, 2);
  ADD("strictly increasing", I32, beyond, values, 4, starts, 2);
  const int64_t late[] = {1, 2, 4}, early[] = {0, 2, 3}, back[] = {0, 5, 4}, far[] = {0, INT64_MAX, 4};
  ADD("chunk_starts", I32, indices, values, 4, late, 2);
  ADD("chunk_starts", I32, indices, values, 4, early, 2);
  ADD("chunk 1", I32, indices, values, 4, back, 2);
  ADD("chunk 1", I32, indices, values, 4, far, 2);
  ADD("NULL", I32, NULL, values, 4, starts, 2);
  ADD("NULL", I32, indices, NULL, 4, starts, 2);
  ADD("NULL", I32, indices, values, 4, NULL, 2);
  ADD("dtype", 0, indices, values, 4, starts, 2);
  ADD("smaller than a byte", F4, indices, values, 4, starts, 2);
  ADD("memory", I32, indices, values, UINT64_MAX, starts, 2);
  ADD("memory", I32, indices, values, 4, starts, UINT64_MAX);
  ADD("multiple of 8", I32, (const int64_t *)((const char *)indices + 4), values, 3, starts, 2);
  ADD("aligned", I32, indices, (const char *)values + 1, 3, (const int64_t[]){0, 2, 3}, 2);
  FAILS(TPDE_ARGUMENT, "multiple of 8",
        tpde_scatter_add(out, sizeof out, base, 12, F64, indices, values, 1, (const int64_t[]){0, 1}, 1, 0));
  FAILS(TPDE_ARGUMENT, "overlap",
        tpde_scatter_add(base + 1, sizeof base - 4, base, sizeof base - 4, I32, indices, values, 4, starts, 2, 0));
  FAILS(TPDE_SHORT_BUFFER, "dst",
        tpde_scatter_add(out, sizeof out - 1, base, sizeof base, I32, indices, values, 4, starts, 2, 0));
  for (int i = 0; i < N; i++) CHECK(out[i] == 0x55555555); /* nothing was written */
}
