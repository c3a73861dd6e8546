package elias

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/word"
)

// stepTable maps the low 5 bits of w>>shift to a one in the field of the
// word's class: 16 bits for each gap class, the highest 16 for the dense class.
// Sums of steps count the words of each class at once.
type stepTable [maxContexts]uint64

func newStepTable(t *tables) stepTable {
	var s stepTable
	for i := range s {
		s[i] = 1 << (16 * t.class[t.context(i)])
	}
	return s
}

// The sums below add up the steps of a group of 16 bytes, given as two words of
// 64 bits, shifted right: one
// shift brings the contexts of all tensor words in them to fixed places.
func (s *stepTable) sum16(lo, hi uint64) uint64 {
	const m = maxContexts - 1
	return s[lo&m] + s[lo>>16&m] + s[lo>>32&m] + s[lo>>48&m] +
		s[hi&m] + s[hi>>16&m] + s[hi>>32&m] + s[hi>>48&m]
}

func (s *stepTable) sum32(lo, hi uint64) uint64 {
	const m = maxContexts - 1
	return s[lo&m] + s[lo>>32&m] + s[hi&m] + s[hi>>32&m]
}

func (s *stepTable) sum64(lo, hi uint64) uint64 {
	const m = maxContexts - 1
	return s[lo&m] + s[hi&m]
}

func (s *stepTable) sum8(lo, hi uint64) uint64 {
	const m = maxContexts - 1
	return s[lo&m] + s[lo>>8&m] + s[lo>>16&m] + s[lo>>24&m] +
		s[lo>>32&m] + s[lo>>40&m] + s[lo>>48&m] + s[lo>>56&m] +
		s[hi&m] + s[hi>>8&m] + s[hi>>16&m] + s[hi>>24&m] +
		s[hi>>32&m] + s[hi>>40&m] + s[hi>>48&m] + s[hi>>56&m]
}

// sumGroup adds up the steps of the words in the 16 bytes of group.
func sumGroup[T word.Word](s *stepTable, group []T, shift uint64) uint64 {
	b := word.Bytes(group)
	lo := binary.LittleEndian.Uint64(b) >> shift
	hi := binary.LittleEndian.Uint64(b[8:]) >> shift
	switch word.Size[T]() {
	case 1:
		return s.sum8(lo, hi)
	case 2:
		return s.sum16(lo, hi)
	case 4:
		return s.sum32(lo, hi)
	default:
		return s.sum64(lo, hi)
	}
}

// allZero reports whether the 16 bytes of group are zero.
func allZero[T word.Word](group []T) bool {
	b := word.Bytes(group)
	return binary.LittleEndian.Uint64(b)|binary.LittleEndian.Uint64(b[8:]) == 0
}
