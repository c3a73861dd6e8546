package residual

import (
	"math"
	"sync"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// The arithmetic of the add residual is torch's on a CPU:
//
//   - F32 and the parts of C64 add as float32, F64 as float64;
//   - F16 and BF16 add as float32, rounded to nearest even;
//   - the 8-bit floats add as float32 and are cast as torch casts to them:
//     rounded to nearest even; beyond the largest finite value E5M2 gives
//     infinity, E4M3 (fn) the largest finite value (torch 2.15; NaN in earlier
//     versions), and both fnuz types their one NaN, 0x80.
//
// Compute never relies on what is not the same everywhere: the bits of a NaN
// that comes out of an addition differ between processors, so a NaN target
// always is an exception; and no residual is chosen whose sum is saturated.

// float is the arithmetic of one type on its words.
type float[T word.Word] struct {
	add func(a, b T) T // rounded sum
	sub func(a, b T) T // about a - b; the exact bits do not matter
	nan func(a T) bool
}

var (
	arithF16 = float[uint16]{
		add: func(a, b uint16) uint16 {
			return uint16(float16.narrow(float16.widen(uint32(a)) + float16.widen(uint32(b))))
		},
		sub: func(a, b uint16) uint16 {
			return uint16(float16.narrow(float16.widen(uint32(a)) - float16.widen(uint32(b))))
		},
		nan: func(a uint16) bool { return a&0x7FFF > 0x7C00 },
	}
	arithBF16 = float[uint16]{
		add: func(a, b uint16) uint16 { return float32ToBfloat16(bfloat16ToFloat32(a) + bfloat16ToFloat32(b)) },
		sub: func(a, b uint16) uint16 { return float32ToBfloat16(bfloat16ToFloat32(a) - bfloat16ToFloat32(b)) },
		nan: func(a uint16) bool { return a&0x7FFF > 0x7F80 },
	}
	arithF32 = float[uint32]{
		add: func(a, b uint32) uint32 {
			return math.Float32bits(math.Float32frombits(a) + math.Float32frombits(b))
		},
		sub: func(a, b uint32) uint32 {
			return math.Float32bits(math.Float32frombits(a) - math.Float32frombits(b))
		},
		nan: func(a uint32) bool { return a&0x7FFFFFFF > 0x7F800000 },
	}
	arithF64 = float[uint64]{
		add: func(a, b uint64) uint64 {
			return math.Float64bits(math.Float64frombits(a) + math.Float64frombits(b))
		},
		sub: func(a, b uint64) uint64 {
			return math.Float64bits(math.Float64frombits(a) - math.Float64frombits(b))
		},
		nan: func(a uint64) bool { return a&^(1<<63) > 0x7FF<<52 },
	}
	arithF8 = map[dtype.Type]*table8{
		dtype.F8E4M3:     {format: &e4m3fn},
		dtype.F8E5M2:     {format: &e5m2},
		dtype.F8E4M3FNUZ: {format: &e4m3uz},
		dtype.F8E5M2FNUZ: {format: &e5m2uz},
	}
)

// table8 holds all sums and all differences of an 8-bit float, made on first
// use: 192 KiB that turn either into one lookup.
type table8 struct {
	format *smallFloat
	once   sync.Once
	sums   [1 << 16]uint8 // by a<<8 | b
	// values, by base<<8 | target, is the residual that takes base to target:
	// of all that do, the one of least magnitude, the positive one first. It is
	// 0 for exceptions.
	values [1 << 16]uint8
}

func (t *table8) get() *table8 {
	t.once.Do(func() {
		var wide [256]float32
		for c := range wide {
			wide[c] = t.format.widen(uint32(c))
		}
		for a := range 256 {
			for b := range 256 {
				t.sums[a<<8|b] = uint8(t.format.narrow(wide[a] + wide[b]))
			}
			for m := 1; m < 256; m++ {
				v := m>>1 | m<<7&0x80 // 0x80 (minus zero or NaN) comes first and gives nothing
				target := t.sums[a<<8|v]
				at := a<<8 | int(target)
				saturated := t.format.limit != t.format.over && t.format.overflows(wide[a]+wide[v])
				if t.values[at] == 0 && int(target) != a && !t.format.nan(uint32(target)) && !saturated {
					t.values[at] = uint8(v)
				}
			}
		}
	})
	return t
}

func computeAdd(t dtype.Type, res, base, target []byte, exceptions []uint32) []uint32 {
	switch t {
	case dtype.F16:
		return computeFloats(&arithF16, res, base, target, exceptions)
	case dtype.BF16:
		return computeFloats(&arithBF16, res, base, target, exceptions)
	case dtype.F32, dtype.C64:
		return computeFloats(&arithF32, res, base, target, exceptions)
	case dtype.F64:
		return computeFloats(&arithF64, res, base, target, exceptions)
	}
	values := &mustTable8(t).values
	for i, b := range base {
		v := values[int(b)<<8|int(target[i])]
		if v == 0 && b != target[i] {
			exceptions = append(exceptions, uint32(i))
		}
		res[i] = v
	}
	return exceptions
}

func computeFloats[T word.Word](f *float[T], res, base, target []byte, exceptions []uint32) []uint32 {
	r, b, t := word.View[T](res), word.View[T](base), word.View[T](target)
	for i := range r {
		x, y := b[i], t[i]
		if x == y {
			r[i] = 0
			continue
		}
		v := f.solve(x, y)
		if v == 0 {
			exceptions = append(exceptions, uint32(i))
		}
		r[i] = v
	}
	return exceptions
}

// solve returns a v with base + v == target in bits, or 0 if there is none
// but, possibly, 0 itself. The sum is monotonic in v, so that any v is next to
// the rounded difference; both roundings together can be off by two units.
func (f *float[T]) solve(base, target T) T {
	if f.nan(target) || f.nan(base) {
		return 0
	}
	v := f.sub(target, base)
	for _, step := range [...]int64{0, 1, -1, 2, -2} {
		if w := stepped(v, step); w != 0 && f.add(base, w) == target {
			return w
		}
	}
	return 0
}

// stepped returns the float that lies steps units above v.
func stepped[T word.Word](v T, steps int64) T {
	top := T(1) << (word.Size[T]()*8 - 1)
	order := int64(v &^ top)
	if v&top != 0 {
		order = -order
	}
	if order += steps; order < 0 {
		return T(-order) | top
	}
	return T(order)
}

func applyAdd(t dtype.Type, dst, base, res []byte) {
	switch t {
	case dtype.F16:
		applyFloats(&arithF16, dst, base, res)
	case dtype.BF16:
		applyFloats(&arithBF16, dst, base, res)
	case dtype.F32, dtype.C64:
		applyFloats(&arithF32, dst, base, res)
	case dtype.F64:
		applyFloats(&arithF64, dst, base, res)
	default:
		sums := &mustTable8(t).sums
		for i, v := range res {
			b := base[i]
			if v != 0 {
				b = sums[int(b)<<8|int(v)]
			}
			dst[i] = b
		}
	}
}

func applyFloats[T word.Word](f *float[T], dst, base, res []byte) {
	d, b, r := word.View[T](dst), word.View[T](base), word.View[T](res)
	for i, v := range r {
		x := b[i]
		if v != 0 {
			x = f.add(x, v)
		}
		d[i] = x
	}
}

func mustTable8(t dtype.Type) *table8 {
	table := arithF8[t]
	if table == nil {
		panic("residual: " + t.String() + " has no float addition; callers check HasAdd")
	}
	return table.get()
}
