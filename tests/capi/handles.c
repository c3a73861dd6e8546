/* handles.c - handles, NULL pointers, texts of errors, threads, forks. */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "tests.h"

void test_null_pointers(const char *folder) {
  (void)folder;
  uint64_t n = 3, some = 0;
  uint32_t data[3] = {0};
  tpde_handle h = 0, source, s;
  uint8_t digest[16];
  OK(tpde_source_new(&source, "memory"));
#define NULLED(call) FAILS(TPDE_ARGUMENT, "NULL", call)
  NULLED(tpde_encode(NULL, data, 12, data, 12, F32, &n, 1, NULL));
  NULLED(tpde_encode(&h, NULL, 12, data, 12, F32, &n, 1, NULL));
  NULLED(tpde_encode(&h, data, 12, NULL, 12, F32, &n, 1, NULL));
  NULLED(tpde_encode(&h, data, 12, data, 12, F32, NULL, 1, NULL));
  NULLED(tpde_index_read(NULL, data, 12));
  tpde_index_info info = {.struct_bytes = sizeof info};
  NULLED(tpde_index_read(&info, NULL, 12));
  NULLED(tpde_index_records(data, 12, NULL, 12));
  NULLED(tpde_digest(digest, sizeof digest, NULL, 12, 0));
  NULLED(tpde_digest(NULL, sizeof digest, data, 12, 0));
  FAILS(TPDE_SHORT_BUFFER, "dst", tpde_digest(digest, 15, data, 12, 0));
  NULLED(tpde_reconstruct(data, 12, data, 12, NULL, 100, data, 12, 0, 0));
  NULLED(tpde_source_open(NULL, "/tmp"));
  NULLED(tpde_source_open(&s, NULL));
  NULLED(tpde_source_open(&s, ""));
  NULLED(tpde_source_open_base(NULL, "/tmp"));
  NULLED(tpde_source_open_base(&s, NULL));
  NULLED(tpde_source_new(NULL, "x"));
  NULLED(tpde_source_new(&s, NULL));
  NULLED(tpde_source_add(source, NULL, F32, &n, 1, data, 12));
  NULLED(tpde_source_add(source, "a", F32, NULL, 1, data, 12));
  NULLED(tpde_source_add(source, "a", F32, &n, 1, NULL, 12));
  FAILS(TPDE_ARGUMENT, "UTF-8", tpde_source_add(source, "\xff", F32, &n, 1, data, 12));
  NULLED(tpde_source_apply(NULL, source, NULL, 0));
  NULLED(tpde_source_apply(&s, source, NULL, 1));
  const char *const with_null[] = {NULL};
  NULLED(tpde_source_apply(&s, source, with_null, 1));
  NULLED(tpde_source_manifest(NULL, source));
  NULLED(tpde_source_read(data, 12, source, NULL, 0));
  NULLED(tpde_source_read(NULL, 12, source, "a", 0));
  NULLED(tpde_pack_start(NULL, source, source, "x", NULL));
  NULLED(tpde_pack_start(&h, source, source, NULL, NULL));
  NULLED(tpde_compress_start(NULL, source, "x", NULL));
  NULLED(tpde_compress_start(&h, source, NULL, NULL));
  NULLED(tpde_unpack_start(NULL, source, with_null, 1, "x", NULL));
  NULLED(tpde_unpack_start(&h, source, with_null, 1, "x", NULL));
  NULLED(tpde_unpack_start(&h, source, NULL, 0, NULL, NULL));
  NULLED(tpde_verify_start(NULL, source, with_null, 1, 0, NULL));
  NULLED(tpde_verify_start(&h, source, NULL, 1, 0, NULL));
  NULLED(tpde_inspect(NULL, "x"));
  NULLED(tpde_inspect(&h, NULL));
  FAILS(TPDE_HANDLE, "", tpde_job_report(&h, 0));
  NULLED(tpde_job_report(NULL, 0));
  NULLED(tpde_text_bytes(NULL, 0));
  NULLED(tpde_encoded_bytes(NULL, &some, 0));
  NULLED(tpde_encoded_bytes(&some, NULL, 0));
  CHECK(h == 0); /* no failure gave a handle */

  /* A size that no memory has is refused before anything is touched. */
  FAILS(TPDE_ARGUMENT, "memory", tpde_digest(digest, sizeof digest, data, UINT64_MAX, 0));
  OK(tpde_source_free(source));
}

