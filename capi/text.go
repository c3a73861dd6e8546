package main

/*
#include "tpde.h"
*/
import "C"

import (
	"encoding/json"
	"unsafe"

	"github.com/tpde-project/tpde/core/checkpoint"
)

// document is a text that waits to be copied out.
type document []byte

func (document) kind() string { return "a text" }

// storeJSON writes a handle for the JSON form of v to the caller's variable.
func storeJSON(dst *C.tpde_handle, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	store(dst, document(data))
	return nil
}

//export goTextBytes
func goTextBytes(dst *C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("bytes", dst); err != nil {
			return err
		}
		d, release, err := acquire[document](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		*dst = C.uint64_t(len(d))
		return nil
	})
}

//export goTextCopy
func goTextCopy(dst *C.char, dstCap C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		d, release, err := acquire[document](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return copyOut("dst", unsafe.Pointer(dst), dstCap, d)
	})
}

//export goTextFree
func goTextFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		_, err := remove[document](&handles, uint64(h))
		return err
	})
}

//export goInspect
func goInspect(dst *C.tpde_handle, cpath *C.char) C.int32_t {
	return call(func() error {
		if err := present("text", dst); err != nil {
			return err
		}
		p, err := path("path", cpath)
		if err != nil {
			return err
		}
		var report any
		if checkpoint.IsCompressed(p) {
			report, err = checkpoint.InspectCompressed(p)
		} else {
			report, err = checkpoint.Inspect(p)
		}
		if err != nil {
			return err
		}
		return storeJSON(dst, report)
	})
}
