package engine

import (
	"math/bits"
	"unsafe"

	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/status"
)

// Quantised is a quantised tensor in the memory of a device. Its code book is
// there too: that of Scheme is not used.
type Quantised struct {
	Scheme quant.Scheme
	At     quant.Pointers
	Code   uintptr // 16 float32 if Scheme.Kind is Codebook, else 0
}

// Matvec is y = x * transpose(weight) + bias for few rows of x, with elements of
// the weight rounded to Type. Addresses are of memory on one device.
type Matvec struct {
	Type    dtype.Type // of x, bias and y: F16, BF16 or F32
	Weight  Quantised  // [Outs, Ins]
	X       uintptr    // [Rows, Ins]
	XStride uint64     // elements from one row of x to the next
	Bias    uintptr    // [Outs]; 0: none
	Y       uintptr    // [Rows, Outs], contiguous
	Rows    uint64
	Outs    uint64
	Ins     uint64
}

// MatvecRows is the number of rows of x that a thread block takes. More rows read
// the weight again, from the L2 cache as far as it reaches.
const MatvecRows = 8

// matvecArguments is struct Matvec of matvec.cuh.
type matvecArguments struct {
	weight             [quant.DescriptorBytes]byte
	code, x, bias, y   uintptr
	xStride, outs, ins uint64
	rows, parts        uint32
	rowGroups, shift   uint32
}

// Matvec launches a product.
func (e *Engine) Matvec(m *Matvec, stream uintptr) error {
	a := matvecArguments{
		code: m.Weight.Code, x: m.X, bias: m.Bias, y: m.Y, xStride: m.XStride, outs: m.Outs, ins: m.Ins,
		rows: uint32(m.Rows), parts: uint32((m.Rows + MatvecRows - 1) / MatvecRows),
	}
	if err := m.check(); err != nil || m.Rows == 0 || m.Outs == 0 {
		return err
	}
	var err error
	if a.weight, err = m.Weight.descriptor(m.Outs * m.Ins); err != nil {
		return err
	}
	return e.on(m.Y, func(d *device) error {
		k := newKernelID(matvecAny, arithmetic[m.Type])
		if variant, ok := m.tiles(&a); ok && d.tensorCores {
			k = newKernelID(matvecTiles, variant)
		}
		blocks := k.blocks(m.Outs, 1) * uint64(a.parts)
		if blocks > maxBlocks {
			return status.Errorf(status.ErrLimit, "%d rows by a weight of %d rows take %d thread blocks, expected at most %d", m.Rows, m.Outs, blocks, maxBlocks)
		}
		f, err := e.function(d, k)
		if err != nil {
			return err
		}
		return e.driver.Launch(f, uint32(blocks), k.launch().threads, 0, cuda.Stream(stream), unsafe.Pointer(&a), unsafe.Sizeof(a), d.early)
	})
}

// tiles returns the variant of the kernel for tensor cores, and tells it how
// groups lie, if sizes and addresses are what it takes: see matvec.cu.
func (m *Matvec) tiles(a *matvecArguments) (variant int, ok bool) {
	s := &m.Weight.Scheme
	unit := uint64(128 / s.Bits)
	if s.Bits == 3 {
		unit = 128
	}
	a.rowGroups, a.shift = 1, 31
	if s.Group != m.Ins {
		if s.Group&(s.Group-1) != 0 || s.Group < 32 || m.Ins%s.Group != 0 {
			return 0, false
		}
		a.rowGroups, a.shift = uint32(m.Ins/s.Group), uint32(bits.TrailingZeros64(s.Group))
	}
	switch {
	case m.Type == dtype.F32, m.Ins%unit != 0, m.Ins >= 1<<31, m.Outs*m.Ins/unit >= 1<<30, m.Outs >= 1<<31,
		uint64(m.Weight.At.Packed)%16 != 0, m.X%16 != 0, m.XStride%8 != 0:
		return 0, false
	}
	return 6*arithmetic[m.Type] + matvecLayout(s), true
}

// matvecLayout numbers the layouts of codes as matvecVariants has them.
func matvecLayout(s *quant.Scheme) int {
	switch s.Kind {
	case quant.Codebook:
		return 4
	case quant.Int8Rows:
		return 5
	}
	return map[uint8]int{2: 0, 3: 1, 4: 2, 8: 3}[s.Bits]
}

