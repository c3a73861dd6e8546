package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"

	"github.com/tpde-project/tpde/core/checkpoint"
)

// launch checks what the long operations have in common, collects what prepare
// needs in use, and starts the job. After a failure nothing stays in use.
func launch(dst *C.tpde_handle, prepare func(use *inUse) (work, error)) C.int32_t {
	return call(func() error {
		if err := present("job", dst); err != nil {
			return err
		}
		use := new(inUse)
		w, err := prepare(use)
		if err != nil {
			use.release()
			return err
		}
		return start(dst, use, w)
	})
}

// optionsJSON copies the options of an operation; NULL means the defaults.
func optionsJSON(p *C.char) ([]byte, error) {
	if p == nil {
		return []byte("{}"), nil
	}
	s, err := text("options", p)
	return []byte(s), err
}

//export goPackStart
func goPackStart(dst *C.tpde_handle, base, target C.tpde_handle, outPath, options *C.char) C.int32_t {
	return launch(dst, func(use *inUse) (work, error) {
		b, err := use.source(base)
		if err != nil {
			return nil, err
		}
		t, err := use.source(target)
		if err != nil {
			return nil, err
		}
		out, o, err := packArguments(outPath, options)
		return func(ctx context.Context, p *checkpoint.Progress) (any, error) {
			return checkpoint.Pack(ctx, b, t, out, o, p)
		}, err
	})
}

func packArguments(outPath, options *C.char) (out string, o checkpoint.PackOptions, err error) {
	if out, err = path("out_path", outPath); err != nil {
		return "", o, err
	}
	text, err := optionsJSON(options)
	if err != nil {
		return "", o, err
	}
	o, err = checkpoint.ParsePackOptions(text)
	return out, o, err
}

//export goCompressStart
func goCompressStart(dst *C.tpde_handle, target C.tpde_handle, outPath, options *C.char) C.int32_t {
	return launch(dst, func(use *inUse) (work, error) {
		t, err := use.source(target)
		if err != nil {
			return nil, err
		}
		out, err := path("out_path", outPath)
		if err != nil {
			return nil, err
		}
		text, err := optionsJSON(options)
		if err != nil {
			return nil, err
		}
		o, err := checkpoint.ParseCompressOptions(text)
		return func(ctx context.Context, p *checkpoint.Progress) (any, error) {
			return checkpoint.Compress(ctx, t, out, o, p)
		}, err
	})
}

// unpackArguments reads what unpack and verify have in common.
func unpackArguments(use *inUse, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t, options *C.char) (b *checkpoint.Source, deltas []string, o checkpoint.UnpackOptions, err error) {
	if b, err = use.source(base); err != nil {
		return nil, nil, o, err
	}
	if deltas, err = paths("deltas", cdeltas, numDeltas); err != nil {
		return nil, nil, o, err
	}
	text, err := optionsJSON(options)
	if err != nil {
		return nil, nil, o, err
	}
	o, err = checkpoint.ParseUnpackOptions(text)
	return b, deltas, o, err
}

//export goUnpackStart
func goUnpackStart(dst *C.tpde_handle, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t, outPath, options *C.char) C.int32_t {
	return unpackStart(dst, base, cdeltas, numDeltas, outPath, options, nil)
}

//export goUnpackSuppliedStart
func goUnpackSuppliedStart(dst *C.tpde_handle, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t, outPath, options *C.char) C.int32_t {
	return unpackStart(dst, base, cdeltas, numDeltas, outPath, options, checkpoint.NewSupply())
}

func unpackStart(dst *C.tpde_handle, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t, outPath, options *C.char, supply *checkpoint.Supply) C.int32_t {
	return launch(dst, func(use *inUse) (work, error) {
		b, deltas, o, err := unpackArguments(use, base, cdeltas, numDeltas, options)
		if err != nil {
			return nil, err
		}
		use.supply, o.Supply = supply, supply
		out, err := path("out_path", outPath)
		return func(ctx context.Context, p *checkpoint.Progress) (any, error) {
			return checkpoint.Unpack(ctx, b, deltas, out, o, p)
		}, err
	})
}

//export goVerifyStart
func goVerifyStart(dst *C.tpde_handle, base C.tpde_handle, cdeltas **C.char, numDeltas C.uint32_t, target C.tpde_handle, options *C.char) C.int32_t {
	return launch(dst, func(use *inUse) (work, error) {
		b, deltas, o, err := unpackArguments(use, base, cdeltas, numDeltas, options)
		if err != nil {
			return nil, err
		}
		var t *checkpoint.Source
		if target != 0 {
			t, err = use.source(target)
		}
		return func(ctx context.Context, p *checkpoint.Progress) (any, error) {
			return checkpoint.Verify(ctx, b, deltas, t, o, p)
		}, err
	})
}
