//go:build !purego

package prefix

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/word"
	"golang.org/x/sys/cpu"
)

// hasRows says that this machine runs decodeRows.
var hasRows = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI2

// rowArgs is what decodeRows works on; rows_amd64.s knows its layout.
type rowArgs struct {
	out, base *uint16
	rows      int
	strings   *byte   // readable for 16 bytes a row beyond the end of the last lane
	table     *uint32 // decoding table
	pos       [lanes]uint32
	keys      keyArgs   // first entries
	skip      [2]uint64 // 32 - bits of the table's index
	low       uint32    // 0xffff
	one       uint32
	swap      [64]byte // order of bytes in a big-endian word
	thirtyOne uint32
	thirtyTwo uint32
}

// decodeRows decodes whole rows of all lanes: 32 lanes of 8 words. No code
// with its plain bits has more than 16 bits. pos are bit positions of lanes
// in the order of transposed.
//
//go:noescape
func decodeRows(a *rowArgs)

// transposed is the lane that each place of the vectors works on: the dwords
// of 4 x 4 groups of 16 bytes are transposed, so that a vector has the same
// two words of 16 lanes.
func transposed(place int) int { return place&^15 | place&3<<2 | place>>2&3 }

// keyArgs tell the contexts of 16-bit words: first[key - lo], with keys below
// and above the 64 like the first and the last.
type keyArgs struct {
	first    [64]uint16 // what there is of the context, in units of the caller
	keyMask  uint32     // of two words
	lo       uint16
	last     uint16 // 63
	keyShift [2]uint64
}

// newKeyArgs returns the contexts with unit each; ok is false if they lie too
// far apart for 64 keys.
func newKeyArgs(t *tables, unit int) (k keyArgs, ok bool) {
	k = keyArgs{last: 63, keyMask: 0x10001 * uint32(1<<t.layout.keyBits-1), keyShift: [2]uint64{uint64(t.contexts.shift)}}
	if starts := t.contexts.starts; len(starts) > 0 {
		k.lo = starts[0] - 1
		if starts[len(starts)-1]-k.lo > 63 {
			return k, false
		}
	}
	for i := range k.first {
		k.first[i] = uint16(t.contexts.of(k.lo+uint16(i)) * unit)
	}
	return k, true
}

// newRowArgs prepares decodeRows; nil if these tables need plain Go.
func newRowArgs(t *tables, table []uint32) *rowArgs {
	keys, ok := newKeyArgs(t, 1<<t.index)
	if !ok || !hasRows || t.layout.coded != 16 || t.longest > 16 {
		return nil
	}
	a := &rowArgs{
		table: unsafe.SliceData(table), keys: keys, low: 0xffff, one: 1, thirtyOne: 31, thirtyTwo: 32,
		skip: [2]uint64{uint64(32 - t.index)},
	}
	for i := range a.swap {
		a.swap[i] = byte(i ^ 3)
	}
	return a
}

// rows decodes as many whole rows as there are, if this machine can, moves the
// positions on and returns the number of words done. strings has what rowSlack
// asks for behind it.
func (d *decoder[T, P]) rows(out, base []P, strings []byte, pos *[lanes]uint) int {
	if d.rowArgs == nil {
		return 0
	}
	a := *d.rowArgs
	a.rows = len(out) / (8 * lanes)
	if a.rows == 0 {
		return 0
	}
	a.out = unsafe.SliceData(word.View[uint16](word.Bytes(out)))
	a.base = unsafe.SliceData(word.View[uint16](word.Bytes(base)))
	a.strings = unsafe.SliceData(strings)
	for i := range a.pos {
		a.pos[i] = uint32(pos[transposed(i)])
	}
	decodeRows(&a)
	for i := range a.pos {
		pos[transposed(i)] = uint(a.pos[i])
	}
	return a.rows * 8 * lanes
}

// rowSlack is how many bytes must be readable behind the strings of words
// words: where damaged data sends it, a lane takes 16 bytes a row at most.
func rowSlack(words int) int { return words/(8*lanes)*16 + 64 }
