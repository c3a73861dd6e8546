/*
 * tpde.h - the C ABI of TPDE: lossless, compressed deltas of model weights.
 *
 * Conventions
 *   - Every function returns a status (tpde_status.h): TPDE_OK or what failed.
 *     tpde_last_error() then says more, for the calling thread.
 *   - Results come first: (dst, dst_cap, src, src_bytes). Sizes are uint64_t
 *     and count bytes unless the name says otherwise.
 *   - Handles are opaque, never 0, never given twice, and freed once by the
 *     matching _free. A source cannot be freed while a call, a running job or a
 *     source made from it (tpde_source_apply) uses it: TPDE_ARGUMENT, and the
 *     handle stays valid.
 *   - No pointer is kept after a call returns, with one exception:
 *     tpde_source_add.
 *   - Calls are safe from any thread. In the child of a process that had loaded
 *     the library when it forked, every function that returns a status returns
 *     TPDE_FORKED.
 *   - Strings are UTF-8 and end with a zero byte.
 */
#ifndef TPDE_H
#define TPDE_H

#include <stdint.h>

#include "tpde_status.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TPDE_ABI_VERSION 1
#define TPDE_RELEASE "0.1.0"

typedef uint64_t tpde_handle;

/* ---- library ---------------------------------------------------------- */

/* Returns TPDE_ABI_VERSION of the library. */
uint32_t tpde_abi_version(void);
/* Returns the TPDE_RELEASE of the library. Static storage. */
const char *tpde_version(void);
/* Returns the name of a status, e.g. "base_mismatch". Static storage. */
const char *tpde_status_name(int32_t status);
/* Returns the text of the last failure on this thread, "" if there was none.
 * Valid until the next failing call on this thread. */
const char *tpde_last_error(void);

/* ---- one tensor ------------------------------------------------------- */

#define TPDE_MAX_DIMS 32

typedef struct {
  uint32_t struct_bytes;  /* sizeof(tpde_encode_options) */
  uint32_t codec;         /* 0 auto, 1 raw, 2 zstd, 3 elias */
  uint32_t residual;      /* 0 bit, 1 add */
  uint32_t level;         /* 0 default, 1 fast, 2 small */
  uint32_t workers;       /* 0: every core */
  uint32_t reserved;      /* 0 */
  uint64_t num_chunks;    /* 0: the codec decides */
  uint64_t chunk_words;   /* 0: the codec decides */
} tpde_encode_options;

typedef struct {
  uint32_t struct_bytes; /* sizeof(tpde_index_info), set by the caller */
  uint32_t dtype;        /* as in core/container/FORMAT.md */
  uint32_t codec;
  uint32_t residual;
  uint32_t has_base;     /* 0: coded against nothing */
  uint32_t ndim;
  uint64_t shape[TPDE_MAX_DIMS]; /* elements */
  uint64_t words;
  uint64_t target_bytes;
  uint64_t blob_bytes;
  uint64_t chunks;
  uint64_t deltas;       /* words stored */
  uint8_t base_digest[16];
  uint8_t target_digest[16];
} tpde_index_info;

/* Packs target (target_bytes at target) against base, or against nothing if
 * base is NULL. dtype: number as in FORMAT.md; shape: ndim sizes in elements.
 * options may be NULL. The result is freed with tpde_encoded_free. */
int32_t tpde_encode(tpde_handle *encoded, const void *base, uint64_t base_bytes,
                    const void *target, uint64_t target_bytes, uint32_t dtype,
                    const uint64_t *shape, uint32_t ndim,
                    const tpde_encode_options *options);
int32_t tpde_encoded_bytes(uint64_t *index_bytes, uint64_t *blob_bytes, tpde_handle encoded);
int32_t tpde_encoded_copy(void *index, uint64_t index_cap, void *blob, uint64_t blob_cap,
                          tpde_handle encoded);
int32_t tpde_encoded_free(tpde_handle encoded);

/* Validates an index and fills info. */
int32_t tpde_index_read(tpde_index_info *info, const void *index, uint64_t index_bytes);
/* Writes the flat chunk records, 32 bytes each (see FORMAT.md). */
int32_t tpde_index_records(void *dst, uint64_t dst_cap, const void *index, uint64_t index_bytes);

#define TPDE_SKIP_BASE_DIGEST 1u
#define TPDE_SKIP_TARGET_DIGEST 2u

/* Rebuilds a tensor into dst. base is NULL where the index has none; dst may
 * be base (in place). A wrong base is refused before dst is touched. */
