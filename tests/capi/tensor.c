/* tensor.c - one tensor: encode, read, rebuild, refuse. */
#include "check.h"
#include "tests.h"

void test_library(const char *folder) {
  (void)folder;
  CHECK(tpde_abi_version() == TPDE_ABI_VERSION);
  CHECK(strcmp(tpde_version(), TPDE_RELEASE) == 0);
  CHECK(strcmp(tpde_last_error(), "") == 0);
  CHECK(strcmp(tpde_status_name(TPDE_OK), "ok") == 0);
  CHECK(strcmp(tpde_status_name(TPDE_BASE_MISMATCH), "base_mismatch") == 0);
  CHECK(strcmp(tpde_status_name(-1), "unknown") == 0);
  CHECK(strcmp(tpde_status_name(1 << 30), "unknown") == 0);
}

void test_round_trip(const char *folder) {
  (void)folder;
  pair p = make_pair(100003);
  packed k = pack_pair(p, NULL);
  CHECK(k.blob_bytes < p.bytes / 4);

  tpde_index_info info = {.struct_bytes = sizeof info};
  OK(tpde_index_read(&info, k.index, k.index_bytes));
  CHECK(info.dtype == F32 && info.ndim == 1 && info.shape[0] == p.n && info.has_base == 1);
  CHECK(info.words == p.n && info.target_bytes == p.bytes && info.blob_bytes == k.blob_bytes);
  CHECK(info.deltas == 10000 && info.residual == 0 && info.codec >= 1);

  uint8_t digest[16];
  OK(tpde_digest(digest, sizeof digest, p.target, p.bytes, 0));
  CHECK(memcmp(digest, info.target_digest, 16) == 0);
  OK(tpde_digest(digest, sizeof digest, p.base, p.bytes, 1));
  CHECK(memcmp(digest, info.base_digest, 16) == 0);

  uint8_t *records = malloc(32 * info.chunks);
  OK(tpde_index_records(records, 32 * info.chunks, k.index, k.index_bytes));
  uint64_t offset, word, end = 0;
  for (uint64_t c = 0; c < info.chunks; c++) { /* no hole, no overlap */
    uint32_t compressed;
    memcpy(&offset, records + 32 * c, 8);
    memcpy(&compressed, records + 32 * c + 8, 4);
    memcpy(&word, records + 32 * c + 24, 8);
    CHECK(offset == end && (c == 0) == (word == 0) && word < info.words);
    end += compressed;
  }
  CHECK(end == k.blob_bytes);
  FAILS(TPDE_SHORT_BUFFER, "records", tpde_index_records(records, 32 * info.chunks - 1, k.index, k.index_bytes));

  for (uint32_t workers = 0; workers < 4; workers++) {
    uint32_t *out = calloc(p.n + 1, 4);
    out[p.n] = 0xdeadbeef; /* a larger destination is not written beyond the tensor */
    OK(tpde_reconstruct(out, p.bytes + 4, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, workers));
    CHECK(memcmp(out, p.target, p.bytes) == 0 && out[p.n] == 0xdeadbeef);
    free(out);
  }
  free(records);
  free_packed(k);
  free_pair(p);
}

