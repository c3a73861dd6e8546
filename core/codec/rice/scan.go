package rice

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/word"
)

// found is a word that the encoder must do something about: one that changed,
// or is in the dense class.
type found struct {
	at   uint32 // position in the chunk
	rank uint32 // words of its class before it
}

// scanWords is how many words are scanned at once: a multiple of stripWords
// and of 64.
const scanWords = 64 * stripWords

// scan lists in out, which has room for all words, those that changed or are
// dense, and adds to passed the words of each class. first is the position of
// the first word. The words of a class are in order, those of several need not be.
func scan[T word.Word](k *classifier, base, res []T, first uint32, passed *[classes]uint32, out []found) int {
	done, n := scanGroups(k, base, res, first, passed, out)
	return n + scanWordwise(k, base[done:], res[done:], first+uint32(done), passed, out[n:])
}

// scanWordwise is scan in plain Go.
func scanWordwise[T word.Word](k *classifier, base, res []T, first uint32, passed *[classes]uint32, out []found) int {
	const denseStep = 1 << (8 * dense)
	size := word.Size[T]()
	group, part := groupBytes/size, partBytes/size
	n := 0
	for start := 0; start < len(res); start += stripWords {
		end := min(start+stripWords, len(res))
		b, r := base[start:end], res[start:end]
		baseBytes, resBytes := word.Bytes(b), word.Bytes(r)
		counted := uint64(0)
		for j := 0; j < len(r); {
			if j+group <= len(r) {
				steps := k.sumGroup(size, baseBytes[j*size:])
				if steps < denseStep && isZero(resBytes[j*size:]) {
					counted += steps
					j += group
					continue
				}
			}
			// A word of this group is an event: look closer.
			for stop := min(j+group, len(r)); j < stop; {
				if j+part <= stop && binary.LittleEndian.Uint64(resBytes[j*size:]) == 0 {
					steps := k.sum(size, binary.LittleEndian.Uint64(baseBytes[j*size:]))
					if steps < denseStep {
						counted += steps
						j += part
						continue
					}
				}
				for part := min(j+part, stop); j < part; j++ {
					step := k.steps[key(k, b[j])]
					if r[j] != 0 || step == denseStep {
						c := classOf(step)
						out[n] = found{first + uint32(start+j), passed[c] + uint32(counted>>(8*c)&0xff)}
						n++
					}
					counted += step
				}
			}
		}
		for c := range passed {
			passed[c] += uint32(counted >> (8 * c) & 0xff)
		}
	}
	return n
}

// isZero reports whether the first groupBytes of g are zero.
func isZero(g []byte) bool {
	_ = g[groupBytes-1]
	return binary.LittleEndian.Uint64(g)|binary.LittleEndian.Uint64(g[8:])|
		binary.LittleEndian.Uint64(g[16:])|binary.LittleEndian.Uint64(g[24:]) == 0
}

// finder looks up the symbols of residual words, those of small words in a
// table.
type finder[T word.Word] struct {
	code  *interval.Code
	small [256]int8 // of the words from -128 to 127, from -128 on
}

func newFinder[T word.Word](c *interval.Code) *finder[T] {
	f := &finder[T]{code: c}
	for i := 0; i < len(f.small); {
		v := T(i - 128)
		symbol, n := c.Find(uint64(v)), 1
		if symbol >= 0 { // as far as its interval goes
			s := &c.Symbols[symbol]
			n = int(min(s.Base+(1<<s.Raw-1)-uint64(v), uint64(len(f.small)-1-i))) + 1
		}
		for range n {
			f.small[i] = int8(symbol)
			i++
		}
	}
	return f
}

// find returns the number of the symbol that holds v, or -1.
func (f *finder[T]) find(v T) int {
	if i := v + 128; uint64(i) < 256 {
		return int(f.small[i])
	}
	return f.code.Find(uint64(v))
}
