/* main.c - runs one test of the C ABI: ./capi NAME FOLDER. Without arguments it
 * lists the names, for tests/test_capi.py. */
#include "tests.h"

#include <stdio.h>
#include <string.h>

static const struct {
  const char *name;
  void (*run)(const char *folder);
} tests[] = {
#define X(name) {#name, test_##name},
    TESTS(X)
#undef X
};

int main(int argc, char **argv) {
  for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
    if (argc < 2) puts(tests[i].name);
    if (argc == 3 && strcmp(argv[1], tests[i].name) == 0) {
      tests[i].run(argv[2]);
      return 0;
    }
  }
  return argc < 2 ? 0 : 2;
}
