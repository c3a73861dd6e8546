/* A thread-specific key instead of _Thread_local: a library that is opened with
 * dlopen has little room for thread-local variables, and the key frees the text
 * when its thread ends. */
#include "error_text.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static int key_made;

static void make_key(void) { key_made = pthread_key_create(&key, free) == 0; }

void error_text_set(const char *text, size_t bytes) {
  pthread_once(&once, make_key);
  if (!key_made) return;
  char *copy = malloc(bytes + 1);
  if (copy == NULL) return; /* the status still tells what failed */
  memcpy(copy, text, bytes);
  copy[bytes] = 0;
  free(pthread_getspecific(key));
  if (pthread_setspecific(key, copy) != 0) free(copy);
}

const char *error_text(void) {
  pthread_once(&once, make_key);
  const char *text = key_made ? pthread_getspecific(key) : NULL;
  return text != NULL ? text : "";
}

static const char *names[STATUS_NAMES];

void status_name_set(int32_t code, const char *name) { names[code] = name; }

const char *status_name_of(int32_t code) {
  if (code < 0 || code >= STATUS_NAMES || names[code] == NULL) return "unknown";
  return names[code];
}
