// Package engine rebuilds tensors on NVIDIA GPUs.
//
// A tensor is prepared once, on the host: Prepare validates its index and
// makes the image that kernels read. The caller uploads image and blob, and
// then rebuilds any number of tensors with one call. All memory is the
// caller's; everything runs on the caller's stream; nothing waits for the GPU.
//
// # Batches
//
// Small tensors do not fill a GPU, so tensors are rebuilt together: one launch
// works on up to 56 tensors of the same codec, word size and residual.
//
// # Contexts and capture
//
// Work goes to the GPU that owns the first destination, in its primary
// context, where torch works too. The first call that needs a kernel on a GPU
// compiles and loads it, which a CUDA graph cannot capture: call once before.
// Later calls only launch kernels and can be captured.
//
// # Zstd
//
// Tensors of the zstd codec are decompressed by nvCOMP, all of a call together,
// in scratch memory. Its behaviour is undefined for corrupt input, up to a GPU
// that hangs, so Reconstruct first verifies the checksums of their blobs,
// unless the caller says that this was done when they were loaded
// (Job.Verified). Checksums show damage, not malice: do not decompress on a
// GPU what a stranger has packed.
//
// # Failed chunks
//
// Every launch writes one status word for each chunk: 0, or the number that
// package status has for corrupt data (20) or a wrong checksum (21). A failed
// chunk leaves undefined words in its own part of the destination and touches
// nothing else.
//
// Everything is safe for concurrent use.
package engine

import (
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/nvrtc"
)

const maxDevices = 64 // of one process

// Engine is the driver, the compiler and what is loaded on each GPU.
type Engine struct {
	driver   *cuda.Driver
	compiler *nvrtc.Compiler
	mu       sync.Mutex // of adding devices
	devices  [maxDevices]atomic.Pointer[device]
	zstd     zstdState
}

var lazy dl.Lazy[Engine]

// Open loads the driver and NVRTC, once. The error says what is missing.
func Open() (*Engine, error) {
	return lazy.Get(func() (*Engine, error) {
		driver, err := cuda.Open()
		if err != nil {
			return nil, err
		}
		compiler, err := nvrtc.Open(driver.Version / 1000)
		if err != nil {
			return nil, err
		}
		return &Engine{driver: driver, compiler: compiler}, nil
	})
}

// ScratchBytes returns the size of the scratch memory that Reconstruct needs:
// for zstd tensors, about four times their byte planes, up to some 1.1 GB; for
// others, nothing. It does not depend on what blobs contain.
func (e *Engine) ScratchBytes(jobs []Job) (n uint64, err error) {
	where, err := checkAll(jobs, true)
	if err != nil || !slices.ContainsFunc(jobs, func(j Job) bool { return j.isZstd() }) || where == 0 {
		return 0, err
	}
	err = e.on(where, func(*device) error {
		n, err = e.zstdScratch(jobs)
		return err
	})
	return n, err
}

// Reconstruct rebuilds tensors, all on one device. scratch is device memory of
// ScratchBytes bytes, aligned to 256, used until the stream has run what was
// launched. Checksums are verified of zstd tensors alone: Verify does it for
// others, once for a blob.
func (e *Engine) Reconstruct(jobs []Job, scratch uintptr, scratchBytes uint64, stream uintptr) error {
	return e.run(jobs, true, func(d *device) error {
		// First, since it may fail for want of nvCOMP or scratch memory.
		if err := e.zstdJobs(d, jobs, scratch, scratchBytes, stream); err != nil {
			return err
		}
		return e.launchAll(d, jobs, func(j *Job) kernelID {
			if j.isZstd() {
				return noKernel
			}
			return j.kernel()
		}, stream)
	})
}

// Verify checks the checksum of every chunk and writes Status. Base and Dst
// are not used.
func (e *Engine) Verify(jobs []Job, stream uintptr) error {
	return e.run(jobs, false, func(d *device) error {
		return e.launchAll(d, jobs, func(*Job) kernelID { return newKernelID(crc32cCheck, 0) }, stream)
	})
}

// run checks the jobs and runs f in the context of their device.
func (e *Engine) run(jobs []Job, rebuild bool, f func(*device) error) error {
	where, err := checkAll(jobs, rebuild)
	if err != nil || where == 0 {
		return err
	}
	return e.on(where, f)
}

// launchAll launches the kernel of each job, batched.
func (e *Engine) launchAll(d *device, jobs []Job, kernel func(*Job) kernelID, stream uintptr) error {
	return group(&d.limits, jobs, kernel, func(k kernelID, b *batch, blocks uint32, c cut) error {
		f, err := e.function(d, k)
		if err != nil {
			return err
		}
		return e.driver.Launch(f, blocks, c.threads, c.sharedBytes, cuda.Stream(stream), unsafe.Pointer(b), unsafe.Sizeof(*b), d.early)
	})
}

// on runs f in the primary context of the device that owns the memory at p.
func (e *Engine) on(p uintptr, f func(*device) error) error {
	ordinal, err := e.driver.PointerDevice(p)
	if err != nil {
		return err
	}
	d, err := e.device(ordinal)
	if err != nil {
		return err
	}
	return e.driver.With(d.context, func() error { return f(d) })
}
