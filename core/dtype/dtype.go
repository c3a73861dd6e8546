// Package dtype names the element types of the safetensors format and says
// how the codecs see them: as unsigned words of 1, 2, 4 or 8 bytes.
//
// An element is one word for every type but three: C64 is two 4-byte words,
// and the packed sub-byte types (F4, F6) are coded as the bytes they fill.
// Everything in the core counts words; only shapes count elements.
package dtype

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/status"
)

// Type is an element type. The numbers are part of the index format.
type Type uint8

// The element types of safetensors 0.8.
const (
	Invalid    Type = 0
	Bool       Type = 1
	U8         Type = 2
	I8         Type = 3
	U16        Type = 4
	I16        Type = 5
	U32        Type = 6
	I32        Type = 7
	U64        Type = 8
	I64        Type = 9
	F16        Type = 10
	BF16       Type = 11
	F32        Type = 12
	F64        Type = 13
	C64        Type = 14
	F8E4M3     Type = 15
	F8E5M2     Type = 16
	F8E8M0     Type = 17
	F8E4M3FNUZ Type = 18
	F8E5M2FNUZ Type = 19
	F6E2M3     Type = 20
	F6E3M2     Type = 21
	F4         Type = 22
)

type traits struct {
	name      string
	bits      uint8 // of one element
	wordBytes uint8
	expShift  uint8 // bit position of the exponent's lowest bit in a word; 0 if there is none
	expBits   uint8 // width of the exponent; 0 if there is none
	add       bool  // the add residual is defined
}

var table = [...]traits{
	Invalid:    {},
	Bool:       {"BOOL", 8, 1, 0, 0, false},
	U8:         {"U8", 8, 1, 0, 0, false},
	I8:         {"I8", 8, 1, 0, 0, false},
	U16:        {"U16", 16, 2, 0, 0, false},
	I16:        {"I16", 16, 2, 0, 0, false},
	U32:        {"U32", 32, 4, 0, 0, false},
	I32:        {"I32", 32, 4, 0, 0, false},
	U64:        {"U64", 64, 8, 0, 0, false},
	I64:        {"I64", 64, 8, 0, 0, false},
	F16:        {"F16", 16, 2, 10, 5, true},
	BF16:       {"BF16", 16, 2, 7, 8, true},
	F32:        {"F32", 32, 4, 23, 8, true},
	F64:        {"F64", 64, 8, 52, 11, true},
	C64:        {"C64", 64, 4, 23, 8, true},
	F8E4M3:     {"F8_E4M3", 8, 1, 3, 4, true},
	F8E5M2:     {"F8_E5M2", 8, 1, 2, 5, true},
	F8E8M0:     {"F8_E8M0", 8, 1, 0, 0, false},
	F8E4M3FNUZ: {"F8_E4M3FNUZ", 8, 1, 3, 4, true},
	F8E5M2FNUZ: {"F8_E5M2FNUZ", 8, 1, 2, 5, true},
	F6E2M3:     {"F6_E2M3", 6, 1, 0, 0, false},
	F6E3M2:     {"F6_E3M2", 6, 1, 0, 0, false},
	F4:         {"F4", 4, 1, 0, 0, false},
}

// Valid reports whether t is one of the types above.
func (t Type) Valid() bool { return t != Invalid && int(t) < len(table) }

// String returns the name that safetensors headers use.
func (t Type) String() string {
	if !t.Valid() {
		return "INVALID"
	}
	return table[t].name
}

// Bits returns the size of an element in bits.
func (t Type) Bits() int { return int(table[t].bits) }

// WordBytes returns the size in bytes of the words that the codecs work on.
func (t Type) WordBytes() int { return int(table[t].wordBytes) }

// Exponent returns where the exponent lies in a word: the position of its
// lowest bit and its width in bits, 0 if the type has none.
func (t Type) Exponent() (shift, width int) {
	return int(table[t].expShift), int(table[t].expBits)
}

// HasAdd reports whether the add residual is defined for the type.
func (t Type) HasAdd() bool { return t.Valid() && table[t].add }

// Parse returns the type that safetensors headers call name.
func Parse(name string) (Type, error) {
	for t := Bool; int(t) < len(table); t++ {
		if table[t].name == name {
			return t, nil
		}
	}
	return Invalid, status.Errorf(status.ErrUnsupported, "dtype %q is not one of safetensors' types", name)
}

// Bytes returns the size in bytes of a tensor of the given shape, with
// overflow-safe arithmetic. Packed sub-byte types must fill whole bytes.
func (t Type) Bytes(shape []uint64) (uint64, error) {
	if !t.Valid() {
		return 0, status.Errorf(status.ErrUnsupported, "dtype code %d is unknown", uint8(t))
	}
	n := uint64(1)
	for _, d := range shape {
		if d == 0 {
			n = 0
		}
	}
	for _, d := range shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 {
			return 0, status.Errorf(status.ErrLimit, "shape %v has more than 2^64 elements", shape)
		}
		n = lo
	}
	hi, total := bits.Mul64(n, uint64(t.Bits()))
	if hi != 0 {
		return 0, status.Errorf(status.ErrLimit, "shape %v of %v has more than 2^64 bits", shape, t)
	}
	if total%8 != 0 {
		return 0, status.Errorf(status.ErrArgument, "shape %v of %v does not fill whole bytes", shape, t)
	}
	return total / 8, nil
}
