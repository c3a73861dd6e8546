package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"
	"unsafe"

	"github.com/tpde-project/tpde/core/codec"
	_ "github.com/tpde-project/tpde/core/codec/all"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// encoded is a packed tensor that waits to be copied out.
type encoded struct {
	index []byte
	blob  slabs
}

func (*encoded) kind() string { return "an encoded tensor" }

//export goEncode
func goEncode(dst *C.tpde_handle, base unsafe.Pointer, baseBytes C.uint64_t, target unsafe.Pointer, targetBytes C.uint64_t, dtype C.uint32_t, shape *C.uint64_t, ndim C.uint32_t, options *C.tpde_encode_options) C.int32_t {
	return call(func() error {
		if err := present("encoded", dst); err != nil {
			return err
		}
		b, err := optional("base", base, baseBytes)
		if err != nil {
			return err
		}
		t, err := view("target", target, targetBytes)
		if err != nil {
			return err
		}
		e, err := encode(b, t, dtype, shape, ndim, options)
		if err == nil {
			store(dst, e)
		}
		return err
	})
}

func encode(base, target []byte, dtype C.uint32_t, shape *C.uint64_t, ndim C.uint32_t, options *C.tpde_encode_options) (*encoded, error) {
	var d tensor.Desc
	var o tensor.Options
	var err error
	if d.Type, err = dtypeOf(dtype); err != nil {
		return nil, err
	}
	if d.Shape, err = shapeOf(shape, ndim); err != nil {
		return nil, err
	}
	if o, err = encodeOptions(options); err != nil {
		return nil, err
	}
	e := new(encoded)
	if e.index, err = tensor.Encode(context.Background(), &e.blob, d, base, target, o); err != nil {
		e.blob.free()
	}
	return e, err
}

// encodeOptions checks and copies options; NULL means the defaults.
func encodeOptions(o *C.tpde_encode_options) (tensor.Options, error) {
	if o == nil {
		return tensor.Options{}, nil
	}
	switch {
	case o.struct_bytes != C.uint32_t(unsafe.Sizeof(*o)):
		return tensor.Options{}, argument("options.struct_bytes is %d, expected %d", o.struct_bytes, unsafe.Sizeof(*o))
	case o.reserved != 0:
		return tensor.Options{}, argument("options.reserved is %d, expected 0", o.reserved)
	case o.codec > C.uint32_t(codec.Rice):
		return tensor.Options{}, argument("options.codec is %d, expected 0 (auto) or one of %v", o.codec, codec.All())
	case o.residual > C.uint32_t(residual.Add):
		return tensor.Options{}, argument("options.residual is %d, expected 0 (bit) or 1 (add)", o.residual)
	case o.level > C.uint32_t(codec.LevelSmall):
		return tensor.Options{}, argument("options.level is %d, expected 0 (default), 1 (fast) or 2 (small)", o.level)
	}
	return tensor.Options{
		Codec:      codec.ID(o.codec),
		Residual:   residual.Kind(o.residual),
		Level:      codec.Level(o.level),
		NumChunks:  uint64(o.num_chunks),
		ChunkWords: uint64(o.chunk_words),
		Workers:    int(o.workers),
	}, nil
}

//export goEncodedBytes
func goEncodedBytes(indexBytes, blobBytes *C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("index_bytes", indexBytes); err != nil {
			return err
		}
		if err := present("blob_bytes", blobBytes); err != nil {
			return err
		}
		e, release, err := acquire[*encoded](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		*indexBytes, *blobBytes = C.uint64_t(len(e.index)), C.uint64_t(e.blob.size)
		return nil
	})
}

//export goEncodedCopy
func goEncodedCopy(index unsafe.Pointer, indexCap C.uint64_t, blob unsafe.Pointer, blobCap C.uint64_t, h C.tpde_handle) C.int32_t {
	return call(func() error {
		e, release, err := acquire[*encoded](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		// Both are checked before either is written.
		if err := fits("blob", blobCap, e.blob.size); err != nil {
			return err
		}
		if err := copyOut("index", index, indexCap, e.index); err != nil {
			return err
		}
		d, err := view("blob", blob, C.uint64_t(e.blob.size))
		if err == nil {
			e.blob.copyTo(d)
		}
		return err
	})
}

//export goEncodedFree
func goEncodedFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		e, err := remove[*encoded](&handles, uint64(h))
		if err == nil {
			e.blob.free()
		}
		return err
	})
}

// fits checks that a destination of cap bytes holds n.
func fits(what string, cap C.uint64_t, n int) error {
	if uint64(cap) < uint64(n) {
		return status.Errorf(status.ErrShortBuffer, "%s has room for %d bytes, expected %d", what, cap, n)
	}
	return nil
}

// copyOut copies data to memory of the caller.
func copyOut(what string, dst unsafe.Pointer, cap C.uint64_t, data []byte) error {
	if err := fits(what, cap, len(data)); err != nil {
		return err
	}
	d, err := view(what, dst, C.uint64_t(len(data)))
	if err != nil {
		return err
	}
	copy(d, data)
	return nil
}
