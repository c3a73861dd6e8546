package main

/*
#include "tpde.h"
*/
import "C"

import (
	"math"

	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
)

// quantised returns what q says, and the type of its elements.
func quantised(q *C.tpde_quantised) (engine.Quantised, dtype.Type, error) {
	var out engine.Quantised
	if q == nil {
		return out, 0, argument("the quantised tensor is NULL")
	}
	t, err := dtypeOf(q.dtype)
	if err != nil {
		return out, 0, err
	}
	scale, err := dtypeOf(q.scale_dtype)
	if err != nil {
		return out, 0, err
	}
	if q.kind > math.MaxUint8 || q.bits > math.MaxUint8 {
		return out, 0, argument("kind %d of %d bits is none of core/quant/FORMAT.md", uint32(q.kind), uint32(q.bits))
	}
	out = engine.Quantised{
		Scheme: quant.Scheme{Kind: quant.Kind(q.kind), Bits: uint8(q.bits), Group: uint64(q.group), Scale: scale, Zero: q.zero != nil},
		At:     quant.Pointers{Packed: uint64(uintptr(q.packed)), Scale: uint64(uintptr(q.scale)), Zero: uint64(uintptr(q.zero))},
		Code:   uintptr(q.code),
	}
	return out, t, nil
}

//export goGPUQuantisedLinear
func goGPUQuantisedLinear(y, x C.uintptr_t, xStride, rows C.uint64_t, weight *C.tpde_quantised, outs, ins C.uint64_t, bias, stream C.uintptr_t) C.int32_t {
	return call(func() error {
		q, t, err := quantised(weight)
		if err != nil {
			return err
		}
		e, err := engine.Open()
		if err != nil {
			return err
		}
		return e.Matvec(&engine.Matvec{
			Type: t, Weight: q, X: uintptr(x), XStride: uint64(xStride), Bias: uintptr(bias), Y: uintptr(y),
			Rows: uint64(rows), Outs: uint64(outs), Ins: uint64(ins),
		}, uintptr(stream))
	})
}

//export goGPUDequantise
func goGPUDequantise(dst C.uintptr_t, tensor *C.tpde_quantised, elements, first, count C.uint64_t, stream C.uintptr_t) C.int32_t {
	return call(func() error {
		q, t, err := quantised(tensor)
		if err != nil {
			return err
		}
		e, err := engine.Open()
		if err != nil {
			return err
		}
		return e.Dequantise(&engine.Dequantise{
			Type: t, Weight: q, Elements: uint64(elements), Dst: uintptr(dst), First: uint64(first), Count: uint64(count),
		}, uintptr(stream))
	})
}
