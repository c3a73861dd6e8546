/* tests.h - the tests of the C ABI. folder is an empty folder for files. */
#ifndef TESTS_H
#define TESTS_H

#define TESTS(X)                                                                      \
  X(library) X(round_trip) X(without_base) X(in_place) X(empty_and_scalar)            \
  X(options) X(damage) X(wrong_base) X(scatter_add) X(scatter_add_refusals)           \
  X(null_pointers) X(handles) X(many_handles) X(error_text_per_thread) X(threads)     \
  X(forked_child) X(pack_and_unpack) X(applied_source) X(compressed_model)            \
  X(job_cancel) X(job_failure) X(parts) X(source_in_use) X(call_cost)

#define X(name) void test_##name(const char *folder);
TESTS(X)
#undef X

#endif /* TESTS_H */