int32_t tpde_reconstruct(void *dst, uint64_t dst_cap, const void *base, uint64_t base_bytes,
                         const void *index, uint64_t index_bytes, const void *blob,
                         uint64_t blob_bytes, uint32_t flags, uint32_t workers);

/* dst = base with values[i] added at element indices[i], in the arithmetic of
 * dtype, as torch.Tensor.scatter_add_ does on unique indices. chunk_starts has
 * num_chunks + 1 entries: chunk c covers deltas chunk_starts[c] up to
 * chunk_starts[c + 1]. Within the tensor indices must be strictly increasing
 * (so they are unique). dst may be base. Nothing is written on bad input. */
int32_t tpde_scatter_add(void *dst, uint64_t dst_cap, const void *base, uint64_t base_bytes,
                         uint32_t dtype, const int64_t *indices, const void *values,
                         uint64_t deltas, const int64_t *chunk_starts, uint64_t num_chunks,
                         uint32_t workers);

/* Content digest of a tensor (16 bytes), see core/digest. */
int32_t tpde_digest(uint8_t *dst, uint64_t dst_cap, const void *data, uint64_t data_bytes,
                    uint32_t workers);

/* ---- GPUs ------------------------------------------------------------- */

/* Sets the folders (site-packages of Python) in which wheels bring NVRTC and nvCOMP, before the
 * first call that needs them; libraries of the system are found without. */
int32_t tpde_device_search(const char *const *folders, uint32_t num_folders);
/* What is found on this machine, as a text (JSON): {"driver", "gpus": [{"name",
 * "compute_capability", "memory_total", "memory_free", "pcie"}, ...], "nvrtc", "nvcomp", "nvml"},
 * libraries as {"found", "version", "path", "error"}. Missing ones are no failure. */
int32_t tpde_device_info(tpde_handle *text);

/* Makes a packed tensor ready for GPUs: validates the index and expands it to the image, which a
 * GPU reads beside the blob. Needs no GPU. Freed with tpde_prepared_free; not while a call uses it. */
int32_t tpde_prepare(tpde_handle *prepared, const void *index, uint64_t index_bytes);
int32_t tpde_prepared_image_bytes(uint64_t *bytes, tpde_handle prepared);
int32_t tpde_prepared_image(void *dst, uint64_t dst_cap, tpde_handle prepared);
int32_t tpde_prepared_free(tpde_handle prepared);

/* base is the descriptor of a quantised base (128 bytes, aligned to 8; core/quant/FORMAT.md,
 * "Descriptor") of as many elements as the tensor has: F16, BF16 or F32 with the bit residual. The
 * parts that it points to are memory of the same GPU, none of it in dst. */
#define TPDE_GPU_QUANTISED_BASE 1u
/* tpde_gpu_verify, or the CPU, found no damage in blob, and it has not changed since: zstd is then
 * decompressed without a check. Others are never checked by tpde_gpu_reconstruct. */
#define TPDE_GPU_VERIFIED_BLOB 2u

/* One tensor to rebuild. Pointers but prepared are of one GPU, and what they point to must stay
 * until the stream has run what was launched. Sizes are what the index says: nothing is passed
 * that could be compared with them. */
typedef struct {
  tpde_handle prepared;
  const void *base;   /* NULL where the index has none; aligned to the word */
  void *dst;          /* may be base; aligned to the word */
  const void *blob;   /* aligned to 8 bytes */
  const void *image;  /* a copy of tpde_prepared_image, aligned to 16 bytes */
  uint32_t *status;   /* one for each chunk, all written: TPDE_OK, TPDE_CORRUPT or TPDE_CHECKSUM */
  uint64_t flags;     /* 0, or TPDE_GPU_... together */
  uint64_t reserved;  /* 0 */
} tpde_gpu_item;

/* Rebuilds tensors, all on one GPU, on a stream (a CUstream; NULL: the default stream), without
 * waiting for it. A failed chunk leaves undefined words in its own part of dst. scratch: GPU memory
 * of tpde_gpu_scratch_bytes bytes, aligned to 256. The first call that needs a kernel compiles it;
 * later ones can be captured in a CUDA graph. */
int32_t tpde_gpu_scratch_bytes(uint64_t *bytes, const tpde_gpu_item *items, uint32_t num_items);
int32_t tpde_gpu_reconstruct(const tpde_gpu_item *items, uint32_t num_items, void *scratch,
                             uint64_t scratch_bytes, void *stream);
