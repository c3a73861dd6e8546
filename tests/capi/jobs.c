/* jobs.c - sources in memory and in files, and the long operations on them. */
#include <inttypes.h>

#include "check.h"
#include "tests.h"

/* Two checkpoints of two tensors: "a" changes, "same" does not. */
typedef struct {
  pair a, same;
  tpde_handle base, target;
} checkpoints;

static void add(tpde_handle source, const char *name, const uint32_t *data, uint64_t n) {
  OK(tpde_source_add(source, name, F32, &n, 1, data, 4 * n));
}

static checkpoints make_checkpoints(uint64_t n) {
  checkpoints c = {.a = make_pair(n), .same = make_pair(1000)};
  OK(tpde_source_new(&c.base, "base"));
  OK(tpde_source_new(&c.target, "target"));
  add(c.base, "a", c.a.base, n);
  add(c.base, "same", c.same.base, 1000);
  add(c.target, "a", c.a.target, n);
  add(c.target, "same", c.same.base, 1000);
  return c;
}

static void free_checkpoints(checkpoints c) {
  OK(tpde_source_free(c.base));
  OK(tpde_source_free(c.target));
  free_pair(c.a);
  free_pair(c.same);
}

static const char *file_in(const char *folder, const char *name) {
  static char paths[4][4096];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, 4096, "%s/%s", folder, name);
  return path;
}

static char *take_text(tpde_handle text) {
  uint64_t bytes;
  OK(tpde_text_bytes(&bytes, text));
  char *s = malloc(bytes + 1);
  if (bytes > 0) FAILS(TPDE_SHORT_BUFFER, "dst", tpde_text_copy(s, bytes - 1, text));
  OK(tpde_text_copy(s, bytes, text));
  OK(tpde_text_free(text));
  s[bytes] = 0;
  return s;
}

static int32_t wait_for(tpde_handle job) {
  uint64_t done, total;
  int32_t status;
  while ((status = tpde_job_wait(&done, &total, job, 20)) == TPDE_PENDING) CHECK(total == 0 || done <= total);
  return status;
}

/* Waits for a job that must succeed and returns its report. */
static char *finish(tpde_handle job) {
  OK(wait_for(job));
  OK(tpde_job_wait(NULL, NULL, job, 0)); /* again: the same answer */
  tpde_handle text;
  OK(tpde_job_report(&text, job));
  OK(tpde_job_free(job));
  return take_text(text);
}

static const char *pack(checkpoints c, const char *folder) {
  const char *out = file_in(folder, "delta.safetensors");
  tpde_handle job;
  OK(tpde_pack_start(&job, c.base, c.target, out, "{\"codec\": \"auto\"}"));
  char *report = finish(job);
  CHECK(strstr(report, "\"tensors\"") != NULL && strstr(report, "\"totals\"") != NULL);
  free(report);
  return out;
}

static void check_target(tpde_handle source, checkpoints c) {
  uint32_t *out = malloc(c.a.bytes);
  OK(tpde_source_read(out, c.a.bytes, source, "a", 0));
  CHECK(memcmp(out, c.a.target, c.a.bytes) == 0);
  OK(tpde_source_read(out, 4000, source, "same", 1));
  CHECK(memcmp(out, c.same.base, 4000) == 0);
  FAILS(TPDE_NOT_FOUND, "nothing", tpde_source_read(out, c.a.bytes, source, "nothing", 0));
  STATUS(TPDE_SHORT_BUFFER, tpde_source_read(out, c.a.bytes - 1, source, "a", 0));
  free(out);
}

void test_pack_and_unpack(const char *folder) {
  checkpoints c = make_checkpoints(50000);
  const char *delta = pack(c, folder), *out = file_in(folder, "out.safetensors");
  const char *const deltas[] = {delta};

  tpde_handle text, job, rebuilt;
  OK(tpde_inspect(&text, delta));
  char *report = take_text(text);
  CHECK(strstr(report, "\"a\"") != NULL && strstr(report, "\"delta\"") != NULL);
  free(report);

  OK(tpde_unpack_start(&job, c.base, deltas, 1, out, NULL));
  free(finish(job));
  OK(tpde_source_open(&rebuilt, out));
  check_target(rebuilt, c);
  OK(tpde_source_manifest(&text, rebuilt));
  char *manifest = take_text(text);
  CHECK(strstr(manifest, "\"same\"") != NULL && strstr(manifest, "50000") != NULL);
  free(manifest);

  OK(tpde_verify_start(&job, c.base, deltas, 1, rebuilt, NULL));
  free(finish(job));
  OK(tpde_verify_start(&job, c.base, deltas, 1, 0, "{}"));
  free(finish(job));
  OK(tpde_source_free(rebuilt));
  free_checkpoints(c);
}

