package elias

import "encoding/binary"

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

// full is the packed counters of a lane when no gap has a word left: see
// decoder.lane.
const full = 1<<15 | 1<<31 | 1<<47 | 1<<63

// skip subtracts the steps of whole groups from the counters, a row of stride
// bytes apart from byte off of base on, as long as none runs out: nearly every
// group of a sparse residual. At most 16 is subtracted at a time, so no counter
// borrows from the next.
func (s *stepTable) skip(wordBytes int, base []byte, off, stride int, shift, counters uint64) (int, uint64) {
	for ; off+groupBytes <= len(base); off += stride {
		after := counters - s.sum(wordBytes, base, off, shift)
		if after&full != full {
			break
		}
		counters = after
	}
	return off, counters
}

// sum adds up the steps of the group at byte off of base.
func (s *stepTable) sum(wordBytes int, base []byte, off int, shift uint64) uint64 {
	g := base[off : off+groupBytes]
	lo := binary.LittleEndian.Uint64(g) >> (shift & 63)
	hi := binary.LittleEndian.Uint64(g[8:]) >> (shift & 63)
	switch wordBytes {
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

// count adds up the steps of whole groups like skip, as long as their residual
// is zero and none of their words is dense.
func (s *stepTable) count(wordBytes int, base, res []byte, off, stride int, shift uint64) (int, uint64) {
	var total uint64
	for ; off+groupBytes <= len(base); off += stride {
		r := res[off : off+groupBytes]
		if binary.LittleEndian.Uint64(r)|binary.LittleEndian.Uint64(r[8:]) != 0 {
			break
		}
		sum := s.sum(wordBytes, base, off, shift)
		if sum >= 1<<(16*dense) {
			break
		}
		total += sum
	}
	return off, total
}
