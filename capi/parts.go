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

// parts is what the tensors of a source are made of. It keeps the source in
// use.
type parts struct {
	*checkpoint.Parts
	releaseSource func()
}

func (parts) kind() string { return "a list of parts" }

//export goPartsOpen
func goPartsOpen(dst *C.tpde_handle, sourceHandle C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("parts", dst); err != nil {
			return err
		}
		s, release, err := acquire[*source](&handles, uint64(sourceHandle))
		if err != nil {
			return err
		}
		p, err := s.Parts()
		if err != nil {
			release()
			return err
		}
		store(dst, parts{p, release})
		return nil
	})
}

//export goPartsList
func goPartsList(dst *C.tpde_handle, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("text", dst); err != nil {
			return err
		}
		p, release, err := acquire[parts](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		list, err := p.List()
		if err != nil {
			return err
		}
		store(dst, document(list))
		return nil
	})
}

//export goPartsGather
func goPartsGather(dst unsafe.Pointer, dstCap C.uint64_t, h C.tpde_handle, cspans *C.tpde_span, numSpans C.uint64_t, workers C.uint32_t) C.int32_t {
	return call(func() error {
		into, err := view("dst", dst, dstCap)
		if err != nil {
			return err
		}
		// An array of structs of four words, which array would want aligned as a whole.
		words, err := array("spans", (*C.uint64_t)(unsafe.Pointer(cspans)), 4*uint64(numSpans))
		if err != nil {
			return err
		}
		spans := make([]checkpoint.Span, len(words)/4)
		for i := range spans {
			w := words[4*i:]
			spans[i] = checkpoint.Span{Part: uint64(w[0]), Offset: uint64(w[1]), Bytes: uint64(w[2]), To: uint64(w[3])}
		}
		p, release, err := acquire[parts](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return p.Gather(context.Background(), into, spans, int(workers))
	})
}

//export goPartsFree
func goPartsFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		p, err := remove[parts](&handles, uint64(h))
		if err == nil {
			p.releaseSource()
		}
		return err
	})
}
