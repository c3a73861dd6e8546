package rice

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/codec/bitio"
)

// never is the rank of the event that follows the last one of its class.
const never = 1 << 30

// sections tells where the sections of a chunk start, in bits.
type sections struct {
	low       uint // low bits of the distances, class by class
	signs     uint
	quotients uint
}

// sectionsOf places the sections that follow a head of start bits.
func sectionsOf(t *tables, h *head, start uint) sections {
	s := sections{low: start, signs: start}
	signs := uint(0)
	for c, g := range t.gaps {
		n := uint(h.events[c])
		s.signs += n * uint(g.low)
		if !g.coded {
			signs += n
		}
	}
	s.quotients = s.signs + signs
	return s
}

// slots is where the events of each class lie in a list of all of them, class
// by class. Each gap class has a slot more, for an event that never comes.
type slots struct {
	start, end [classes]int
	size       int
}

func slotsOf(h *head) slots {
	var s slots
	for c, n := range h.events {
		s.start[c], s.end[c] = s.size, s.size+n
		s.size += n + 1
	}
	return s
}

// readRanks turns the distances of all gap classes into ranks, which count all
// words of the class, and returns where the quotients end. buf has end bits and
// bitio.Slack bytes behind them. ok is false if a distance is cut off or leads
// beyond the words of the chunk.
func readRanks(t *tables, h *head, at *slots, buf []byte, s sections, end uint, words int, ranks []uint32) (pos uint, ok bool) {
	low, pos := s.low, s.quotients
	for c, g := range t.gaps {
		k := uint(g.low)
		next := uint64(0) // rank
		list := ranks[at.start[c]:at.end[c]]
		for i := range list {
			window := bitio.Window(buf, pos)
			zeros := uint(bits.LeadingZeros64(window))
			quotient := uint64(zeros)
			if zeros >= windowBits {
				quotient, pos = skipZeros(buf, pos, end)
				zeros = 0
			}
			pos += zeros + 1
			next += quotient<<k | bitio.Window(buf, low)>>(64-k)
			low += k
			if next >= uint64(words) {
				return pos, false
			}
			list[i] = uint32(next)
			next++
		}
		ranks[at.end[c]] = never
	}
	return pos, pos <= end
}

// windowBits is how many bits of a window are valid.
const windowBits = 57

// skipZeros returns the number of zeros from bit pos on, and the position
// behind them; both end at bit end.
func skipZeros(buf []byte, pos, end uint) (zeros uint64, next uint) {
	start := pos
	for pos < end {
		n := uint(bits.LeadingZeros64(bitio.Window(buf, pos)))
		if pos += min(n, windowBits); n < windowBits {
			break
		}
	}
	return uint64(pos - start), pos
}
