package quant

import (
	"encoding/binary"
	"math"

	"github.com/tpde-project/tpde/core/dtype"
)

// Rounding float32 to the target types, and reading scales. In integers, so
// that no compiler can fuse or flush anything.

// A NaN is written as the pattern below, which is what NVIDIA GPUs produce:
// the kernels need no special case for it.
const (
	nan16 = 0x7FFF
	nan32 = 0x7FFFFFFF
)

// toBF16 rounds f to nearest, ties to even.
func toBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7FFFFFFF > 0x7F800000 {
		return nan16
	}
	return uint16((b + 0x7FFF + b>>16&1) >> 16)
}

// toF16 rounds f to nearest, ties to even; beyond the finite values it gives
// infinity.
func toF16(f float32) uint16 {
	b := math.Float32bits(f)
	sign, m := uint16(b>>16&0x8000), b&0x7FFFFFFF
	switch {
	case m > 0x7F800000:
		return nan16
	case m >= 0x47800000: // 2^16
		return sign | 0x7C00
	case m >= 0x38800000: // 2^-14, the smallest normal number
		m -= 112 << 23
		return sign | uint16((m+0xFFF+m>>13&1)>>13)
	case m <= 0x33000000: // 2^-25, half of the smallest subnormal
		return sign
	}
	drop := 126 - m>>23 // 14 to 24
	m = m&0x7FFFFF | 0x800000
	return sign | uint16((m+1<<(drop-1)-1+m>>drop&1)>>drop)
}

// toF32 is the identity but for NaNs.
func toF32(f float32) uint32 {
	b := math.Float32bits(f)
	if b&0x7FFFFFFF > 0x7F800000 {
		return nan32
	}
	return b
}

func fromBF16(w uint16) float32 { return math.Float32frombits(uint32(w) << 16) }

func fromF16(w uint16) float32 {
	sign, e, m := uint32(w>>15)<<31, uint32(w>>10&31), uint32(w&0x3FF)
	switch e {
	case 31:
		return math.Float32frombits(sign | 0x7F800000 | m<<13)
	case 0: // m * 2^-24, exact
		return math.Float32frombits(sign | math.Float32bits(float32(float32(m)*0x1p-24)))
	}
	return math.Float32frombits(sign | (e+112)<<23 | m<<13)
}

// scaleAt returns the scale of a group.
func scaleAt(scale []byte, t dtype.Type, group uint64) float32 {
	switch t {
	case dtype.F32:
		return math.Float32frombits(binary.LittleEndian.Uint32(scale[4*group:]))
	case dtype.F16:
		return fromF16(binary.LittleEndian.Uint16(scale[2*group:]))
	}
	return fromBF16(binary.LittleEndian.Uint16(scale[2*group:]))
}

// roundScale rounds a scale to its type and says what the rounded one is
// worth.
func roundScale(t dtype.Type, f float32) (word uint32, value float32) {
	switch t {
	case dtype.F32:
		return toF32(f), f
	case dtype.F16:
		w := toF16(f)
		return uint32(w), fromF16(w)
	}
	w := toBF16(f)
	return uint32(w), fromBF16(w)
}
