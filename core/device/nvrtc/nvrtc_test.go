package nvrtc

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/status"
)

func compiler(t *testing.T) *Compiler {
	t.Helper()
	dl.SetSearch(dltest.SitePackages(t))
	c, err := Open(0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var sample = Source{
	Name:    "sample.cu",
	Text:    "#include \"sample.cuh\"\nextern \"C\" __global__ void twice(WORD *p) { p[threadIdx.x] *= kFactor; }\n",
	Headers: map[string]string{"sample.cuh": "const int kFactor = 2;\n"},
	Options: []string{"-DWORD=unsigned"},
}

func TestCompile(t *testing.T) {
	c := compiler(t)
	if c.Major < oldest || c.Major > newest {
		t.Errorf("version %s", c.Version())
	}
	cubin, err := c.Compile(sample, "sm_90")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(cubin, []byte("\x7fELF")) || !bytes.Contains(cubin, []byte("twice")) {
		t.Errorf("%d bytes are no cubin with the kernel", len(cubin))
	}
	again, err := c.Compile(sample, "sm_90")
	if err != nil || !bytes.Equal(cubin, again) {
		t.Errorf("compiling twice gives different code (%v)", err)
	}
	ptx, err := c.Compile(sample, "compute_90")
	if err != nil || !bytes.Contains(ptx, []byte(".entry twice")) || !bytes.HasSuffix(ptx, []byte{0}) {
		t.Errorf("no PTX: %v", err)
	}
}

func TestErrorHasLog(t *testing.T) {
	c := compiler(t)
	bad := sample
	bad.Headers = nil
	_, err := c.Compile(bad, "sm_90")
	if !errors.Is(err, status.ErrInternal) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{"sample.cu", "sample.cuh", "-DWORD=unsigned", "sm_90"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
}

func TestTarget(t *testing.T) {
	c := &Compiler{archs: []int{75, 80, 90, 120}}
	for capability, want := range map[int]string{75: "sm_75", 90: "sm_90", 89: "compute_80", 130: "compute_120"} {
		if got, err := c.Target(capability); got != want || err != nil {
			t.Errorf("%d: got %s, %v, expected %s", capability, got, err, want)
		}
	}
	if _, err := c.Target(70); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("70: %v", err)
	}
}

func TestOldDriver(t *testing.T) {
	if _, err := Open(11); !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "update the NVIDIA driver") {
		t.Errorf("got %v", err)
	}
}
