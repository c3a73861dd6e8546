package quant

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/tpde-project/tpde/core/status"
)

// DescriptorBytes is the size of what a kernel needs to know of a quantised
// base: struct QuantBase of kernels/dequant.cuh.
const DescriptorBytes = 128

// Pointers are where the parts of a Data lie on the device. Packed is 4-byte
// aligned, Scale aligned to its words; Zero is 0 where none are stored.
type Pointers struct{ Packed, Scale, Zero uint64 }

// Descriptor returns the struct QuantBase of a tensor of n elements.
func (s *Scheme) Descriptor(p Pointers, n uint64) ([DescriptorBytes]byte, error) {
	var b [DescriptorBytes]byte
	if err := s.Validate(); err != nil {
		return b, err
	}
	switch {
	case p.Packed%4 != 0 || p.Scale%uint64(s.Scale.WordBytes()) != 0:
		return b, status.Errorf(status.ErrArgument, "codes at %#x and scales at %#x, expected 4 and %d-byte alignment", p.Packed, p.Scale, s.Scale.WordBytes())
	case n > 0 && (p.Packed == 0 || p.Scale == 0):
		return b, status.Errorf(status.ErrArgument, "codes or scales are missing")
	case (p.Zero != 0) != (s.Zero && n > 0):
		return b, status.Errorf(status.ErrArgument, "zero points: pointer %#x, but the scheme says %t", p.Zero, s.Zero)
	}
	shift, ok := s.shift()
	if !ok {
		shift = 0xFF
	}
	// floor(2^64 / Group) + 1: the upper half of its product with i is
	// i / Group or one more.
	magic, _ := bits.Div64(1, 0, s.Group)
	le := binary.LittleEndian
	le.PutUint64(b[0:], p.Packed)
	le.PutUint64(b[8:], p.Scale)
	le.PutUint64(b[16:], p.Zero)
	le.PutUint64(b[24:], n)
	le.PutUint64(b[32:], s.PackedBytes(n))
	le.PutUint64(b[40:], s.Group)
	le.PutUint64(b[48:], magic+1)
	b[56], b[57], b[58], b[59] = byte(s.Kind), s.Bits, byte(s.Scale), shift
	if s.Kind == Codebook {
		for i, v := range s.Code {
			le.PutUint32(b[64+4*i:], math.Float32bits(v))
		}
	}
	return b, nil
}
