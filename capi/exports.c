/* exports.c - the functions of tpde.h. Each refuses a forked child and then
 * calls its Go function (tpde_digest calls goDigest). The check stands here and
 * not in Go: a child has none of the threads that Go would need to answer. */
#include <pthread.h>

#include "_cgo_export.h"
#include "error_text.h"
#include "tpde.h"

static int forked; /* written once, in a child that has one thread */

static void in_child(void) { forked = 1; }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

static int32_t refuse(void) {
  static const char text[] =
      "forked: this process was forked after it had loaded the tpde core, whose threads exist in the parent only; "
      "use the spawn start method (multiprocessing.get_context(\"spawn\")), or call tpde in the child only";
  error_text_set(text, sizeof text - 1);
  return TPDE_FORKED;
}

/* ---- library ---------------------------------------------------------- */

uint32_t tpde_abi_version(void) { return TPDE_ABI_VERSION; }

const char *tpde_version(void) { return TPDE_RELEASE; }

const char *tpde_status_name(int32_t status) {
  if (!forked) goReady();
  return status_name_of(status);
}

const char *tpde_last_error(void) { return error_text(); }

/* ---- one tensor ------------------------------------------------------- */

int32_t tpde_encode(tpde_handle *encoded, const void *base, uint64_t base_bytes, const void *target,
                    uint64_t target_bytes, uint32_t dtype, const uint64_t *shape, uint32_t ndim,
                    const tpde_encode_options *options) {
  return forked ? refuse()
                : goEncode(encoded, (void *)base, base_bytes, (void *)target, target_bytes, dtype, (uint64_t *)shape,
                           ndim, (tpde_encode_options *)options);
}

int32_t tpde_encoded_bytes(uint64_t *index_bytes, uint64_t *blob_bytes, tpde_handle encoded) {
  return forked ? refuse() : goEncodedBytes(index_bytes, blob_bytes, encoded);
}

int32_t tpde_encoded_copy(void *index, uint64_t index_cap, void *blob, uint64_t blob_cap, tpde_handle encoded) {
  return forked ? refuse() : goEncodedCopy(index, index_cap, blob, blob_cap, encoded);
}

int32_t tpde_encoded_free(tpde_handle encoded) { return forked ? refuse() : goEncodedFree(encoded); }

int32_t tpde_index_read(tpde_index_info *info, const void *index, uint64_t index_bytes) {
  return forked ? refuse() : goIndexRead(info, (void *)index, index_bytes);
}

int32_t tpde_index_records(void *dst, uint64_t dst_cap, const void *index, uint64_t index_bytes) {
  return forked ? refuse() : goIndexRecords(dst, dst_cap, (void *)index, index_bytes);
}

int32_t tpde_reconstruct(void *dst, uint64_t dst_cap, const void *base, uint64_t base_bytes, const void *index,
                         uint64_t index_bytes, const void *blob, uint64_t blob_bytes, uint32_t flags,
                         uint32_t workers) {
  return forked ? refuse()
                : goReconstruct(dst, dst_cap, (void *)base, base_bytes, (void *)index, index_bytes, (void *)blob,
                                blob_bytes, flags, workers);
}

int32_t tpde_scatter_add(void *dst, uint64_t dst_cap, const void *base, uint64_t base_bytes, uint32_t dtype,
                         const int64_t *indices, const void *values, uint64_t deltas, const int64_t *chunk_starts,
                         uint64_t num_chunks, uint32_t workers) {
  return forked ? refuse()
                : goScatterAdd(dst, dst_cap, (void *)base, base_bytes, dtype, (int64_t *)indices, (void *)values,
                               deltas, (int64_t *)chunk_starts, num_chunks, workers);
}

int32_t tpde_digest(uint8_t *dst, uint64_t dst_cap, const void *data, uint64_t data_bytes, uint32_t workers) {
  return forked ? refuse() : goDigest(dst, dst_cap, (void *)data, data_bytes, workers);
}

/* ---- GPUs ------------------------------------------------------------- */

int32_t tpde_device_search(const char *const *folders, uint32_t num_folders) {
  return forked ? refuse() : goDeviceSearch((char **)folders, num_folders);
}

