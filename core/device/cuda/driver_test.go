package cuda

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/status"
)

func TestNoDriver(t *testing.T) {
	d, err := Open()
	if err == nil {
		t.Skipf("this machine has a driver for CUDA %d", d.Version)
	}
	if !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "install an NVIDIA driver") {
		t.Errorf("got %v", err)
	}
}

// A driver that lacks a function is too old, and is told by its path.
func TestOldDriver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libcuda.so.1")
	dltest.Build(t, path, "int cuInit(unsigned flags) { return 0; }")
	_, err := OpenFile(path)
	if !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "cuDriverGetVersion") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
}

// What CUDA returns becomes the status that says whose fault it is.
func TestErrors(t *testing.T) {
	// Every function answers what it is asked for by its first argument.
	source := "int cuGetErrorName(int e, const char **s) { *s = e == 999 ? 0 : \"CUDA_ERROR_SOME\"; return e == 999; }\n" +
		"int cuGetErrorString(int e, const char **s) { *s = \"some text\"; return 0; }\n" +
		"int cuDriverGetVersion(int *v) { *v = 12040; return 0; }\n" +
		"int cuCtxPushCurrent_v2(void *c) { return (int)(long)c; }\n"
	for _, name := range strings.Fields("cuInit cuDeviceGetCount cuDeviceGet cuDeviceGetName cuDeviceGetAttribute cuDeviceGetPCIBusId cuDeviceTotalMem_v2 " +
		"cuDevicePrimaryCtxRetain cuCtxPopCurrent_v2 cuPointerGetAttribute cuModuleLoadData cuModuleGetFunction cuFuncSetAttribute cuLaunchKernel " +
		"cuMemsetD32Async cuMemAlloc_v2 cuMemFree_v2 cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuStreamCreate cuStreamDestroy_v2 cuStreamSynchronize") {
		source += "int " + name + "() { return 0; }\n"
	}
	path := filepath.Join(t.TempDir(), "fake.so")
	dltest.Build(t, path, source)
	d, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != 12040 || d.Path != path {
		t.Errorf("version %d at %s", d.Version, d.Path)
	}
	if d.CanLaunchEarly() {
		t.Error("launches early without cuLaunchKernelEx")
	}
	for code, want := range map[Context]error{
		1: status.ErrArgument, 2: status.ErrLimit, 100: status.ErrUnsupported, 209: status.ErrUnsupported, 700: status.ErrDevice, 999: status.ErrDevice,
	} {
		ran := false
		err := d.With(code, func() error { ran = true; return nil })
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "cuCtxPushCurrent: some text (") || ran {
			t.Errorf("%d: %v, expected %v", code, err, want)
		}
	}
	failed := errors.New("failed")
	if err := d.With(0, func() error { return failed }); err != failed {
		t.Errorf("got %v", err)
	}
}