/* Compares the checksums of all chunks and writes status; base and dst are not used. */
int32_t tpde_gpu_verify(const tpde_gpu_item *items, uint32_t num_items, void *stream);
/* tpde_scatter_add on a GPU, for F16, BF16, F32 and F64. bad: on the GPU, set to 0 by the caller
 * and to 1 by the kernel if indices are out of range or not strictly increasing; the sums that
 * they name are left out. */
int32_t tpde_gpu_scatter_add(void *dst, const void *base, uint64_t elements, uint32_t dtype,
                             const int64_t *indices, const void *values, uint64_t deltas,
                             uint32_t *bad, void *stream);

/* A quantised tensor on a GPU (core/quant/FORMAT.md). Pointers are of its memory. */
typedef struct {
  const void *packed;   /* codes, aligned to 4 bytes */
  const void *scale;    /* aligned to its words */
  const void *zero;     /* NULL: none */
  const void *code;     /* 16 floats; NULL unless kind is 2 */
  uint64_t group;       /* elements that share a scale, at least 8 */
  uint32_t kind;        /* 1 linear, 2 code book, 3 int8 rows */
  uint32_t bits;        /* of a code */
  uint32_t scale_dtype; /* F32, F16 or BF16, as in core/container/FORMAT.md */
  uint32_t dtype;       /* that elements are rounded to, likewise */
} tpde_quantised;

/* y = x * transpose(weight) + bias for few rows of x: weight is read once for 8 rows, and never
 * written down. weight is [outs, ins]; x, y and bias have its dtype: x is [rows, ins], its rows
 * x_stride elements apart; y [rows, outs], contiguous; bias [outs], or NULL. Sums are float32, in an
 * order that depends on the sizes alone. Fastest if x and packed are aligned to 16 bytes, groups of 32
 * or more codes lie within rows, and rows of codes are whole 16 bytes (48 with 3 bits). */
int32_t tpde_gpu_quantised_linear(void *y, const void *x, uint64_t x_stride, uint64_t rows,
                                  const tpde_quantised *weight, uint64_t outs, uint64_t ins,
                                  const void *bias, void *stream);
/* dst = elements first up to first + count of a quantised tensor of so many elements, bit for bit as
 * FORMAT.md says. dst is aligned to 16 bytes. */
int32_t tpde_gpu_dequantise(void *dst, const tpde_quantised *tensor, uint64_t elements,
                            uint64_t first, uint64_t count, void *stream);

/* ---- checkpoints ------------------------------------------------------ */

/* Opens a safetensors file or a folder of them. Files are mapped, not read. */
int32_t tpde_source_open(tpde_handle *source, const char *path);
/* Opens the base of a compressed model (tpde_compress_start): a folder whose delta, the file
 * residual.safetensors in it, applies to this source. Its quantised tensors read as what their codes
 * stand for. A model without a base gives an empty source. */
int32_t tpde_source_open_base(tpde_handle *source, const char *folder);
/* Starts an empty source in memory; label names it in messages. */
int32_t tpde_source_new(tpde_handle *source, const char *label);
/* Adds a tensor. data must stay valid and unchanged until tpde_source_free. */
int32_t tpde_source_add(tpde_handle source, const char *name, uint32_t dtype,
                        const uint64_t *shape, uint32_t ndim, const void *data,
                        uint64_t data_bytes);
/* Opens the checkpoint that deltas (num_deltas paths, applied in order) make of base: a source
 * whose tensors are rebuilt when they are read. base must outlive it. */
int32_t tpde_source_apply(tpde_handle *source, tpde_handle base, const char *const *deltas,
                          uint32_t num_deltas);
/* A text (JSON) that lists the tensors of a source: {"tensors": [{"name", "dtype", "shape",
 * "bytes"}, ...]} in file order. Freed with tpde_text_free. */
int32_t tpde_source_manifest(tpde_handle *text, tpde_handle source);
/* Reads (or rebuilds, with checks) one tensor. */
int32_t tpde_source_read(void *dst, uint64_t dst_cap, tpde_handle source, const char *name,
                         uint32_t workers);
int32_t tpde_source_free(tpde_handle source);

/* Bytes of a part, and where they go. */
typedef struct {
  uint64_t part;
  uint64_t offset; /* first byte, in the part */
  uint64_t bytes;
  uint64_t to;     /* first byte, in the destination */
} tpde_span;