int32_t tpde_device_info(tpde_handle *text) { return forked ? refuse() : goDeviceInfo(text); }

int32_t tpde_prepare(tpde_handle *prepared, const void *index, uint64_t index_bytes) {
  return forked ? refuse() : goPrepare(prepared, (void *)index, index_bytes);
}

int32_t tpde_prepared_image_bytes(uint64_t *bytes, tpde_handle prepared) {
  return forked ? refuse() : goPreparedImageBytes(bytes, prepared);
}

int32_t tpde_prepared_image(void *dst, uint64_t dst_cap, tpde_handle prepared) {
  return forked ? refuse() : goPreparedImage(dst, dst_cap, prepared);
}

int32_t tpde_prepared_free(tpde_handle prepared) { return forked ? refuse() : goPreparedFree(prepared); }

int32_t tpde_gpu_scratch_bytes(uint64_t *bytes, const tpde_gpu_item *items, uint32_t num_items) {
  return forked ? refuse() : goGPUScratchBytes(bytes, (tpde_gpu_item *)items, num_items);
}

/* Addresses of GPU memory reach Go as numbers: they are no pointers there. */

int32_t tpde_gpu_reconstruct(const tpde_gpu_item *items, uint32_t num_items, void *scratch, uint64_t scratch_bytes,
                             void *stream) {
  return forked ? refuse()
                : goGPUReconstruct((tpde_gpu_item *)items, num_items, (uintptr_t)scratch, scratch_bytes,
                                   (uintptr_t)stream);
}

int32_t tpde_gpu_verify(const tpde_gpu_item *items, uint32_t num_items, void *stream) {
  return forked ? refuse() : goGPUVerify((tpde_gpu_item *)items, num_items, (uintptr_t)stream);
}

int32_t tpde_gpu_scatter_add(void *dst, const void *base, uint64_t elements, uint32_t dtype, const int64_t *indices,
                             const void *values, uint64_t deltas, uint32_t *bad, void *stream) {
  return forked ? refuse()
                : goGPUScatterAdd((uintptr_t)dst, (uintptr_t)base, elements, dtype, (uintptr_t)indices,
                                  (uintptr_t)values, deltas, (uintptr_t)bad, (uintptr_t)stream);
}

int32_t tpde_gpu_quantised_linear(void *y, const void *x, uint64_t x_stride, uint64_t rows,
                                  const tpde_quantised *weight, uint64_t outs, uint64_t ins, const void *bias,
                                  void *stream) {
  return forked ? refuse()
                : goGPUQuantisedLinear((uintptr_t)y, (uintptr_t)x, x_stride, rows, (tpde_quantised *)weight, outs, ins,
                                       (uintptr_t)bias, (uintptr_t)stream);
}

int32_t tpde_gpu_dequantise(void *dst, const tpde_quantised *tensor, uint64_t elements, uint64_t first, uint64_t count,
                            void *stream) {
  return forked ? refuse()
                : goGPUDequantise((uintptr_t)dst, (tpde_quantised *)tensor, elements, first, count, (uintptr_t)stream);
}

/* ---- checkpoints ------------------------------------------------------ */

int32_t tpde_source_open(tpde_handle *source, const char *path) {
  return forked ? refuse() : goSourceOpen(source, (char *)path);
}

int32_t tpde_source_open_base(tpde_handle *source, const char *folder) {
  return forked ? refuse() : goSourceOpenBase(source, (char *)folder);
}

int32_t tpde_source_new(tpde_handle *source, const char *label) {
  return forked ? refuse() : goSourceNew(source, (char *)label);
}

int32_t tpde_source_add(tpde_handle source, const char *name, uint32_t dtype, const uint64_t *shape, uint32_t ndim,
                        const void *data, uint64_t data_bytes) {
  return forked ? refuse()
                : goSourceAdd(source, (char *)name, dtype, (uint64_t *)shape, ndim, (void *)data, data_bytes);
}

int32_t tpde_source_apply(tpde_handle *source, tpde_handle base, const char *const *deltas, uint32_t num_deltas) {
  return forked ? refuse() : goSourceApply(source, base, (char **)deltas, num_deltas);
}

