package main

/*
#include "tpde.h"
*/
import "C"

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/device/engine"
)

// prepared is a packed tensor made ready for GPUs.
type prepared struct{ *engine.Prepared }

func (prepared) kind() string { return "a prepared tensor" }

//export goPrepare
func goPrepare(dst *C.tpde_handle, index unsafe.Pointer, indexBytes C.uint64_t) C.int32_t {
	return call(func() error {
		if err := present("prepared", dst); err != nil {
			return err
		}
		data, err := view("index", index, indexBytes)
		if err != nil {
			return err
		}
		p, err := engine.Prepare(data)
		if err != nil {
			return err
		}
		store(dst, prepared{p})
		return nil
	})
}

//export goPreparedImageBytes
func goPreparedImageBytes(dst *C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("bytes", dst); err != nil {
			return err
		}
		p, release, err := acquire[prepared](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		*dst = C.uint64_t(len(p.Image()))
		return nil
	})
}

//export goPreparedImage
func goPreparedImage(dst unsafe.Pointer, dstCap C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		p, release, err := acquire[prepared](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return copyOut("image", dst, dstCap, p.Image())
	})
}

//export goPreparedFree
func goPreparedFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		_, err := remove[prepared](&handles, uint64(h))
		return err
	})
}