void test_without_base(const char *folder) {
  (void)folder;
  pair p = make_pair(5000);
  tpde_handle encoded;
  const uint64_t shape[] = {50, 100};
  OK(tpde_encode(&encoded, NULL, 0, p.target, p.bytes, F32, shape, 2, NULL));
  packed k;
  OK(tpde_encoded_bytes(&k.index_bytes, &k.blob_bytes, encoded));
  k.index = malloc(k.index_bytes), k.blob = malloc(k.blob_bytes);
  FAILS(TPDE_SHORT_BUFFER, "index", tpde_encoded_copy(k.index, k.index_bytes - 1, k.blob, k.blob_bytes, encoded));
  FAILS(TPDE_SHORT_BUFFER, "blob", tpde_encoded_copy(k.index, k.index_bytes, k.blob, k.blob_bytes - 1, encoded));
  OK(tpde_encoded_copy(k.index, k.index_bytes, k.blob, k.blob_bytes, encoded));
  OK(tpde_encoded_free(encoded));
  tpde_index_info info = {.struct_bytes = sizeof info};
  OK(tpde_index_read(&info, k.index, k.index_bytes));
  CHECK(info.has_base == 0 && info.ndim == 2 && info.shape[0] == 50 && info.shape[1] == 100);

  uint32_t *out = malloc(p.bytes);
  OK(tpde_reconstruct(out, p.bytes, NULL, 0, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  CHECK(memcmp(out, p.target, p.bytes) == 0);
  FAILS(TPDE_ARGUMENT, "base",
        tpde_reconstruct(out, p.bytes, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  free(out);
  free_packed(k);
  free_pair(p);
}

void test_in_place(const char *folder) {
  (void)folder;
  pair p = make_pair(100003);
  packed k = pack_pair(p, NULL);
  uint32_t *both = malloc(p.bytes + 4);
  memcpy(both, p.base, p.bytes);
  FAILS(TPDE_ARGUMENT, "overlap",
        tpde_reconstruct(both + 1, p.bytes, both, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  CHECK(memcmp(both, p.base, p.bytes) == 0);
  OK(tpde_reconstruct(both, p.bytes, both, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  CHECK(memcmp(both, p.target, p.bytes) == 0);
  free(both);
  free_packed(k);
  free_pair(p);
}

void test_empty_and_scalar(const char *folder) {
  (void)folder;
  pair p = make_pair(1);
  for (uint32_t ndim = 0; ndim < 2; ndim++) { /* a scalar, then an empty tensor */
    const uint64_t shape[] = {0}, bytes = ndim == 0 ? 4 : 0;
    tpde_handle encoded;
    OK(tpde_encode(&encoded, p.base, bytes, p.target, bytes, F32, shape, ndim, NULL));
    packed k = {.index = malloc(1000), .blob = malloc(1000)};
    OK(tpde_encoded_bytes(&k.index_bytes, &k.blob_bytes, encoded));
    OK(tpde_encoded_copy(k.index, 1000, k.blob, 1000, encoded));
    OK(tpde_encoded_free(encoded));
    uint32_t out = 7;
    OK(tpde_reconstruct(&out, 4, p.base, bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
    CHECK(out == (ndim == 0 ? p.target[0] : 7));
    if (ndim == 1) OK(tpde_reconstruct(NULL, 0, NULL, 0, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
    free_packed(k);
  }
  free_pair(p);
}

void test_options(const char *folder) {
  (void)folder;
  pair p = make_pair(10000);
  tpde_index_info info = {.struct_bytes = sizeof info};
  tpde_encode_options o = {.struct_bytes = sizeof o, .codec = 3, .num_chunks = 64, .workers = 1};
  packed k = pack_pair(p, &o);
  OK(tpde_index_read(&info, k.index, k.index_bytes));
  CHECK(info.codec == 3 && info.chunks >= 63 && info.chunks <= 64);
  o.workers = 3; /* the result does not depend on it */
  packed same = pack_pair(p, &o);
  CHECK(k.index_bytes == same.index_bytes && memcmp(k.index, same.index, k.index_bytes) == 0);
  CHECK(k.blob_bytes == same.blob_bytes && memcmp(k.blob, same.blob, k.blob_bytes) == 0);
  free_packed(k);
  free_packed(same);

  tpde_handle h = 1;
#define REFUSED(words, ...)                                                                                  \
  do {                                                                                                       \
    tpde_encode_options bad = __VA_ARGS__;                                                                   \
    FAILS(TPDE_ARGUMENT, words, tpde_encode(&h, p.base, p.bytes, p.target, p.bytes, F32, &p.n, 1, &bad));    \
  } while (0)
  REFUSED("struct_bytes", {.struct_bytes = 4});
  REFUSED("reserved", {.struct_bytes = sizeof bad, .reserved = 1});
  REFUSED("codec", {.struct_bytes = sizeof bad, .codec = 99});
  REFUSED("codec", {.struct_bytes = sizeof bad, .codec = 256 + 3});
  REFUSED("residual", {.struct_bytes = sizeof bad, .residual = 2});
  REFUSED("level", {.struct_bytes = sizeof bad, .level = 3});
  REFUSED("chunk", {.struct_bytes = sizeof bad, .num_chunks = 2, .chunk_words = 2});

  uint64_t shape[TPDE_MAX_DIMS + 1];
  for (int i = 0; i <= TPDE_MAX_DIMS; i++) shape[i] = 1;
  FAILS(TPDE_ARGUMENT, "dtype", tpde_encode(&h, p.base, p.bytes, p.target, p.bytes, 0, &p.n, 1, NULL));
  FAILS(TPDE_ARGUMENT, "dtype", tpde_encode(&h, p.base, p.bytes, p.target, p.bytes, 256 + F32, &p.n, 1, NULL));
  FAILS(TPDE_ARGUMENT, "dimensions", tpde_encode(&h, p.base, 4, p.target, 4, F32, shape, TPDE_MAX_DIMS + 1, NULL));
  OK(tpde_encode(&h, p.base, 4, p.target, 4, F32, shape, TPDE_MAX_DIMS, NULL));
  OK(tpde_encoded_free(h));
  FAILS(TPDE_ARGUMENT, "base", tpde_encode(&h, p.base, p.bytes - 4, p.target, p.bytes, F32, &p.n, 1, NULL));
  FAILS(TPDE_ARGUMENT, "target", tpde_encode(&h, p.base, p.bytes, p.target, p.bytes - 4, F32, &p.n, 1, NULL));
  const uint64_t huge[] = {1ull << 40, 1ull << 40};
  FAILS(TPDE_LIMIT, "2^64", tpde_encode(&h, p.base, p.bytes, p.target, p.bytes, F32, huge, 2, NULL));
  free_pair(p);
}

void test_damage(const char *folder) {
  (void)folder;
  pair p = make_pair(3000);
  packed k = pack_pair(p, NULL);
  uint32_t *out = calloc(1, p.bytes);
#define REBUILD(index_bytes, blob_bytes) \
  tpde_reconstruct(out, p.bytes, p.base, p.bytes, k.index, index_bytes, k.blob, blob_bytes, 0, 1)
  for (uint64_t n = 0; n < k.index_bytes; n++) CHECK(REBUILD(n, k.blob_bytes) != TPDE_OK);
  for (uint64_t n = 0; n < k.blob_bytes; n++) STATUS(TPDE_CORRUPT, REBUILD(k.index_bytes, n));
  for (uint64_t bit = 0; bit < 8 * k.index_bytes; bit++) {
    k.index[bit / 8] ^= 1 << bit % 8;
    CHECK(REBUILD(k.index_bytes, k.blob_bytes) != TPDE_OK);
    k.index[bit / 8] ^= 1 << bit % 8;
  }
  for (uint64_t bit = 0; bit < 8 * k.blob_bytes; bit++) {
    k.blob[bit / 8] ^= 1 << bit % 8;
    FAILS(TPDE_CHECKSUM, "chunk 0", REBUILD(k.index_bytes, k.blob_bytes));
    k.blob[bit / 8] ^= 1 << bit % 8;
  }
  for (uint64_t i = 0; i < p.n; i++) CHECK(out[i] == 0); /* nothing was written */
  OK(REBUILD(k.index_bytes, k.blob_bytes));
  CHECK(memcmp(out, p.target, p.bytes) == 0);
  FAILS(TPDE_SHORT_BUFFER, "dst",
        tpde_reconstruct(out, p.bytes - 1, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 1));
  FAILS(TPDE_ARGUMENT, "flags",
        tpde_reconstruct(out, p.bytes, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 4, 1));
  free(out);
  free_packed(k);
  free_pair(p);
}

void test_wrong_base(const char *folder) {
  (void)folder;
  pair p = make_pair(3000);
  packed k = pack_pair(p, NULL);
  uint32_t *out = calloc(1, p.bytes);
#define WITH(flags) \
  tpde_reconstruct(out, p.bytes, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, flags, 0)
  p.base[17] ^= 1;
  FAILS(TPDE_BASE_MISMATCH, "digest", WITH(0));
  for (uint64_t i = 0; i < p.n; i++) CHECK(out[i] == 0);
  FAILS(TPDE_TARGET_MISMATCH, "digest", WITH(TPDE_SKIP_BASE_DIGEST));
  STATUS(TPDE_OK, WITH(TPDE_SKIP_BASE_DIGEST | TPDE_SKIP_TARGET_DIGEST)); /* the caller wanted it */
  CHECK(memcmp(out, p.target, p.bytes) != 0);
  p.base[17] ^= 1;
  OK(WITH(0));
  CHECK(memcmp(out, p.target, p.bytes) == 0);
  FAILS(TPDE_ARGUMENT, "base",
        tpde_reconstruct(out, p.bytes, NULL, 0, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  FAILS(TPDE_BASE_MISMATCH, "base",
        tpde_reconstruct(out, p.bytes, p.base, p.bytes - 4, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
  free(out);
  free_packed(k);
  free_pair(p);
}