void test_compressed_model(const char *folder) {
  checkpoints c = make_checkpoints(50000);
  const char *out = file_in(folder, "compressed"), *const deltas[] = {file_in(folder, "compressed/residual.safetensors")};
  tpde_handle text, job, base;
  OK(tpde_compress_start(&job, c.target, out, "{\"base\": \"int4\", \"group_size\": 32}"));
  char *report = finish(job);
  CHECK(strstr(report, "\"base_bytes\"") != NULL);
  free(report);
  OK(tpde_inspect(&text, out));
  report = take_text(text);
  CHECK(strstr(report, "\"base_tensors\"") != NULL);
  free(report);

  OK(tpde_source_open_base(&base, out));
  OK(tpde_verify_start(&job, base, deltas, 1, c.target, NULL));
  free(finish(job));
  OK(tpde_source_free(base));
  FAILS(TPDE_ARGUMENT, "no compressed model", tpde_source_open_base(&base, folder));
  FAILS(TPDE_ARGUMENT, "int5", tpde_compress_start(&job, c.target, out, "{\"base\": \"int5\"}"));
  OK(tpde_compress_start(&job, c.target, out, NULL));
  STATUS(TPDE_EXISTS, wait_for(job));
  OK(tpde_job_free(job));
  free_checkpoints(c);
}

void test_applied_source(const char *folder) {
  checkpoints c = make_checkpoints(30000);
  const char *const deltas[] = {pack(c, folder)};
  tpde_handle applied;
  OK(tpde_source_apply(&applied, c.base, deltas, 1));
  FAILS(TPDE_ARGUMENT, "in use", tpde_source_free(c.base)); /* the base must outlive it */
  check_target(applied, c);
  OK(tpde_source_free(applied));

  uint32_t *out = calloc(1, c.a.bytes); /* a wrong base is found when a tensor is read */
  OK(tpde_source_apply(&applied, c.target, deltas, 1));
  FAILS(TPDE_BASE_MISMATCH, "\"a\"", tpde_source_read(out, c.a.bytes, applied, "a", 0));
  for (uint64_t i = 0; i < c.a.n; i++) CHECK(out[i] == 0);
  free(out);
  OK(tpde_source_free(applied));
  free_checkpoints(c);
}

/* Reads {"part":P,"bytes":N} behind a key of the tensor "a" in the list of parts. */
static tpde_span part_of(const char *list, const char *key) {
  tpde_span span = {0, 0, 0, 0};
  const char *at = strstr(strstr(list, "\"name\":\"a\""), key);
  CHECK(sscanf(at + strlen(key), ":{\"part\":%" SCNu64 ",\"bytes\":%" SCNu64 "}", &span.part, &span.bytes) == 2);
  return span;
}

static void *gather(tpde_handle parts, tpde_span span) {
  void *data = calloc(1, span.bytes + 1);
  FAILS(TPDE_SHORT_BUFFER, "destination", tpde_parts_gather(data, span.bytes - 1, parts, &span, 1, 0));
  OK(tpde_parts_gather(data, span.bytes, parts, &span, 1, 0));
  return data;
}

/* What a GPU does: rebuild from parts, and give the result to the job that writes the file. */
void test_parts(const char *folder) {
  checkpoints c = make_checkpoints(30000);
  const char *const deltas[] = {pack(c, folder)};
  tpde_handle applied, parts, text, job, rebuilt;
  OK(tpde_source_apply(&applied, c.base, deltas, 1));
  OK(tpde_parts_open(&parts, applied));
  FAILS(TPDE_ARGUMENT, "in use", tpde_source_free(applied));
  OK(tpde_parts_list(&text, parts));
  char *list = take_text(text);
  tpde_span base = part_of(list, "\"base\""), index = part_of(list, "\"index\""), blob = part_of(list, "\"blob\"");
  CHECK(base.bytes == c.a.bytes);
  uint32_t *b = gather(parts, base), *out = malloc(c.a.bytes);
  void *i = gather(parts, index), *d = gather(parts, blob);
  CHECK(memcmp(b, c.a.base, c.a.bytes) == 0);
  OK(tpde_reconstruct(out, c.a.bytes, b, base.bytes, i, index.bytes, d, blob.bytes, 0, 0));
  CHECK(memcmp(out, c.a.target, c.a.bytes) == 0);
  base.offset = 1, base.bytes = 4096;
  FAILS(TPDE_ARGUMENT, "whole pages", tpde_parts_gather(b, c.a.bytes, parts, &base, 1, 1));
  OK(tpde_parts_free(parts));
  FAILS(TPDE_HANDLE, "was freed", tpde_parts_list(&text, parts));
  OK(tpde_source_free(applied));

  const char *path = file_in(folder, "supplied.safetensors");
  OK(tpde_unpack_supplied_start(&job, c.base, deltas, 1, path, NULL));
  FAILS(TPDE_ARGUMENT, "expected a", tpde_job_supply(job, "same", c.same.base, 4000));
  FAILS(TPDE_SHORT_BUFFER, "\"a\"", tpde_job_supply(job, "a", out, c.a.bytes - 4));
  OK(tpde_job_supply(job, "a", out, c.a.bytes));
  FAILS(TPDE_ARGUMENT, "all were given", tpde_job_supply(job, "a", out, c.a.bytes));
  free(finish(job));
  OK(tpde_source_open(&rebuilt, path));
  check_target(rebuilt, c);
  OK(tpde_source_free(rebuilt));

  path = file_in(folder, "wrong.safetensors"); /* other bytes do not become a file */
  OK(tpde_unpack_supplied_start(&job, c.base, deltas, 1, path, NULL));
  OK(tpde_job_supply(job, "a", c.a.base, c.a.bytes));
  FAILS(TPDE_TARGET_MISMATCH, "sha256", wait_for(job));
  OK(tpde_job_free(job));
  CHECK(fopen(path, "rb") == NULL);
  OK(tpde_unpack_start(&job, c.base, deltas, 1, path, NULL));
  FAILS(TPDE_ARGUMENT, "rebuilds its tensors itself", tpde_job_supply(job, "a", out, c.a.bytes));
  free(finish(job));
  free(list), free(b), free(out), free(i), free(d);
  free_checkpoints(c);
}

