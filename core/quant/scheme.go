package quant

import (
	"math"
	"math/bits"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Kind says how a code becomes a value. The numbers are part of the format.
type Kind uint8

// The kinds of quantised tensors.
const (
	// Linear: (code - zero point) * scale.
	Linear Kind = 1
	// Codebook: code book entry * scale, 4 bits, high nibble first: NF4 and FP4
	// as bitsandbytes stores them.
	Codebook Kind = 2
	// Int8Rows: signed bytes * scale * (1/127): bitsandbytes' LLM.int8().
	Int8Rows Kind = 3
)

// minGroup lets the 16 bytes of words that a GPU thread writes at once meet no
// more than two groups.
const minGroup = 8

// NF4 is the code book of bitsandbytes' NormalFloat4 (nf4_dequantization_lut
// in its csrc/kernels.cu).
var NF4 = [16]float32{
	-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
	-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
	0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
	0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
}

// Scheme describes a quantised tensor, without its data.
type Scheme struct {
	Kind  Kind
	Bits  uint8       // of a code: 2, 3, 4 or 8 (Linear), 4 (Codebook), 8 (Int8Rows)
	Group uint64      // elements that share a scale, in the order of the flattened tensor; the last group may be shorter
	Scale dtype.Type  // F32, F16 or BF16; F32 for all kinds but Linear
	Zero  bool        // a zero point per group is stored (Linear only); otherwise it is 2^(Bits-1)
	Code  [16]float32 // Codebook only, all finite
}

// Data holds what a scheme describes; sizes are those of PackedBytes,
// ScaleBytes and ZeroBytes. Nothing need be aligned.
type Data struct {
	Packed []byte // codes
	Scale  []byte // one word of type Scheme.Scale per group
	Zero   []byte // one byte per group, or nil
}

// Validate reports what is wrong with s.
func (s *Scheme) Validate() error {
	if s.Group < minGroup {
		return status.Errorf(status.ErrArgument, "a group has %d elements, expected at least %d", s.Group, minGroup)
	}
	if s.Zero && s.Kind != Linear {
		return status.Errorf(status.ErrArgument, "zero points belong to linear codes only")
	}
	switch s.Kind {
	case Linear:
		if s.Bits != 2 && s.Bits != 3 && s.Bits != 4 && s.Bits != 8 {
			return status.Errorf(status.ErrArgument, "linear codes have %d bits, expected 2, 3, 4 or 8", s.Bits)
		}
		if s.Scale != dtype.F32 && s.Scale != dtype.F16 && s.Scale != dtype.BF16 {
			return status.Errorf(status.ErrArgument, "scales are %v, expected F32, F16 or BF16", s.Scale)
		}
		return nil
	case Codebook:
		for i, v := range s.Code {
			if v != v || math.Abs(float64(v)) > math.MaxFloat32 {
				return status.Errorf(status.ErrArgument, "entry %d of the code book is %v, expected a finite number", i, v)
			}
		}
		return s.require(4)
	case Int8Rows:
		return s.require(8)
	}
	return status.Errorf(status.ErrUnsupported, "kind %d of quantised tensor is unknown", s.Kind)
}

// require checks what bitsandbytes' layouts fix.
func (s *Scheme) require(bits uint8) error {
	if s.Bits != bits || s.Scale != dtype.F32 {
		return status.Errorf(status.ErrArgument, "%d bits with scales of %v, expected %d bits and F32", s.Bits, s.Scale, bits)
	}
	return nil
}

// PackedBytes returns the size of the codes of n elements: whole 4-byte words
// for Linear, whole bytes for bitsandbytes' layouts.
func (s *Scheme) PackedBytes(n uint64) uint64 {
	switch s.Kind {
	case Linear: // n*bits/32, rounded up, without overflow
		return 4 * (n/32*uint64(s.Bits) + (n%32*uint64(s.Bits)+31)/32)
	case Codebook:
		return n/2 + n%2
	}
	return n
}

// Groups returns the number of groups of n elements.
func (s *Scheme) Groups(n uint64) uint64 {
	g := n / s.Group
	if n%s.Group != 0 {
		g++
	}
	return g
}

// ScaleBytes returns the size of the scales of n elements.
func (s *Scheme) ScaleBytes(n uint64) uint64 { return s.Groups(n) * uint64(s.Scale.WordBytes()) }

// ZeroBytes returns the size of the zero points of n elements.
func (s *Scheme) ZeroBytes(n uint64) uint64 {
	if !s.Zero {
		return 0
	}
	return s.Groups(n)
}

// Check reports what is wrong with s and d as n elements of type t.
func (s *Scheme) Check(d *Data, n uint64, t dtype.Type) error { return s.check(d, n, t) }

func (s *Scheme) check(d *Data, n uint64, t dtype.Type) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if t != dtype.F32 && t != dtype.F16 && t != dtype.BF16 {
		return status.Errorf(status.ErrUnsupported, "elements of type %v cannot be quantised, expected F32, F16 or BF16", t)
	}
	for _, part := range []struct {
		name      string
		got, want uint64
	}{
		{"packed codes", uint64(len(d.Packed)), s.PackedBytes(n)},
		{"scales", uint64(len(d.Scale)), s.ScaleBytes(n)},
		{"zero points", uint64(len(d.Zero)), s.ZeroBytes(n)},
	} {
		if part.got != part.want {
			return status.Errorf(status.ErrArgument, "%s have %d bytes, expected %d for %d elements", part.name, part.got, part.want, n)
		}
	}
	return nil
}

// midpoint is the zero point where none is stored.
func (s *Scheme) midpoint() int32 { return 1 << (s.Bits - 1) }

// shift returns log2(Group), or false if Group is no power of two.
func (s *Scheme) shift() (uint8, bool) {
	return uint8(bits.TrailingZeros64(s.Group)), s.Group&(s.Group-1) == 0
}
