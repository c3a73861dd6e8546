package engine

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Scatter is a sparse addition: dst is base with values[i] added at element
// indices[i]. Addresses are of memory on one device.
type Scatter struct {
	Type     dtype.Type // F16, BF16, F32 or F64
	Dst      uintptr    // Elements elements; may be Base, else they share none
	Base     uintptr    // Elements elements
	Elements uint64
	Indices  uintptr // Deltas int64, strictly increasing
	Values   uintptr // Deltas elements
	Deltas   uint64
	Naive    bool    // in place, by the kernel that the others are compared with: for tests
	Bad      uintptr // uint32, which the caller has set to 0; becomes 1 if indices are out of range or not increasing
}

// scatterArguments and inPlaceArguments are the arguments of the kernels of
// scatter.cu, one behind the other.
type (
	scatterArguments struct {
		dst, base       uintptr
		elements        uint64
		indices, values uintptr
		deltas          uint64
		bad             uintptr
	}
	inPlaceArguments struct {
		dst             uintptr
		elements        uint64
		indices, values uintptr
		deltas          uint64
		bad             uintptr
	}
)

// ScatterAdd launches a sparse addition in one pass over dst, or over the
// deltas alone if dst is base.
func (e *Engine) ScatterAdd(s *Scatter, stream uintptr) error {
	variant, err := s.check()
	if err != nil {
		return err
	}
	inPlace := s.Dst == s.Base
	entry, work := scatterAdd, s.Elements
	if inPlace {
		entry, work = scatterAddInPlace, s.Deltas
		if s.Naive {
			entry = scatterAddNaive
		}
	}
	k := newKernelID(entry, variant)
	blocks := k.blocks(work, uint64(s.Type.WordBytes()))
	if blocks == 0 {
		return nil
	}
	if blocks > maxBlocks {
		return status.Errorf(status.ErrLimit, "scatter-add of %d deltas into %d elements takes %d thread blocks, expected at most %d", s.Deltas, s.Elements, blocks, maxBlocks)
	}
	return e.on(s.Dst, func(d *device) error {
		f, err := e.function(d, k)
		if err != nil {
			return err
		}
		launch := func(arguments unsafe.Pointer, bytes uintptr) error {
			return e.driver.Launch(f, uint32(blocks), k.launch().threads, 0, cuda.Stream(stream), arguments, bytes, d.early)
		}
		if inPlace {
			a := inPlaceArguments{s.Dst, s.Elements, s.Indices, s.Values, s.Deltas, s.Bad}
			return launch(unsafe.Pointer(&a), unsafe.Sizeof(a))
		}
		a := scatterArguments{s.Dst, s.Base, s.Elements, s.Indices, s.Values, s.Deltas, s.Bad}
		return launch(unsafe.Pointer(&a), unsafe.Sizeof(a))
	})
}

// check returns the kernel variant.
func (s *Scatter) check() (int, error) {
	variant, ok := arithmetic[s.Type]
	if !ok || s.Type == dtype.C64 {
		return 0, status.Errorf(status.ErrUnsupported, "scatter-add of %v is not done on a GPU, expected F16, BF16, F32 or F64", s.Type)
	}
	size := uintptr(s.Type.WordBytes())
	for _, a := range []struct {
		what   string
		p      uintptr
		align  uintptr
		needed bool
	}{
		{"dst", s.Dst, size, s.Elements > 0}, {"base", s.Base, size, s.Elements > 0}, {"bad", s.Bad, 4, true},
		{"indices", s.Indices, 8, s.Deltas > 0}, {"values", s.Values, size, s.Deltas > 0},
	} {
		if a.needed && a.p == 0 || a.p%a.align != 0 {
			return 0, status.Errorf(status.ErrArgument, "%s of a scatter-add is at %#x, expected a multiple of %d other than 0", a.what, a.p, a.align)
		}
	}
	if s.Naive && s.Dst != s.Base {
		return 0, status.Errorf(status.ErrArgument, "the naive scatter-add works in place, expected dst to be base")
	}
	if s.Deltas > 0 && s.Elements == 0 {
		return 0, status.Errorf(status.ErrArgument, "%d deltas for an empty tensor", s.Deltas)
	}
	if s.Elements > 1<<48 || s.Deltas > s.Elements {
		return 0, status.Errorf(status.ErrArgument, "%d deltas for %d elements, expected at most as many, and at most 2^48 elements", s.Deltas, s.Elements)
	}
	if n := uintptr(s.Elements) * size; s.Dst != s.Base && s.Dst < s.Base+n && s.Base < s.Dst+n {
		return 0, status.Errorf(status.ErrArgument, "dst and base of a scatter-add overlap in part, expected the same memory or none in common")
	}
	return variant, nil
}
