package main

/*
#include "tpde.h"
*/
import "C"

import (
	"math"
	"unicode/utf8"
	"unsafe"

	"github.com/tpde-project/tpde/core/dtype"
)

// view returns the bytes at p as a slice, for the time of one call. what names
// the memory in errors.
func view(what string, p unsafe.Pointer, n C.uint64_t) ([]byte, error) {
	switch {
	case p == nil && n != 0:
		return nil, argument("%s is NULL, expected %d bytes", what, n)
	case n > math.MaxInt64 || uint64(uintptr(p)) > math.MaxUint64-uint64(n):
		return nil, argument("%s has %d bytes, more than memory can hold", what, n)
	case n == 0:
		return []byte{}, nil
	}
	return unsafe.Slice((*byte)(p), int(n)), nil
}

// optional is view for memory that may be absent: NULL gives nil, which is
// different from empty.
func optional(what string, p unsafe.Pointer, n C.uint64_t) ([]byte, error) {
	if p == nil && n == 0 {
		return nil, nil
	}
	return view(what, p, n)
}

// array returns n values at p as a slice. They must lie where C would put them:
// at a multiple of their size.
func array[T any](what string, p *T, n uint64) ([]T, error) {
	size := uint64(unsafe.Sizeof(*p))
	switch {
	case n == 0:
		return nil, nil
	case p == nil:
		return nil, argument("%s is NULL, expected %d entries", what, n)
	case uint64(uintptr(unsafe.Pointer(p)))%size != 0:
		return nil, argument("%s is at address %p, expected a multiple of %d", what, p, size)
	case n > (math.MaxInt64-uint64(uintptr(unsafe.Pointer(p))))/size:
		return nil, argument("%s has %d entries, more than memory can hold", what, n)
	}
	return unsafe.Slice(p, int(n)), nil
}

// shapeOf copies a shape.
func shapeOf(p *C.uint64_t, ndim C.uint32_t) ([]uint64, error) {
	if ndim > C.TPDE_MAX_DIMS {
		return nil, argument("shape has %d dimensions, expected at most %d", ndim, C.TPDE_MAX_DIMS)
	}
	dims, err := array("shape", p, uint64(ndim))
	if err != nil {
		return nil, err
	}
	shape := make([]uint64, len(dims))
	for i, d := range dims {
		shape[i] = uint64(d)
	}
	return shape, nil
}

// dtypeOf checks the number of a dtype.
func dtypeOf(number C.uint32_t) (dtype.Type, error) {
	if number > math.MaxUint8 || !dtype.Type(number).Valid() {
		return dtype.Invalid, argument("dtype %d is not one of the numbers in FORMAT.md", number)
	}
	return dtype.Type(number), nil
}

// path copies a C string that names a file: any bytes, as the system has it.
func path(what string, p *C.char) (string, error) {
	if p == nil || *p == 0 {
		return "", argument("%s is NULL or empty, expected a path", what)
	}
	return C.GoString(p), nil
}

// paths copies an array of paths.
func paths(what string, p **C.char, n C.uint32_t) ([]string, error) {
	list, err := array(what, p, uint64(n))
	if err != nil {
		return nil, err
	}
	out := make([]string, len(list))
	for i, s := range list {
		if out[i], err = path(what, s); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// text copies a C string that must be there and be UTF-8; it may be empty.
func text(what string, p *C.char) (string, error) {
	if p == nil {
		return "", argument("%s is NULL, expected a text", what)
	}
	s := C.GoString(p)
	if !utf8.ValidString(s) {
		return "", argument("%s is not UTF-8: %q", what, s)
	}
	return s, nil
}

// store writes a handle for o to the caller's variable.
func store(dst *C.tpde_handle, o object) {
	*dst = C.tpde_handle(handles.add(o))
}

// present checks that a caller's variable for a result is there.
func present[T any](what string, p *T) error {
	if p == nil {
		return argument("%s is NULL, expected where to put the result", what)
	}
	return nil
}
