package rice

import (
	"encoding/binary"
	"math/bits"

	"github.com/tpde-project/tpde/core/word"
)

// classifier maps base words to contexts and classes by their keys.
type classifier struct {
	mask  uint64
	shift uint
	// lanes is the mask of the keys in a 64-bit word of base words that was
	// shifted right by shift.
	lanes uint64
	// steps has a one in the byte of the key's class, so that sums of steps
	// count the words of all classes at once.
	steps   [1 << maxKeyBits]uint64
	context [1 << maxKeyBits]uint8
	// class is that of the keys, if they are few.
	class [256]uint8
	keys  int
	gaps  int // gap classes
}

const keyMask = 1<<maxKeyBits - 1

func newClassifier(t *tables) *classifier {
	k := &classifier{mask: t.mask, shift: t.shift, keys: 1 << t.keyBits(), gaps: len(t.gaps)}
	for at := uint(0); at < 64; at += t.width {
		k.lanes |= t.mask >> t.shift << at
	}
	next := 0
	for key := range 1 << t.keyBits() {
		if next < len(t.contexts) && int(t.contexts[next].first) == key {
			next++
		}
		k.context[key] = uint8(next - 1)
		class := t.contexts[next-1].class
		k.steps[key] = 1 << (8 * class)
		if key < len(k.class) {
			k.class[key] = class
		}
	}
	return k
}

// key returns the key of a base word.
func key[T word.Word](k *classifier, w T) uint64 {
	return uint64(w) & k.mask >> (k.shift & 63) & keyMask
}

// classOf returns the class that a step counts.
func classOf(step uint64) int { return bits.TrailingZeros64(step) >> 3 }

// groupBytes is how much of a base is looked at at once, and partBytes how
// much where an event is near.
const (
	groupBytes = 32
	partBytes  = 8
)

// stripWords is how many words are counted before the byte-wide counts are
// added up: a multiple of every group, below 128.
const stripWords = 96

// sum adds up the steps of the words of 8 bytes of the base.
func (k *classifier) sum(wordBytes int, x uint64) uint64 {
	x = x >> (k.shift & 63) & k.lanes
	switch wordBytes {
	case 1:
		return k.steps[x&0xff] + k.steps[x>>8&0xff] + k.steps[x>>16&0xff] + k.steps[x>>24&0xff] +
			k.steps[x>>32&0xff] + k.steps[x>>40&0xff] + k.steps[x>>48&0xff] + k.steps[x>>56&0xff]
	case 2:
		return k.steps[x&keyMask] + k.steps[x>>16&keyMask] + k.steps[x>>32&keyMask] + k.steps[x>>48&keyMask]
	case 4:
		return k.steps[x&keyMask] + k.steps[x>>32&keyMask]
	default:
		return k.steps[x&keyMask]
	}
}

// sumGroup adds up the steps of groupBytes of the base.
func (k *classifier) sumGroup(wordBytes int, g []byte) uint64 {
	_ = g[groupBytes-1]
	return k.sum(wordBytes, binary.LittleEndian.Uint64(g)) + k.sum(wordBytes, binary.LittleEndian.Uint64(g[8:])) +
		k.sum(wordBytes, binary.LittleEndian.Uint64(g[16:])) + k.sum(wordBytes, binary.LittleEndian.Uint64(g[24:]))
}
