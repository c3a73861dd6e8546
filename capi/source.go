package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"
	"unsafe"

	"github.com/tpde-project/tpde/core/checkpoint"
)

// source is a checkpoint that C knows. One that was made by applying deltas
// keeps its base in use.
type source struct {
	*checkpoint.Source
	releaseBase func() // nil if there is no base
}

func (*source) kind() string { return "a source" }

//export goSourceOpen
func goSourceOpen(dst *C.tpde_handle, cpath *C.char) C.int32_t {
	return openSource(dst, cpath, checkpoint.Open)
}

//export goSourceOpenBase
func goSourceOpenBase(dst *C.tpde_handle, folder *C.char) C.int32_t {
	return openSource(dst, folder, checkpoint.OpenCompressedBase)
}

func openSource(dst *C.tpde_handle, cpath *C.char, open func(string) (*checkpoint.Source, error)) C.int32_t {
	return call(func() error {
		if err := present("source", dst); err != nil {
			return err
		}
		p, err := path("path", cpath)
		if err != nil {
			return err
		}
		s, err := open(p)
		if err != nil {
			return err
		}
		store(dst, &source{Source: s})
		return nil
	})
}

//export goSourceNew
func goSourceNew(dst *C.tpde_handle, clabel *C.char) C.int32_t {
	return call(func() error {
		if err := present("source", dst); err != nil {
			return err
		}
		label, err := text("label", clabel)
		if err != nil {
			return err
		}
		store(dst, &source{Source: checkpoint.NewSource(label)})
		return nil
	})
}

//export goSourceAdd
func goSourceAdd(h C.tpde_handle, cname *C.char, dtype C.uint32_t, cshape *C.uint64_t, ndim C.uint32_t, data unsafe.Pointer, dataBytes C.uint64_t) C.int32_t {
	return call(func() error {
		s, release, err := acquire[*source](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return s.add(cname, dtype, cshape, ndim, data, dataBytes)
	})
}

func (s *source) add(cname *C.char, number C.uint32_t, cshape *C.uint64_t, ndim C.uint32_t, data unsafe.Pointer, dataBytes C.uint64_t) error {
	name, err := text("name", cname)
	if err != nil {
		return err
	}
	t, err := dtypeOf(number)
	if err != nil {
		return err
	}
	shape, err := shapeOf(cshape, ndim)
	if err != nil {
		return err
	}
	d, err := view("data", data, dataBytes)
	if err != nil {
		return err
	}
	return s.Add(name, t, shape, d)
}

//export goSourceApply
func goSourceApply(dst *C.tpde_handle, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t) C.int32_t {
	return call(func() error {
		if err := present("source", dst); err != nil {
			return err
		}
		deltas, err := paths("deltas", cdeltas, numDeltas)
		if err != nil {
			return err
		}
		s, err := apply(base, deltas)
		if err == nil {
			store(dst, s)
		}
		return err
	})
}

func apply(base C.tpde_handle, deltas []string) (*source, error) {
	b, release, err := acquire[*source](&handles, uint64(base))
	if err != nil {
		return nil, err
	}
	applied, err := checkpoint.Apply(b.Source, deltas)
	if err != nil {
		release()
		return nil, err
	}
	return &source{applied, release}, nil
}

//export goSourceManifest
func goSourceManifest(dst *C.tpde_handle, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("text", dst); err != nil {
			return err
		}
		s, release, err := acquire[*source](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		manifest, err := s.Manifest()
		if err != nil {
			return err
		}
		store(dst, document(manifest))
		return nil
	})
}

//export goSourceRead
func goSourceRead(dst unsafe.Pointer, dstCap C.uint64_t, h C.tpde_handle, cname *C.char, workers C.uint32_t) C.int32_t {
	return call(func() error {
		d, err := view("dst", dst, dstCap)
		if err != nil {
			return err
		}
		name, err := text("name", cname)
		if err != nil {
			return err
		}
		s, release, err := acquire[*source](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return s.ReadTensor(context.Background(), name, d, int(workers))
	})
}

//export goSourceFree
func goSourceFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		s, err := remove[*source](&handles, uint64(h))
		if err != nil {
			return err
		}
		if s.releaseBase != nil {
			defer s.releaseBase()
		}
		return s.Close()
	})
}
