//go:build !purego

package prefix

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/word"
)

// findStep is how many words findPairs does at a time, and stops before if one
// of them is left out by the codes.
const findStep = 16

// findArgs is what findPairs works on; find_amd64.s knows its layout.
type findArgs struct {
	base, res   *uint16
	pairs       *uint64
	steps       int // of 16 words, to be done; those left when it returns
	pages, leaf *uint32
	keys        keyArgs // first pages
	low         uint32  // 0xffff
	byte        uint32  // 0xff
	leftOut     uint32
	thirtyOne   uint32
	lowDword    uint64 // 2^32 - 1
}

// findPairs does what encoder.find says, as long as no word is left out.
//
//go:noescape
func findPairs(a *findArgs)

// newFindArgs prepares findPairs; nil if these tables need plain Go.
func newFindArgs(t *tables, k *lookup) *findArgs {
	keys, ok := newKeyArgs(t, 256)
	if !ok || !hasRows || t.layout.coded != 16 {
		return nil
	}
	return &findArgs{
		pages: unsafe.SliceData(k.pages), leaf: unsafe.SliceData(k.leaf), keys: keys,
		low: 0xffff, byte: 0xff, leftOut: leftOut, thirtyOne: 31, lowDword: 1<<32 - 1,
	}
}

// findFast does words from word at on, if this machine can, and returns how
// many it did.
func (e *encoder[T, P]) findFast(s *encodeState[P], at int) int {
	steps := (len(s.res) - at) / findStep
	if e.findArgs == nil || steps == 0 {
		return 0
	}
	a := *e.findArgs
	a.base = &word.View[uint16](word.Bytes(s.base))[at]
	a.res = &word.View[uint16](word.Bytes(s.res))[at]
	a.pairs = &s.pairs[at/2]
	a.steps = steps
	findPairs(&a)
	return (steps - a.steps) * findStep
}