/* What the tensors of a source are made of, for who rebuilds them on a GPU. The source stays in use
 * until tpde_parts_free. */
int32_t tpde_parts_open(tpde_handle *parts, tpde_handle source);
/* A text (JSON), in file order: {"tensors": [{"name", "dtype", "shape", "bytes", "same_as", "base":
 * {"part", "bytes"}, "layers": [{"delta", "index": {"part", "bytes"}, "blob": {"part", "bytes"}},
 * ...]}, ...]}. A tensor with "same_as" has the bytes of that one. Others start from the bytes of
 * "base" (null: from nothing), to which the layers are applied in order (tpde_reconstruct). Instead
 * of "base" there may be "quantised", {"kind", "bits", "group_size", "scale_dtype", "packed",
 * "scale", "zero", "code"}, the last four parts or null (core/quant/FORMAT.md): they start from what
 * that stands for. Parts of it are not compared with digests. */
int32_t tpde_parts_list(tpde_handle *text, tpde_handle parts);
/* Copies spans to dst, on up to workers cores (0: all). Spans of a "base" begin and end on
 * pages of 4096 bytes, or at its end; the call that copies its last page compares its digest with
 * what the delta expects: TPDE_BASE_MISMATCH, or TPDE_TARGET_MISMATCH for what the delta stores. */
int32_t tpde_parts_gather(void *dst, uint64_t dst_cap, tpde_handle parts, const tpde_span *spans,
                          uint64_t num_spans, uint32_t workers);
int32_t tpde_parts_free(tpde_handle parts);

/* Long operations run as jobs, so that the caller keeps its thread: start, wait in small steps,
 * read the report, free. options: JSON object or NULL, keys as in tpde/_api.py; unknown keys are
 * refused. The report is a text (JSON). Sources must outlive the job. */
int32_t tpde_pack_start(tpde_handle *job, tpde_handle base, tpde_handle target, const char *out_path,
                        const char *options);
/* Writes target as a compressed model, a folder: a quantised base, derived from target or copied from
 * elsewhere, and the delta to it. core/checkpoint/FORMAT.md, "Compressed models". */
int32_t tpde_compress_start(tpde_handle *job, tpde_handle target, const char *out_path, const char *options);
int32_t tpde_unpack_start(tpde_handle *job, tpde_handle base, const char *const *deltas,
                          uint32_t num_deltas, const char *out_path, const char *options);
/* tpde_unpack_start for who rebuilds tensors on a GPU: every tensor that has layers (tpde_parts_list)
 * is given with tpde_job_supply, in that order. Files are proven with SHA-256 all the same. */
int32_t tpde_unpack_supplied_start(tpde_handle *job, tpde_handle base, const char *const *deltas,
                                   uint32_t num_deltas, const char *out_path, const char *options);
/* Gives the next tensor and waits until data is needed no more, or the job fails: then its failure. */
int32_t tpde_job_supply(tpde_handle job, const char *name, const void *data, uint64_t data_bytes);
/* Checks that deltas apply to base and give a target with the recorded digests, writing nothing;
 * target may be 0, else its tensors are compared too. */
int32_t tpde_verify_start(tpde_handle *job, tpde_handle base, const char *const *deltas,
                          uint32_t num_deltas, tpde_handle target, const char *options);
/* Waits up to timeout_ms. TPDE_PENDING while it runs; then TPDE_OK or the failure of the job.
 * done_bytes and total_bytes (may be NULL) tell the progress. */
int32_t tpde_job_wait(uint64_t *done_bytes, uint64_t *total_bytes, tpde_handle job, uint32_t timeout_ms);
/* Asks the job to stop; it then fails with TPDE_CANCELED and leaves no files. */
int32_t tpde_job_cancel(tpde_handle job);
/* The report of a job that succeeded. Freed with tpde_text_free. */
int32_t tpde_job_report(tpde_handle *text, tpde_handle job);
/* Cancels the job if it still runs, waits for its end and frees it. */
int32_t tpde_job_free(tpde_handle job);

/* What a delta file, or the folder of a compressed model, holds, as a text (JSON): see tpde.inspect. */
int32_t tpde_inspect(tpde_handle *text, const char *path);

int32_t tpde_text_bytes(uint64_t *bytes, tpde_handle text);
int32_t tpde_text_copy(char *dst, uint64_t dst_cap, tpde_handle text);
int32_t tpde_text_free(tpde_handle text);

#ifdef __cplusplus
}
#endif

#endif /* TPDE_H */
