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
	next, passed := &p.next, &p.passed
	for first := start; first < len(base); first += stripWords {
		strip := base[first:min(first+stripWords, len(base))]
		counters := packCounters(at, next, ranks, passed)
		put := counters // what counters were set to in all: the rest has been counted
		for j := 0; j < len(strip); {
			var n int
			counters, n = pass(k, strip[j:], counters)
			j += n
			// A word of the next ones has an event: look closer.
			for stop := min(j+partBytes/word.Size[T](), len(strip)); j < stop; j++ {
				step := k.steps[key(k, strip[j])]
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
				put += step * uint64(distance+1)
			}
		}
		counted := put - counters
		for c := range passed {
			passed[c] += uint32(counted >> (8 * c) & 0xff)
		}
	}
	return true
}

// pass counts words as long as none of the partBytes that it looks at at once
// has an event, and returns the counters then, and the number of words.
func pass[T word.Word](k *classifier, base []T, counters uint64) (left uint64, words int) {
	bytes := word.Bytes(base)
	size := len(bytes)
	switch shift, lanes := k.shift&63, k.lanes; word.Size[T]() {
	case 2: // as sum does it, with what it takes of k in registers
		for ; len(bytes) >= partBytes; bytes = bytes[partBytes:] {
			x := binary.LittleEndian.Uint64(bytes) >> shift & lanes
			left := counters - (k.steps[x&keyMask] + k.steps[x>>16&keyMask] + k.steps[x>>32&keyMask] + k.steps[x>>48&keyMask])
			if left&full != full {
				break
			}
			counters = left
		}
	default:
		for ; len(bytes) >= partBytes; bytes = bytes[partBytes:] {
			left := counters - k.sum(word.Size[T](), binary.LittleEndian.Uint64(bytes))
			if left&full != full {
				break
			}
			counters = left
		}
	}
	return counters, (size - len(bytes)) / word.Size[T]()
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
