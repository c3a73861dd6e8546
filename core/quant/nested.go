package quant

import (
	"encoding/binary"
	"math"

	"github.com/tpde-project/tpde/core/status"
)

// Nested is what bitsandbytes' double quantisation makes of the scales of a
// tensor: codes of 8 bits, which a code book, a scale per block and an offset
// turn into float32 scales.
type Nested struct {
	Codes  []byte       // one per group
	Scale  []byte       // one float32 per block of codes
	Block  uint64       // codes that share a scale; the last block may be shorter
	Code   [256]float32 // all finite
	Offset float32
}

// Validate reports what is wrong with x as the scales of groups groups.
func (x *Nested) Validate(groups uint64) error {
	if x.Block == 0 {
		return status.Errorf(status.ErrArgument, "a block of nested scales has no elements")
	}
	if uint64(len(x.Codes)) != groups {
		return status.Errorf(status.ErrArgument, "nested scales have %d codes, expected %d", len(x.Codes), groups)
	}
	blocks := groups / x.Block
	if groups%x.Block != 0 {
		blocks++
	}
	if uint64(len(x.Scale)) != 4*blocks {
		return status.Errorf(status.ErrArgument, "nested scales have scales of %d bytes, expected %d", len(x.Scale), 4*blocks)
	}
	for i, v := range x.Code {
		if v-v != 0 {
			return status.Errorf(status.ErrArgument, "entry %d of the code book of the nested scales is %v, expected a finite number", i, v)
		}
	}
	return nil
}

// Expand writes the float32 scales of groups first, first+1, ... to dst, four
// bytes each: THE definition, beside FORMAT.md. x must be valid.
func (x *Nested) Expand(dst []byte, first uint64) {
	for i := uint64(0); 4*i < uint64(len(dst)); i++ {
		group := first + i
		scale := math.Float32frombits(binary.LittleEndian.Uint32(x.Scale[4*(group/x.Block):]))
		// The conversion of the product keeps Go from fusing it with the sum.
		v := float32(x.Code[x.Codes[group]]*scale) + x.Offset
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}
