/* cost.c - what a call costs beside the work it asks for. */
#include <time.h>

#include "check.h"
#include "tests.h"

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e6 * t.tv_sec + 1e-3 * t.tv_nsec; /* microseconds */
}

/* The fastest of several rounds: a busy machine only makes calls slower. */
#define COST(name, call)                                          \
  ({                                                              \
    double best_ = 1e9;                                           \
    for (int round_ = 0; round_ < 20; round_++) {                 \
      double start_ = now();                                      \
      for (int i_ = 0; i_ < 2000; i_++) OK(call);                 \
      double each_ = (now() - start_) / 2000;                     \
      if (each_ < best_) best_ = each_;                           \
    }                                                             \
    printf("%-34s %6.2f microseconds a call\n", name, best_);     \
    best_;                                                        \
  })

void test_call_cost(const char *folder) {
  (void)folder;
  pair p = make_pair(16);
  packed k = pack_pair(p, NULL);
  tpde_index_info info = {.struct_bytes = sizeof info};
  uint32_t out[16];

  /* This call has nothing to do: what it costs is the ABI. */
  const int64_t starts[] = {0};
  double bare = COST("tpde_scatter_add of nothing", tpde_scatter_add(NULL, 0, NULL, 0, 7, NULL, NULL, 0, starts, 0, 1));
  double read = COST("tpde_index_read", tpde_index_read(&info, k.index, k.index_bytes));
  double rebuild = COST("tpde_reconstruct of 16 words", tpde_reconstruct(out, sizeof out, p.base, p.bytes, k.index,
                                                                         k.index_bytes, k.blob, k.blob_bytes, 0, 1));
  CHECK(bare < 5 && read < 5); /* includes parsing */
  CHECK(rebuild < 50);         /* nearly all of it is digests and decoding */
  free_packed(k);
  free_pair(p);
}
