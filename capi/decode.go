package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"
	"unsafe"

	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/tensor"
)

//export goIndexRead
func goIndexRead(info *C.tpde_index_info, index unsafe.Pointer, indexBytes C.uint64_t) C.int32_t {
	return call(func() error {
		if err := present("info", info); err != nil {
			return err
		}
		if info.struct_bytes != C.uint32_t(unsafe.Sizeof(*info)) {
			return argument("info.struct_bytes is %d, expected %d", info.struct_bytes, unsafe.Sizeof(*info))
		}
		data, err := view("index", index, indexBytes)
		if err != nil {
			return err
		}
		x, err := container.Parse(data)
		if err != nil {
			return err
		}
		*info = indexInfo(x)
		return nil
	})
}

func indexInfo(x *container.Index) C.tpde_index_info {
	info := C.tpde_index_info{
		dtype:        C.uint32_t(x.Type),
		codec:        C.uint32_t(x.Codec),
		residual:     C.uint32_t(x.Residual),
		ndim:         C.uint32_t(len(x.Shape)),
		words:        C.uint64_t(x.Words),
		target_bytes: C.uint64_t(x.TargetBytes()),
		blob_bytes:   C.uint64_t(x.BlobBytes),
		chunks:       C.uint64_t(len(x.Records)),
		deltas:       C.uint64_t(x.Deltas()),
	}
	info.struct_bytes = C.uint32_t(unsafe.Sizeof(info))
	if x.HasBase {
		info.has_base = 1
	}
	for i, d := range x.Shape {
		info.shape[i] = C.uint64_t(d)
	}
	for i := range digest.Size {
		info.base_digest[i] = C.uint8_t(x.BaseDigest[i])
		info.target_digest[i] = C.uint8_t(x.TargetDigest[i])
	}
	return info
}

//export goIndexRecords
func goIndexRecords(dst unsafe.Pointer, dstCap C.uint64_t, index unsafe.Pointer, indexBytes C.uint64_t) C.int32_t {
	return call(func() error {
		data, err := view("index", index, indexBytes)
		if err != nil {
			return err
		}
		x, err := container.Parse(data)
		if err != nil {
			return err
		}
		flat := make([]byte, 0, len(x.Records)*container.RecordBytes)
		for i := range x.Records {
			flat = x.Records[i].AppendFlat(flat)
		}
		return copyOut("records", dst, dstCap, flat)
	})
}

//export goReconstruct
func goReconstruct(dst unsafe.Pointer, dstCap C.uint64_t, base unsafe.Pointer, baseBytes C.uint64_t, index unsafe.Pointer, indexBytes C.uint64_t, blob unsafe.Pointer, blobBytes C.uint64_t, flags, workers C.uint32_t) C.int32_t {
	return call(func() error {
		o, err := reconstructOptions(flags, workers)
		if err != nil {
			return err
		}
		r, err := openTensor(index, indexBytes, blob, blobBytes)
		if err != nil {
			return err
		}
		b, err := optional("base", base, baseBytes)
		if err != nil {
			return err
		}
		return rebuild(r, dst, dstCap, b, o)
	})
}

func rebuild(r *tensor.Reader, dst unsafe.Pointer, dstCap C.uint64_t, base []byte, o tensor.ReconstructOptions) error {
	d, err := destination(dst, dstCap, r.Index().TargetBytes(), base)
	if err != nil {
		return err
	}
	return r.Reconstruct(context.Background(), d, base, o)
}

func reconstructOptions(flags, workers C.uint32_t) (tensor.ReconstructOptions, error) {
	const known = C.TPDE_SKIP_BASE_DIGEST | C.TPDE_SKIP_TARGET_DIGEST
	if flags&^known != 0 {
		return tensor.ReconstructOptions{}, argument("flags are %#x, expected none but %#x", flags, known)
	}
	return tensor.ReconstructOptions{
		Workers:          int(workers),
		SkipBaseDigest:   flags&C.TPDE_SKIP_BASE_DIGEST != 0,
		SkipTargetDigest: flags&C.TPDE_SKIP_TARGET_DIGEST != 0,
	}, nil
}

func openTensor(index unsafe.Pointer, indexBytes C.uint64_t, blob unsafe.Pointer, blobBytes C.uint64_t) (*tensor.Reader, error) {
	x, err := view("index", index, indexBytes)
	if err != nil {
		return nil, err
	}
	b, err := view("blob", blob, blobBytes)
	if err != nil {
		return nil, err
	}
	return tensor.Open(x, b)
}

// destination returns the first n bytes of a destination of dstCap bytes, which
// may be base.
func destination(dst unsafe.Pointer, dstCap C.uint64_t, n uint64, base []byte) ([]byte, error) {
	d, err := view("dst", dst, dstCap)
	if err != nil {
		return nil, err
	}
	if err := fits("dst", dstCap, int(n)); err != nil {
		return nil, err
	}
	if partlyOverlap(d[:n], base) {
		return nil, argument("dst and base overlap in part, expected the same memory or none in common")
	}
	return d[:n], nil
}

// partlyOverlap reports whether a and b share some bytes without being the
// same: chunks that are written in parallel would then destroy each other's
// input.
func partlyOverlap(a, b []byte) bool {
	if len(a) == 0 || len(b) == 0 {
		return false
	}
	p, q := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&b[0]))
	return p != q && p < q+uintptr(len(b)) && q < p+uintptr(len(a))
}

//export goDigest
func goDigest(dst *C.uint8_t, dstCap C.uint64_t, data unsafe.Pointer, dataBytes C.uint64_t, workers C.uint32_t) C.int32_t {
	return call(func() error {
		d, err := view("data", data, dataBytes)
		if err != nil {
			return err
		}
		sum := digest.Of(d, int(workers))
		return copyOut("dst", unsafe.Pointer(dst), dstCap, sum[:])
	})
}
