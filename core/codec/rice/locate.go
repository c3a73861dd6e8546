package rice

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/word"
)

// locate replaces the ranks of the events by their positions in the chunk,
// and fills in those of the dense class. It returns false unless every event
// is found and every dense word has one.
//
// The counters of the classes are packed 8 bits apart, each 128 above the
// number of words of its class up to the next event, as long as that is below
// 128. Each word subtracts the step of its class; a counter that falls below
// 128 says that the word has an event. The dense class has a counter that
// stands at 128, so that each of its words does.
func locate[T word.Word](k *classifier, base []T, at *slots, ranks []uint32) bool {
	p := progress{next: at.start}
	done, ok := locateGroups(k, base, at, ranks, &p)
	return ok && locateFrom(k, base, done, at, ranks, &p) && p.next == at.end
}

// progress is how far the search for events has come.
type progress struct {
	next   [classes]int    // slot of the next event of each class
	passed [classes]uint32 // words of each class so far
}

// locateFrom is locate from the word at start on.
func locateFrom[T word.Word](k *classifier, base []T, start int, at *slots, ranks []uint32, p *progress) bool {
	size := word.Size[T]()
	group, part := groupBytes/size, partBytes/size
	next, passed := &p.next, &p.passed
	for first := start; first < len(base); first += stripWords {
		strip := base[first:min(first+stripWords, len(base))]
		bytes := word.Bytes(strip)
		counters := packCounters(at, next, ranks, passed)
		counted := uint64(0)
		for j := 0; j < len(strip); {
			if j+group <= len(strip) {
				steps := k.sumGroup(size, bytes[j*size:])
				if left := counters - steps; left&full == full {
					counters, counted = left, counted+steps
					j += group
					continue
				}
			}
			// A word of this group has an event: look closer.
			for end := min(j+group, len(strip)); j < end; {
				if j+part <= end {
					steps := k.sum(size, binary.LittleEndian.Uint64(bytes[j*size:]))
					if left := counters - steps; left&full == full {
						counters, counted = left, counted+steps
						j += part
						continue
					}
				}
				for stop := min(j+part, end); j < stop; j++ {
					step := k.steps[key(k, strip[j])]
					counted += step
					counters -= step
					if counters&full == full {
						continue
					}
					c := classOf(step)
					slot := next[c]
					if slot >= at.end[c] {
						return false
					}
					distance := uint32(0)
					if c != dense {
						distance = min(ranks[slot+1]-ranks[slot]-1, 127)
					}
					ranks[slot] = uint32(first + j)
					next[c] = slot + 1
					counters += step * uint64(distance+1)
				}
			}
		}
		for c := range passed {
			passed[c] += uint32(counted >> (8 * c) & 0xff)
		}
	}
	return true
}

// full is the packed counters when no class has a word left before its event.
const full = 0x8080808080808080

// packCounters returns the counters at the start of a strip, in which no class
// has more than 127 words.
func packCounters(at *slots, next *[classes]int, ranks []uint32, passed *[classes]uint32) uint64 {
	counters := uint64(full)
	for c := range maxGaps {
		distance := uint64(127)
		if next[c] < at.end[c] {
			distance = min(uint64(ranks[next[c]]-passed[c]), 127)
		}
		counters += distance << (8 * c)
	}
	return counters
}