void test_handles(const char *folder) {
  (void)folder;
  tpde_handle source, encoded, text;
  uint64_t bytes, n = 1;
  uint32_t word = 1;
  OK(tpde_source_new(&source, "memory"));
  OK(tpde_encode(&encoded, NULL, 0, &word, 4, F32, &n, 1, NULL));
  CHECK(source != 0 && encoded != 0 && source != encoded);

  FAILS(TPDE_HANDLE, "is a source, expected a job", tpde_job_wait(NULL, NULL, source, 0));
  FAILS(TPDE_HANDLE, "is a source, expected a text", tpde_text_free(source));
  FAILS(TPDE_HANDLE, "is an encoded tensor, expected a source", tpde_source_free(encoded));
  FAILS(TPDE_HANDLE, "is a source, expected an encoded tensor", tpde_encoded_free(source));
  for (tpde_handle bad = 0; bad < 100; bad++) FAILS(TPDE_HANDLE, "no handle", tpde_source_free(bad));
  FAILS(TPDE_HANDLE, "no handle", tpde_source_free(UINT64_MAX));
  FAILS(TPDE_HANDLE, "no handle", tpde_job_cancel(encoded + 1));
  FAILS(TPDE_HANDLE, "no handle", tpde_job_free(0));
  FAILS(TPDE_HANDLE, "no handle", tpde_text_bytes(&bytes, 0));
  FAILS(TPDE_HANDLE, "no handle", tpde_text_copy(NULL, 0, 0));
  FAILS(TPDE_HANDLE, "no handle", tpde_source_manifest(&text, 0));
  FAILS(TPDE_HANDLE, "no handle", tpde_source_read(&word, 4, 0, "a", 0));
  FAILS(TPDE_HANDLE, "no handle", tpde_source_apply(&text, 0, NULL, 0));
  FAILS(TPDE_HANDLE, "no handle", tpde_pack_start(&text, source, 0, "x", NULL));
  FAILS(TPDE_HANDLE, "no handle", tpde_compress_start(&text, 0, "x", NULL));

  OK(tpde_source_free(source)); /* the failed pack did not keep it in use */
  OK(tpde_encoded_free(encoded));
  FAILS(TPDE_HANDLE, "was freed", tpde_source_free(source));
  FAILS(TPDE_HANDLE, "was freed", tpde_encoded_free(encoded));
  FAILS(TPDE_HANDLE, "was freed", tpde_encoded_bytes(&bytes, &bytes, encoded));
}

void test_many_handles(const char *folder) {
  (void)folder;
  enum { MANY = 20000 };
  tpde_handle *handles = malloc(MANY * sizeof *handles), last = 0;
  for (int i = 0; i < MANY; i++) OK(tpde_source_new(&handles[i], "memory"));
  for (int i = 0; i < MANY; i++) OK(tpde_source_free(handles[i]));
  OK(tpde_source_new(&last, "memory"));
  for (int i = 0; i < MANY; i++) CHECK(handles[i] != last); /* never given again */
  for (int i = 0; i < MANY; i++) STATUS(TPDE_HANDLE, tpde_source_free(handles[i]));
  OK(tpde_source_free(last));
  free(handles);
}

/* Each thread fails in its own way and must read its own text, also after the
 * others have failed. */
static pthread_barrier_t barrier;

static void *fail_my_way(void *argument) {
  const tpde_handle mine = 1000 + (uintptr_t)argument;
  char expected[32];
  snprintf(expected, sizeof expected, "0x%llx is no handle", (unsigned long long)mine);
  CHECK(strcmp(tpde_last_error(), "") == 0);
  for (int i = 0; i < 200; i++) {
    STATUS(TPDE_HANDLE, tpde_source_free(mine));
    if (i < 5) pthread_barrier_wait(&barrier);
    CHECK(strstr(tpde_last_error(), expected) != NULL);
  }
  return NULL;
}

void test_error_text_per_thread(const char *folder) {
  (void)folder;
  enum { THREADS = 8 };
  pthread_t threads[THREADS];
  STATUS(TPDE_HANDLE, tpde_source_free(7));
  CHECK(pthread_barrier_init(&barrier, NULL, THREADS) == 0);
  for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, fail_my_way, (void *)i) == 0);
  for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK(strstr(tpde_last_error(), "0x7 is no handle") != NULL);
  tpde_handle h;
  OK(tpde_source_new(&h, "memory")); /* a success leaves the text alone */
  CHECK(strstr(tpde_last_error(), "0x7 is no handle") != NULL);
  OK(tpde_source_free(h));
}

static void *work(void *argument) {
  (void)argument;
  for (int round = 0; round < 5; round++) {
    pair p = make_pair(20000 + 7 * round);
    packed k = pack_pair(p, NULL);
    uint32_t *out = malloc(p.bytes);
    OK(tpde_reconstruct(out, p.bytes, p.base, p.bytes, k.index, k.index_bytes, k.blob, k.blob_bytes, 0, 0));
    CHECK(memcmp(out, p.target, p.bytes) == 0);
    free(out);
    free_packed(k);
    free_pair(p);
  }
  return NULL;
}

void test_threads(const char *folder) {
  (void)folder;
  pthread_t threads[8];
  for (int i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
  for (int i = 0; i < 8; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

void test_forked_child(const char *folder) {
  (void)folder;
  work(NULL); /* the core is busy on all its threads before the fork */
  pid_t child = fork();
  if (child == 0) {
    alarm(20); /* a hang is a failure, not a hang of the test */
    tpde_handle h = 0;
    uint64_t n = 1;
    uint8_t digest[16];
    FAILS(TPDE_FORKED, "spawn", tpde_source_new(&h, "memory"));
    FAILS(TPDE_FORKED, "spawn", tpde_digest(digest, 16, &n, 8, 0));
    FAILS(TPDE_FORKED, "spawn", tpde_encode(&h, NULL, 0, &n, 8, F32, &n, 1, NULL));
    FAILS(TPDE_FORKED, "spawn", tpde_job_free(h));
    CHECK(strcmp(tpde_status_name(TPDE_FORKED), "forked") == 0 && tpde_abi_version() == TPDE_ABI_VERSION);
    _exit(0);
  }
  int status = -1;
  CHECK(child > 0 && waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  work(NULL); /* the parent goes on */
}
