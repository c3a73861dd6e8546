package main

/*
#include "tpde.h"
*/
import "C"

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/device/engine"
)

// withJobs runs f on the jobs that items describe, whose prepared tensors stay
// in use meanwhile.
func withJobs(items *C.tpde_gpu_item, n C.uint32_t, f func(*engine.Engine, []engine.Job) error) C.int32_t {
	return call(func() error {
		list, err := gpuItems(items, n)
		if err != nil {
			return err
		}
		jobs := make([]engine.Job, len(list))
		for i := range list {
			p, release, err := acquire[prepared](&handles, uint64(list[i].prepared))
			if err != nil {
				return err
			}
			defer release()
			if jobs[i], err = newJob(p, &list[i], i); err != nil {
				return err
			}
		}
		e, err := engine.Open()
		if err != nil {
			return err
		}
		return f(e, jobs)
	})
}

// gpuItems returns the caller's array, which need be aligned no better than
// its fields.
func gpuItems(p *C.tpde_gpu_item, n C.uint32_t) ([]C.tpde_gpu_item, error) {
	switch {
	case n == 0:
		return nil, nil
	case p == nil:
		return nil, argument("items is NULL, expected %d entries", n)
	case uintptr(unsafe.Pointer(p))%unsafe.Alignof(*p) != 0:
		return nil, argument("items is at address %p, expected a multiple of %d", p, unsafe.Alignof(*p))
	}
	return unsafe.Slice(p, int(n)), nil
}

func newJob(p prepared, it *C.tpde_gpu_item, i int) (engine.Job, error) {
	const known = C.TPDE_GPU_QUANTISED_BASE | C.TPDE_GPU_VERIFIED_BLOB
	switch {
	case it.flags&^known != 0:
		return engine.Job{}, argument("flags of item %d are %#x, expected TPDE_GPU_QUANTISED_BASE (1) and TPDE_GPU_VERIFIED_BLOB (2) at most", i, uint64(it.flags))
	case it.reserved != 0:
		return engine.Job{}, argument("reserved of item %d is %d, expected 0", i, uint64(it.reserved))
	}
	return engine.Job{
		P:         p.Prepared,
		Base:      uintptr(it.base),
		Quantised: it.flags&C.TPDE_GPU_QUANTISED_BASE != 0,
		Dst:       uintptr(it.dst),
		Blob:      uintptr(it.blob),
		Image:     uintptr(it.image),
		Status:    uintptr(unsafe.Pointer(it.status)),
		Verified:  it.flags&C.TPDE_GPU_VERIFIED_BLOB != 0,
	}, nil
}

//export goGPUScratchBytes
func goGPUScratchBytes(dst *C.uint64_t, items *C.tpde_gpu_item, n C.uint32_t) C.int32_t {
	return withJobs(items, n, func(e *engine.Engine, jobs []engine.Job) error {
		if err := present("bytes", dst); err != nil {
			return err
		}
		bytes, err := e.ScratchBytes(jobs)
		*dst = C.uint64_t(bytes)
		return err
	})
}

//export goGPUReconstruct
func goGPUReconstruct(items *C.tpde_gpu_item, n C.uint32_t, scratch C.uintptr_t, scratchBytes C.uint64_t, stream C.uintptr_t) C.int32_t {
	return withJobs(items, n, func(e *engine.Engine, jobs []engine.Job) error {
		return e.Reconstruct(jobs, uintptr(scratch), uint64(scratchBytes), uintptr(stream))
	})
}

//export goGPUVerify
func goGPUVerify(items *C.tpde_gpu_item, n C.uint32_t, stream C.uintptr_t) C.int32_t {
	return withJobs(items, n, func(e *engine.Engine, jobs []engine.Job) error {
		return e.Verify(jobs, uintptr(stream))
	})
}

//export goGPUScatterAdd
func goGPUScatterAdd(dst, base C.uintptr_t, elements C.uint64_t, dtype C.uint32_t, indices, values C.uintptr_t, deltas C.uint64_t, bad, stream C.uintptr_t) C.int32_t {
	return call(func() error {
		t, err := dtypeOf(dtype)
		if err != nil {
			return err
		}
		e, err := engine.Open()
		if err != nil {
			return err
		}
		return e.ScatterAdd(&engine.Scatter{
			Type: t, Dst: uintptr(dst), Base: uintptr(base), Elements: uint64(elements),
			Indices: uintptr(indices), Values: uintptr(values), Deltas: uint64(deltas), Bad: uintptr(bad),
		}, uintptr(stream))
	})
}