void test_job_cancel(const char *folder) {
  checkpoints c = make_checkpoints(4000000);
  const char *out = file_in(folder, "delta.safetensors");
  tpde_handle job, text;
  for (int waits = 0; waits < 3; waits++) {
    OK(tpde_pack_start(&job, c.base, c.target, out, "{\"overwrite\": true}"));
    if (waits > 0) STATUS(TPDE_PENDING, tpde_job_wait(NULL, NULL, job, waits));
    if (waits == 0) FAILS(TPDE_ARGUMENT, "still running", tpde_job_report(&text, job));
    OK(tpde_job_cancel(job));
    FAILS(TPDE_CANCELED, "cancel", wait_for(job));
    STATUS(TPDE_CANCELED, tpde_job_report(&text, job));
    OK(tpde_job_free(job));
    CHECK(fopen(out, "rb") == NULL);
  }
  OK(tpde_pack_start(&job, c.base, c.target, out, NULL)); /* freeing alone cancels, too */
  OK(tpde_job_free(job));
  STATUS(TPDE_HANDLE, tpde_job_wait(NULL, NULL, job, 0));
  CHECK(fopen(out, "rb") == NULL);
  free_checkpoints(c);
}

void test_job_failure(const char *folder) {
  checkpoints c = make_checkpoints(1000);
  tpde_handle job = 0, text;
  const char *const missing[] = {file_in(folder, "missing.safetensors")};
  OK(tpde_unpack_start(&job, c.base, missing, 1, file_in(folder, "out"), NULL));
  FAILS(TPDE_NOT_FOUND, "missing.safetensors", wait_for(job));
  FAILS(TPDE_NOT_FOUND, "missing.safetensors", tpde_job_wait(NULL, NULL, job, 0));
  FAILS(TPDE_NOT_FOUND, "missing.safetensors", tpde_job_report(&text, job));
  OK(tpde_job_free(job));

  job = 0;
  const char *out = file_in(folder, "delta.safetensors");
  FAILS(TPDE_ARGUMENT, "colour", tpde_pack_start(&job, c.base, c.target, out, "{\"colour\": 1}"));
  STATUS(TPDE_ARGUMENT, tpde_pack_start(&job, c.base, c.target, out, "{"));
  STATUS(TPDE_ARGUMENT, tpde_pack_start(&job, c.base, c.target, out, "\xff"));
  STATUS(TPDE_ARGUMENT, tpde_verify_start(&job, c.base, missing, 1, 0, "[]"));
  CHECK(job == 0);
  FAILS(TPDE_NOT_FOUND, "missing", tpde_source_open(&text, missing[0]));
  FAILS(TPDE_NOT_FOUND, "missing", tpde_inspect(&text, missing[0]));
  free_checkpoints(c);
}

void test_source_in_use(const char *folder) {
  checkpoints c = make_checkpoints(4000000);
  tpde_handle job;
  OK(tpde_pack_start(&job, c.base, c.target, file_in(folder, "delta.safetensors"), NULL));
  FAILS(TPDE_ARGUMENT, "in use", tpde_source_free(c.base));
  FAILS(TPDE_ARGUMENT, "in use", tpde_source_free(c.target));
  OK(tpde_job_free(job));
  free_checkpoints(c);
}
