package nvcomp

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/status"
)

// declarations are what the fake library needs of nvCOMP's headers.
const declarations = `
#include <stddef.h>
#include <stdint.h>
typedef int nvcompStatus_t;
typedef void *cudaStream_t;
typedef struct { uint32_t version, cudart_version; } nvcompProperties_t;
typedef struct { int backend; char reserved[60]; } nvcompBatchedZstdDecompressOpts_t;
`

// body answers success only if every argument came as the test passes it.
const body = `
static int bad(nvcompBatchedZstdDecompressOpts_t o) {
  int sum = o.backend;
  for (int i = 0; i < 60; i++) sum |= o.reserved[i];
  return sum != 0;
}
nvcompStatus_t nvcompGetProperties(nvcompProperties_t *p) { p->version = VERSION; p->cudart_version = 13000; return 0; }
#if VERSION >= 6000
nvcompStatus_t nvcompBatchedZstdDecompressGetTempSize(size_t n, size_t chunk, nvcompBatchedZstdDecompressOpts_t o, size_t *out, size_t total, cudaStream_t stream) {
  if (stream != (cudaStream_t)99) return 17;
#else
nvcompStatus_t nvcompBatchedZstdDecompressGetTempSizeAsync(size_t n, size_t chunk, nvcompBatchedZstdDecompressOpts_t o, size_t *out, size_t total) {
#endif
  if (bad(o) || n != 3 || chunk != 65536 || total != 150000) return 10;
  *out = 12345;
  return 0;
}
nvcompStatus_t nvcompBatchedZstdDecompressAsync(const void *const *frames, const size_t *frame_bytes, const size_t *buffer_bytes, size_t *actual, size_t n, void *const temp, size_t temp_bytes, void *const *buffers, nvcompBatchedZstdDecompressOpts_t o, nvcompStatus_t *statuses, cudaStream_t stream) {
  if (bad(o) || n != 3 || temp_bytes != 12345) return 10;
  if ((size_t)frames != 1 || (size_t)frame_bytes != 2 || (size_t)buffer_bytes != 4 || (size_t)actual != 5) return 12;
  if ((size_t)buffers != 3 || (size_t)statuses != 6 || (size_t)temp != 7 || (size_t)stream != 99) return 13;
  return 0;
}
`

func fake(t *testing.T, version int, head string, options ...string) (*Library, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "libnvcomp.so.6")
	dltest.Build(t, path, head+body, append(options, fmt.Sprintf("-DVERSION=%d", version))...)
	l := library
	l.Files = []string{path}
	return open(&l)
}

func checkCalls(t *testing.T, n *Library) {
	t.Helper()
	if got, err := n.TempBytes(3, 65536, 150000, 99); got != 12345 || err != nil {
		t.Errorf("temporary memory: %d, %v", got, err)
	}
	b := Batch{Count: 3, Frames: 1, FrameBytes: 2, Buffers: 3, BufferBytes: 4, ActualBytes: 5, Statuses: 6, Temp: 7, TempBytes: 12345}
	if err := n.Decompress(&b, 99); err != nil {
		t.Error(err)
	}
	b.Count = 4
	if err := n.Decompress(&b, 99); !errors.Is(err, status.ErrInternal) || !strings.Contains(err.Error(), "invalid value (nvCOMP status 10)") {
		t.Errorf("a refused batch: %v", err)
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[int]string{5100: "5.1.0", 5300: "5.3.0", 6000: "6.0.0", 6102: "6.1.2"} {
		n, err := fake(t, version, declarations)
		if err != nil {
			t.Fatal(err)
		}
		if n.Version() != want {
			t.Errorf("%d is version %s, expected %s", version, n.Version(), want)
		}
		checkCalls(t, n)
	}
	for _, version := range []int{2600, 4200, 5000, 7000} {
		_, err := fake(t, version, declarations)
		name := fmt.Sprintf("nvCOMP %d.%d.0", version/1000, version%1000/100)
		if !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "pip install") {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// wheel returns the folder of an installed nvCOMP.
func wheel(t *testing.T) (folder, root string) {
	t.Helper()
	for _, root := range dltest.SitePackages(t) {
		folder := filepath.Join(root, "nvidia", "libnvcomp")
		if _, err := os.Stat(folder); err == nil {
			return folder, root
		}
	}
	t.Skip("no site-packages folder of TPDE_SITE_PACKAGES has nvidia-libnvcomp-cu13 or -cu12")
	return "", ""
}

// TestHeaders builds the fake library with NVIDIA's own declarations, so that
// the compiler compares the signatures.
func TestHeaders(t *testing.T) {
	folder, _ := wheel(t)
	// All that nvCOMP's headers want of CUDA's.
	cuda := t.TempDir()
	if err := os.WriteFile(filepath.Join(cuda, "cuda_runtime.h"), []byte("typedef struct CUstream_st *cudaStream_t;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	version := 6000
	if _, err := os.Stat(filepath.Join(folder, "lib64", "libnvcomp.so.6")); err != nil {
		version = 5300
	}
	n, err := fake(t, version, "#include <stddef.h>\n#include <nvcomp/zstd.h>\n", "-I"+filepath.Join(folder, "include"), "-I"+cuda)
	if err != nil {
		t.Fatal(err)
	}
	checkCalls(t, n)
}

func TestWheel(t *testing.T) {
	_, root := wheel(t)
	dl.SetSearch([]string{root})
	n, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(n.Path, root) || n.Major < 5 {
		t.Errorf("version %s at %s", n.Version(), n.Path)
	}
}
