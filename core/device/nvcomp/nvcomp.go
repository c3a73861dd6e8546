// Package nvcomp calls NVIDIA's nvCOMP to decompress batches of zstd frames on
// a GPU.
//
// nvCOMP changes its ABI between major versions under the same function names.
// So the version is asked for before anything else is looked up, and only
// versions whose headers were read are accepted:
//
//	5.1 to 5.3  nvcompBatchedZstdDecompressGetTempSizeAsync, without a stream
//	6.x         nvcompBatchedZstdDecompressGetTempSize, with a stream
//
// nvcompBatchedZstdDecompressAsync and its options are the same in both.
//
// Corrupt input is undefined behaviour of nvCOMP, up to a GPU that hangs: only
// verified frames may be given to it.
package nvcomp

/*
#include <stddef.h>
#include <stdint.h>

// nvcompBatchedZstdDecompressOpts_t, passed by value. Zero is the default
// backend; what is reserved must be zero.
typedef struct {
  int backend;
  char reserved[60];
} options;
_Static_assert(sizeof(options) == 64, "nvCOMP 5 and 6");

typedef struct {
  uint32_t version, cudart_version;
} properties;

static int call_properties(void *f, uint32_t *version, uint32_t *cudart) {
  properties p = {0, 0};
  int result = ((int (*)(properties *))f)(&p);
  *version = p.version, *cudart = p.cudart_version;
  return result;
}

static int call_temp_5(void *f, size_t chunks, size_t chunk_bytes, size_t total_bytes, size_t *out) {
  options o = {0, {0}};
  return ((int (*)(size_t, size_t, options, size_t *, size_t))f)(chunks, chunk_bytes, o, out, total_bytes);
}

static int call_temp_6(void *f, size_t chunks, size_t chunk_bytes, size_t total_bytes, size_t *out, uintptr_t stream) {
  options o = {0, {0}};
  return ((int (*)(size_t, size_t, options, size_t *, size_t, void *))f)(chunks, chunk_bytes, o, out, total_bytes,
                                                                         (void *)stream);
}

static int call_decompress(void *f, uintptr_t frames, uintptr_t frame_bytes, uintptr_t buffer_bytes,
                           uintptr_t actual_bytes, size_t chunks, uintptr_t temp, size_t temp_bytes, uintptr_t buffers,
                           uintptr_t statuses, uintptr_t stream) {
  options o = {0, {0}};
  return ((int (*)(const void *const *, const size_t *, const size_t *, size_t *, size_t, void *, size_t, void *const *,
                   options, int *, void *))f)((const void *const *)frames, (const size_t *)frame_bytes,
                                              (const size_t *)buffer_bytes, (size_t *)actual_bytes, chunks,
                                              (void *)temp, temp_bytes, (void *const *)buffers, o, (int *)statuses,
                                              (void *)stream);
}
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/status"
)

var library = dl.Library{
	Title:   "nvCOMP",
	Files:   []string{"libnvcomp.so.6", "libnvcomp.so.5"},
	Folders: []string{"nvidia/libnvcomp/lib64"},
	Install: "pip install nvidia-libnvcomp-cu13 (CUDA 13) or nvidia-libnvcomp-cu12 (CUDA 12)",
}

// Alignment in bytes that nvCOMP wants of frames, buffers and temporary memory.
const Alignment = 8

// StatusSuccess is what nvCOMP writes to the status of a good frame.
const StatusSuccess = 0

// Library is an open nvCOMP.
type Library struct {
	Major, Minor, Patch int
	Path                string

	tempSize, decompress unsafe.Pointer
}

var lazy dl.Lazy[Library]

// Open opens nvCOMP, once.
func Open() (*Library, error) {
	return lazy.Get(func() (*Library, error) { return open(&library) })
}

// OpenFile opens nvCOMP, or what tests take for it, from a file.
func OpenFile(path string) (*Library, error) {
	l := library
	l.Files = []string{path}
	return open(&l)
}

func open(l *dl.Library) (*Library, error) {
	h, err := l.Open()
	if err != nil {
		return nil, err
	}
	ask, err := h.Symbol("nvcompGetProperties")
	if err != nil {
		return nil, err
	}
	var version, cudart C.uint32_t
	if result := C.call_properties(ask, &version, &cudart); result != 0 {
		return nil, failed("nvcompGetProperties", result)
	}
	n := &Library{Major: int(version) / 1000, Minor: int(version) % 1000 / 100, Patch: int(version) % 100, Path: h.Path}
	temp := "nvcompBatchedZstdDecompressGetTempSize"
	switch {
	case n.Major == 5 && n.Minor >= 1:
		temp += "Async"
	case n.Major == 6:
	default:
		return nil, status.Errorf(status.ErrUnsupported, "nvCOMP %s at %s, expected 5.1 to 5.3 or 6.x, whose interfaces are known: %s", n.Version(), n.Path, l.Install)
	}
	err = h.Symbols(map[string]*unsafe.Pointer{temp: &n.tempSize, "nvcompBatchedZstdDecompressAsync": &n.decompress})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Version returns the version in the form 6.0.0.
func (n *Library) Version() string { return fmt.Sprintf("%d.%d.%d", n.Major, n.Minor, n.Patch) }

// statusNames are nvcompStatus_t of nvCOMP 6; the numbers of 5 are the same.
var statusNames = map[C.int]string{
	10: "invalid value", 11: "not supported", 12: "cannot decompress", 13: "bad checksum", 14: "cannot verify checksums",
	15: "output buffer too small", 16: "wrong header length", 17: "alignment", 18: "chunk size too large",
	19: "cannot compress", 20: "wrong input length", 21: "batch size too large", 1000: "CUDA error", 10000: "internal error",
}

func failed(call string, result C.int) error {
	name, ok := statusNames[result]
	if !ok {
		name = "unknown status"
	}
	return status.Errorf(status.ErrInternal, "%s: %s (nvCOMP status %d)", call, name, int(result))
}

// TempBytes returns the size of the temporary memory for frames of at most
// maxBytes each, totalBytes together, uncompressed. It does not touch the
// stream.
func (n *Library) TempBytes(frames, maxBytes, totalBytes uint64, stream uintptr) (uint64, error) {
	var out C.size_t
	var result C.int
	if n.Major == 5 {
		result = C.call_temp_5(n.tempSize, C.size_t(frames), C.size_t(maxBytes), C.size_t(totalBytes), &out)
	} else {
		result = C.call_temp_6(n.tempSize, C.size_t(frames), C.size_t(maxBytes), C.size_t(totalBytes), &out, C.uintptr_t(stream))
	}
	if result != 0 {
		return 0, failed("nvcompBatchedZstdDecompressGetTempSize", result)
	}
	return uint64(out), nil
}

// Batch is a list of zstd frames to decompress. Every address is of device
// memory; the arrays have one entry a frame.
type Batch struct {
	Count       uint64
	Frames      uintptr // array of pointers to frames
	FrameBytes  uintptr // array of uint64
	Buffers     uintptr // array of pointers to the buffers to decompress to
	BufferBytes uintptr // array of uint64
	ActualBytes uintptr // array of uint64 that is written
	Statuses    uintptr // array of uint32 that is written: StatusSuccess or an error
	Temp        uintptr
	TempBytes   uint64 // as TempBytes says
}

// Decompress launches the decompression of verified frames on a stream, in the
// current context.
func (n *Library) Decompress(b *Batch, stream uintptr) error {
	result := C.call_decompress(n.decompress, C.uintptr_t(b.Frames), C.uintptr_t(b.FrameBytes), C.uintptr_t(b.BufferBytes),
		C.uintptr_t(b.ActualBytes), C.size_t(b.Count), C.uintptr_t(b.Temp), C.size_t(b.TempBytes), C.uintptr_t(b.Buffers),
		C.uintptr_t(b.Statuses), C.uintptr_t(stream))
	if result != 0 {
		return failed("nvcompBatchedZstdDecompressAsync", result)
	}
	return nil
}
