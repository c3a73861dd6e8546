// Package cuda calls the CUDA driver: the few functions that the engine needs,
// looked up in libcuda.so.1 when the program runs.
//
// Errors name the call and carry CUDA's own name and text. Functions that work
// on the current context need the calling goroutine locked to its thread
// (runtime.LockOSThread), since that is where CUDA keeps it.
package cuda

import (
	"runtime"
	"unsafe"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/status"
)

/*
#include <stdlib.h>

#include "calls.h"
*/
import "C"

var library = dl.Library{
	Title:   "the NVIDIA driver (libcuda)",
	Files:   []string{"libcuda.so.1"},
	Install: "install an NVIDIA driver; in a container, start it with the GPU (docker run --gpus all)",
}

// Handles of the driver.
type (
	Context  uintptr
	Module   uintptr
	Function uintptr
	Stream   uintptr // 0 is the legacy default stream
)

// Driver is the initialised driver.
type Driver struct {
	Version int // of the CUDA that the driver supports, as 1000*major + 10*minor
	Path    string
	calls   *C.cuda_calls // in C's memory: cgo would examine Go's at each call
}

// launchEarly came with CUDA 11.8, and graphs keep such launches as they are since 12.3;
// a driver may lack it.
const (
	launchEarly        = "cuLaunchKernelEx"
	launchEarlyVersion = 12030
)

// CanLaunchEarly says whether Launch can start thread blocks early.
func (d *Driver) CanLaunchEarly() bool {
	return d.calls.cuLaunchKernelEx != nil && d.Version >= launchEarlyVersion
}

var lazy dl.Lazy[Driver]

// Open loads and initialises the driver, once.
func Open() (*Driver, error) { return lazy.Get(func() (*Driver, error) { return open(&library) }) }

// OpenFile loads a driver from a file, for tests without a GPU.
func OpenFile(path string) (*Driver, error) {
	l := library
	l.Files = []string{path}
	return open(&l)
}

func open(l *dl.Library) (*Driver, error) {
	handle, err := l.Open()
	if err != nil {
		return nil, err
	}
	d := &Driver{Path: handle.Path, calls: (*C.cuda_calls)(C.calloc(1, C.sizeof_cuda_calls))}
	for i := C.size_t(0); ; i++ {
		name := C.cuda_call_name(i)
		if name == nil {
			break
		}
		if *C.cuda_call_slot(d.calls, i), err = handle.Symbol(C.GoString(name)); err != nil && C.GoString(name) != launchEarly {
			return nil, err
		}
	}
	if err := d.check("cuInit", C.cuda_call_init(d.calls)); err != nil {
		return nil, err
	}
	var version C.int
	if err := d.check("cuDriverGetVersion", C.cuda_call_driver_version(d.calls, &version)); err != nil {
		return nil, err
	}
	d.Version = int(version)
	return d, nil
}

// Results of CUDA that mean something else than a bug.
const (
	invalidValue       = 1
	outOfMemory        = 2
	stubLibrary        = 34
	noDevice           = 100
	invalidImage       = 200
	noBinaryForGPU     = 209
	unsupportedPTX     = 222
	systemNotReady     = 802
	driverMismatch     = 803
	compatNotSupported = 804
)

// check turns the result of a call into an error.
func (d *Driver) check(call string, result C.int) error {
	if result == 0 {
		return nil
	}
	sentinel := status.ErrDevice
	switch result {
	case invalidValue:
		sentinel = status.ErrArgument
	case outOfMemory:
		sentinel = status.ErrLimit
	case stubLibrary, noDevice, invalidImage, noBinaryForGPU, unsupportedPTX, systemNotReady, driverMismatch, compatNotSupported:
		sentinel = status.ErrUnsupported
	}
	return status.Errorf(sentinel, "%s: %s (%s, %d)", call, C.GoString(C.cuda_call_error_text(d.calls, result)), C.GoString(C.cuda_call_error_name(d.calls, result)), int(result))
}

// With runs f with the context current, and what was current before after it.
func (d *Driver) With(c Context, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := d.check("cuCtxPushCurrent", C.cuda_call_push(d.calls, C.uintptr_t(c))); err != nil {
		return err
	}
	err := f()
	if pop := d.check("cuCtxPopCurrent", C.cuda_call_pop(d.calls)); err == nil {
		err = pop
	}
	return err
}

// PointerDevice returns the ordinal of the device that a pointer belongs to.
func (d *Driver) PointerDevice(p uintptr) (int, error) {
	var ordinal C.int
	if err := d.check("cuPointerGetAttribute", C.cuda_call_pointer_device(d.calls, &ordinal, C.uint64_t(p))); err != nil {
		return 0, status.Errorf(status.ErrArgument, "%#x is not memory of a CUDA device: %v", p, err)
	}
	return int(ordinal), nil
}

// LoadModule loads a cubin, or PTX that ends in a zero byte, into the current context.
func (d *Driver) LoadModule(image []byte) (Module, error) {
	var m C.uintptr_t
	err := d.check("cuModuleLoadData", C.cuda_call_module_load(d.calls, &m, unsafe.Pointer(unsafe.SliceData(image))))
	return Module(m), err
}

// Function returns an entry point of a module.
func (d *Driver) Function(m Module, name string) (Function, error) {
	s := append([]byte(name), 0)
	var f C.uintptr_t
	err := d.check("cuModuleGetFunction("+name+")", C.cuda_call_module_function(d.calls, &f, C.uintptr_t(m), (*C.char)(unsafe.Pointer(&s[0]))))
	return Function(f), err
}

// AllowShared lets launches of f ask for up to n bytes of dynamic shared
// memory, for which the limit is 48 KiB without it, and has multiprocessors give
// to shared memory all that they can while f runs, rather than to their caches.
func (d *Driver) AllowShared(f Function, n int) error {
	for _, a := range [][2]int{
		{8, n},   // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
		{9, 100}, // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, per cent
	} {
		if err := d.check("cuFuncSetAttribute", C.cuda_call_function_attribute(d.calls, C.uintptr_t(f), C.int(a[0]), C.int(a[1]))); err != nil {
			return err
		}
	}
	return nil
}

// Launch starts a kernel whose arguments lie one behind the other in the given
// bytes, each aligned to its size. They are copied. Early: its thread blocks may
// start before what is in the stream has ended, and wait for it themselves (programmatic
// dependent launch), which needs CanLaunchEarly.
func (d *Driver) Launch(f Function, blocks, threads, sharedBytes uint32, s Stream, arguments unsafe.Pointer, bytes uintptr, early bool) error {
	var e C.int
	if early {
		e = 1
	}
	return d.check("cuLaunchKernel", C.cuda_call_launch(d.calls, C.uintptr_t(f), C.uint(blocks), C.uint(threads), C.uint(sharedBytes), C.uintptr_t(s), arguments, C.size_t(bytes), e))
}