func (m *Matvec) check() error {
	size, err := m.Weight.check(m.Type)
	switch {
	case err != nil:
		return err
	case m.Rows >= 1<<24 || m.Outs > 1<<40 || m.Ins > 1<<40 || m.Outs*m.Ins > 1<<48 || m.XStride > 1<<48:
		return status.Errorf(status.ErrLimit, "%d rows, %d apart, by a weight of %d x %d, expected fewer than 2^24 rows and at most 2^48 elements", m.Rows, m.XStride, m.Outs, m.Ins)
	case m.Rows == 0 || m.Outs == 0:
		return nil
	case m.Ins == 0:
		return status.Errorf(status.ErrArgument, "a weight of %d x 0, expected at least one column", m.Outs)
	case m.X == 0 || m.Y == 0:
		return status.Errorf(status.ErrArgument, "x is at %#x and y at %#x, expected addresses other than 0", m.X, m.Y)
	case m.X%size != 0 || m.Y%size != 0 || m.Bias%size != 0:
		return status.Errorf(status.ErrArgument, "x, bias and y are at %#x, %#x and %#x, expected multiples of %d", m.X, m.Bias, m.Y, size)
	}
	return nil
}

// Dequantise is dst = elements First up to First + Count of a quantised tensor,
// rounded to Type.
type Dequantise struct {
	Type     dtype.Type // F16, BF16 or F32
	Weight   Quantised
	Elements uint64  // of the tensor
	Dst      uintptr // aligned to 16 bytes
	First    uint64
	Count    uint64
}

// dequantiseArguments is struct Dequantise of dequantise.cu.
type dequantiseArguments struct {
	weight       [quant.DescriptorBytes]byte
	code, dst    uintptr
	first, count uint64
}

// Dequantise launches it.
func (e *Engine) Dequantise(q *Dequantise, stream uintptr) error {
	size, err := q.Weight.check(q.Type)
	switch {
	case err != nil:
		return err
	case q.Elements > 1<<48 || q.First > q.Elements || q.Count > q.Elements-q.First:
		return status.Errorf(status.ErrArgument, "%d elements from %d on, expected some of the %d that there are", q.Count, q.First, q.Elements)
	case q.Count == 0:
		return nil
	case q.Dst == 0 || q.Dst%16 != 0:
		return status.Errorf(status.ErrArgument, "dst is at %#x, expected a multiple of 16 other than 0", q.Dst)
	}
	a := dequantiseArguments{code: q.Weight.Code, dst: q.Dst, first: q.First, count: q.Count}
	if a.weight, err = q.Weight.descriptor(q.Elements); err != nil {
		return err
	}
	k := newKernelID(dequantise, arithmetic[q.Type])
	blocks := k.blocks(q.Count, uint64(size))
	if blocks > maxBlocks {
		return status.Errorf(status.ErrLimit, "%d elements take %d thread blocks, expected at most %d", q.Count, blocks, maxBlocks)
	}
	return e.on(q.Dst, func(d *device) error {
		f, err := e.function(d, k)
		if err != nil {
			return err
		}
		return e.driver.Launch(f, uint32(blocks), k.launch().threads, 0, cuda.Stream(stream), unsafe.Pointer(&a), unsafe.Sizeof(a), d.early)
	})
}

// check returns the size of a word of type t.
func (q *Quantised) check(t dtype.Type) (uintptr, error) {
	switch {
	case t != dtype.F16 && t != dtype.BF16 && t != dtype.F32:
		return 0, status.Errorf(status.ErrUnsupported, "elements of type %v cannot be quantised, expected F16, BF16 or F32", t)
	case (q.Code != 0) != (q.Scheme.Kind == quant.Codebook) || q.Code%4 != 0:
		return 0, status.Errorf(status.ErrArgument, "the code book is at %#x, expected a multiple of 4, and 0 without a code book", q.Code)
	}
	return uintptr(t.WordBytes()), nil
}

func (q *Quantised) descriptor(n uint64) ([quant.DescriptorBytes]byte, error) {
	return q.Scheme.Descriptor(q.At, n)
}