int32_t tpde_source_manifest(tpde_handle *text, tpde_handle source) {
  return forked ? refuse() : goSourceManifest(text, source);
}

int32_t tpde_source_read(void *dst, uint64_t dst_cap, tpde_handle source, const char *name, uint32_t workers) {
  return forked ? refuse() : goSourceRead(dst, dst_cap, source, (char *)name, workers);
}

int32_t tpde_parts_open(tpde_handle *parts, tpde_handle source) { return forked ? refuse() : goPartsOpen(parts, source); }

int32_t tpde_parts_list(tpde_handle *text, tpde_handle parts) { return forked ? refuse() : goPartsList(text, parts); }

int32_t tpde_parts_gather(void *dst, uint64_t dst_cap, tpde_handle parts, const tpde_span *spans, uint64_t num_spans,
                          uint32_t workers) {
  return forked ? refuse() : goPartsGather(dst, dst_cap, parts, (tpde_span *)spans, num_spans, workers);
}

int32_t tpde_parts_free(tpde_handle parts) { return forked ? refuse() : goPartsFree(parts); }

int32_t tpde_source_free(tpde_handle source) { return forked ? refuse() : goSourceFree(source); }

/* ---- jobs and texts --------------------------------------------------- */

int32_t tpde_pack_start(tpde_handle *job, tpde_handle base, tpde_handle target, const char *out_path,
                        const char *options) {
  return forked ? refuse() : goPackStart(job, base, target, (char *)out_path, (char *)options);
}

int32_t tpde_compress_start(tpde_handle *job, tpde_handle target, const char *out_path, const char *options) {
  return forked ? refuse() : goCompressStart(job, target, (char *)out_path, (char *)options);
}

int32_t tpde_unpack_start(tpde_handle *job, tpde_handle base, const char *const *deltas, uint32_t num_deltas,
                          const char *out_path, const char *options) {
  return forked ? refuse()
                : goUnpackStart(job, base, (char **)deltas, num_deltas, (char *)out_path, (char *)options);
}

int32_t tpde_unpack_supplied_start(tpde_handle *job, tpde_handle base, const char *const *deltas, uint32_t num_deltas,
                                   const char *out_path, const char *options) {
  return forked ? refuse()
                : goUnpackSuppliedStart(job, base, (char **)deltas, num_deltas, (char *)out_path, (char *)options);
}

int32_t tpde_job_supply(tpde_handle job, const char *name, const void *data, uint64_t data_bytes) {
  return forked ? refuse() : goJobSupply(job, (char *)name, (void *)data, data_bytes);
}

int32_t tpde_verify_start(tpde_handle *job, tpde_handle base, const char *const *deltas, uint32_t num_deltas,
                          tpde_handle target, const char *options) {
  return forked ? refuse() : goVerifyStart(job, base, (char **)deltas, num_deltas, target, (char *)options);
}

int32_t tpde_job_wait(uint64_t *done_bytes, uint64_t *total_bytes, tpde_handle job, uint32_t timeout_ms) {
  return forked ? refuse() : goJobWait(done_bytes, total_bytes, job, timeout_ms);
}

int32_t tpde_job_cancel(tpde_handle job) { return forked ? refuse() : goJobCancel(job); }

int32_t tpde_job_report(tpde_handle *text, tpde_handle job) { return forked ? refuse() : goJobReport(text, job); }

int32_t tpde_job_free(tpde_handle job) { return forked ? refuse() : goJobFree(job); }

int32_t tpde_inspect(tpde_handle *text, const char *path) {
  return forked ? refuse() : goInspect(text, (char *)path);
}

int32_t tpde_text_bytes(uint64_t *bytes, tpde_handle text) { return forked ? refuse() : goTextBytes(bytes, text); }

int32_t tpde_text_copy(char *dst, uint64_t dst_cap, tpde_handle text) {
  return forked ? refuse() : goTextCopy(dst, dst_cap, text);
}

int32_t tpde_text_free(tpde_handle text) { return forked ? refuse() : goTextFree(text); }
