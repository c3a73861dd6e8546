// Package interval makes and describes interval codes: prefix codes whose
// symbols are intervals of residual words. Where changes are counted in ulps,
// they are dense and smooth near zero and thin far away, so a few intervals of
// 2^n words each, narrow near zero and wide far out, followed by n plain bits,
// come within half a percent of the entropy, and one look-up decodes a word.
//
// The residual words form a ring modulo 2^W, so that a change of sign, half a
// ring away from zero, has intervals like any other change.
//
// A code is immutable once made; everything is safe for concurrent use.
//
// Sources: length-limited codes by package-merge (Larmore, Hirschberg, "A fast
// algorithm for optimal length-limited Huffman codes", 1990).
package interval

import (
	"math/bits"
	"slices"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
)

const (
	// MaxSymbols is the most intervals that a code may have.
	MaxSymbols = 64
	// MaxLength is the most bits that the code of an interval may have, before
	// the plain bits.
	MaxLength = 10
)

// Symbol is an interval of residual words, [Base, Base + 2^Raw), aligned to
// its size, and its code.
type Symbol struct {
	Base   uint64
	Raw    uint8  // plain bits behind the code
	Length uint8  // of the code in bits
	Bits   uint16 // the code, in the low Length bits
}

// Code is an interval code: symbols in ascending order of Base, which do not
// overlap and whose codes fill the code space. It may leave words out.
type Code struct {
	Width   uint // W, the bits of a residual word
	Symbols []Symbol
}

// Find returns the number of the symbol that holds v, or -1.
func (c *Code) Find(v uint64) int {
	i, exact := slices.BinarySearchFunc(c.Symbols, v, func(s Symbol, v uint64) int {
		switch {
		case s.Base < v:
			return -1
		case s.Base > v:
			return 1
		}
		return 0
	})
	if !exact {
		i--
	}
	if i < 0 || v-c.Symbols[i].Base >= 1<<c.Symbols[i].Raw {
		return -1
	}
	return i
}

// Longest returns the length of the longest code in bits, and of the longest
// code with its plain bits.
func (c *Code) Longest() (code, total int) {
	for _, s := range c.Symbols {
		code, total = max(code, int(s.Length)), max(total, int(s.Length)+int(s.Raw))
	}
	return code, total
}

// Shortest returns the number of the symbol with the fewest bits in all; of
// several the first. What stands in for a word that the code leaves out has it.
func (c *Code) Shortest() int {
	best := 0
	for i, s := range c.Symbols {
		if s.Length+s.Raw < c.Symbols[best].Length+c.Symbols[best].Raw {
			best = i
		}
	}
	return best
}

// Lookup fills table, of 2^bits entries, with the number of the symbol that
// each window of bits starts with.
func (c *Code) Lookup(table []uint8, windowBits uint) {
	for i, s := range c.Symbols {
		spare := windowBits - uint(s.Length)
		first := int(s.Bits) << spare
		for k := range 1 << spare {
			table[first+k] = uint8(i)
		}
	}
}

// assign gives the symbols their canonical codes: numbers in ascending order,
// shorter codes first, then in the order of Base.
func (c *Code) assign() {
	next := uint16(0)
	for length := range uint8(MaxLength + 1) {
		next <<= 1
		for i := range c.Symbols {
			if s := &c.Symbols[i]; s.Length == length {
				s.Bits = next
				next++
			}
		}
	}
}

// AppendTo writes the code as FORMAT.md says.
func (c *Code) AppendTo(w *bitio.Writer) {
	w.PutGamma(uint64(len(c.Symbols)-1), 3)
	var end uint64
	var last Symbol
	for _, s := range c.Symbols {
		w.PutGamma(zigzag(int(s.Raw)-int(last.Raw)), 1)
		w.PutGamma(zigzag(int(s.Length)-int(last.Length)), 1)
		gap := (s.Base - alignUp(end, s.Raw)) >> s.Raw
		n := uint(bits.Len64(gap))
		w.PutGamma(uint64(n), 0)
		if n > 1 {
			w.PutLong(gap, n-1)
		}
		end, last = s.Base+1<<s.Raw, s
	}
}

// Read reads a code for words of width bits that AppendTo wrote; anything that
// is no such code is status.ErrCorrupt.
func Read(r *bitio.Reader, width uint) (Code, error) {
	c := Code{Width: width}
	n, ok := r.Gamma(3)
	if !ok || n >= MaxSymbols {
		return c, status.Errorf(status.ErrCorrupt, "interval code has %d intervals, expected 1 to %d", n+1, MaxSymbols)
	}
	c.Symbols = make([]Symbol, n+1)
	var end uint64
	full := false // the last interval ends at 2^64
	var last Symbol
	space := 0 // that the codes take, in units of 2^-MaxLength
	for i := range c.Symbols {
		raw, ok1 := r.Gamma(1)
		length, ok2 := r.Gamma(1)
		gapBits, ok3 := r.Gamma(0)
		s := Symbol{}
		rawBits, codeBits := int(last.Raw)+unzigzag(raw), int(last.Length)+unzigzag(length)
		if !ok1 || !ok2 || !ok3 || rawBits < 0 || rawBits > int(width) || rawBits > 63 || codeBits < 0 || codeBits > MaxLength || gapBits > uint64(width) {
			return c, status.Errorf(status.ErrCorrupt, "interval %d has %d plain bits, a code of %d bits and a distance of %d bits, expected at most %d, %d and %d",
				i, rawBits, codeBits, gapBits, min(width, 63), MaxLength, width)
		}
		s.Raw, s.Length = uint8(rawBits), uint8(codeBits)
		var gap uint64
		if gapBits > 0 {
			gap = 1<<(gapBits-1) | r.Get(uint(gapBits-1))
		}
		start := alignUp(end, s.Raw)
		s.Base = start + gap<<s.Raw
		if full || start < end || gap<<s.Raw>>s.Raw != gap || s.Base < start || width < 64 && s.Base+1<<s.Raw > 1<<width {
			return c, status.Errorf(status.ErrCorrupt, "interval %d starts at %#x, expected %#x or later in a ring of %d bits", i, s.Base, end, width)
		}
		end = s.Base + 1<<s.Raw
		full = end == 0
		space += 1 << (MaxLength - s.Length)
		c.Symbols[i], last = s, s
	}
	if space != 1<<MaxLength || !r.OK() {
		return c, status.Errorf(status.ErrCorrupt, "the codes of %d intervals fill %d / %d of the code space", len(c.Symbols), space, 1<<MaxLength)
	}
	c.assign()
	return c, nil
}

// alignUp returns the least multiple of 2^raw that is v or more; 0 if that is
// 2^64.
func alignUp(v uint64, raw uint8) uint64 { return (v + 1<<raw - 1) >> raw << raw }

func zigzag(v int) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(z uint64) int { return int(z>>1) ^ -int(z&1) }
