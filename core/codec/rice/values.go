package rice

import (
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/word"
)

// valueReader reads the residual words of one interval code.
type valueReader[T word.Word] struct {
	peek    uint    // bits of the longest code
	symbol  []uint8 // by the next peek bits
	symbols [interval.MaxSymbols]valueSymbol[T]
}

type valueSymbol[T word.Word] struct {
	base        T
	length, raw uint8
}

func newValueReader[T word.Word](c *interval.Code) *valueReader[T] {
	longest, _ := c.Longest()
	r := &valueReader[T]{peek: uint(longest), symbol: make([]uint8, 1<<longest)}
	c.Lookup(r.symbol, r.peek)
	for i, s := range c.Symbols {
		r.symbols[i] = valueSymbol[T]{T(s.Base), s.Length, s.Raw}
	}
	return r
}

// read returns the word whose code starts at bit pos, and its length.
func (r *valueReader[T]) read(buf []byte, pos uint) (v T, n uint) {
	window := bitio.Window(buf, pos)
	s := &r.symbols[r.symbol[window>>(64-r.peek)]&(interval.MaxSymbols-1)]
	raw := uint(s.raw)
	plain := window << s.length
	if word.Size[T]() == 8 { // the window may not hold it all
		pos += uint(s.length)
		plain = bitio.Window(buf, pos)>>32<<32 | bitio.Window(buf, pos+32)>>32
	}
	return s.base + T(plain>>(64-raw)), uint(s.length) + raw
}

// laneStart returns the number of the first value of a lane.
func laneStart(lane, lanes, values int) int { return lane * values / lanes }

// readValues reads the values of the words at positions, in the order of the
// slots, from bit pos on. It returns where they end, and false unless every lane
// ends where the next one starts and every word of a gap class changes.
func (d *decoder[T]) readValues(h *head, at *slots, buf []byte, pos uint, base []T, positions []uint32, values []T) (end uint, ok bool) {
	total := h.values(d.tables)
	lanes := lanesOf(total)
	lane, read := 0, 0
	border, start := laneStart(1, lanes, total), pos
	for c := range classes {
		if c != dense && (c >= len(d.tables.gaps) || !d.tables.gaps[c].coded) {
			continue
		}
		for slot := at.start[c]; slot < at.end[c]; {
			if read == border { // never that of the last lane
				if start += uint(h.lanes[lane]); pos != start {
					return pos, false
				}
				lane++
				border = laneStart(lane+1, lanes, total)
			}
			n := min(at.end[c]-slot, border-read)
			list := values[slot : slot+n]
			for i, p := range positions[slot : slot+n] {
				v, size := d.readers[d.class.context[key(d.class, base[p])]].read(buf, pos)
				if v == 0 && c != dense {
					return pos, false
				}
				list[i] = v
				pos += size
			}
			slot, read = slot+n, read+n
		}
	}
	return pos, true
}

// readSigns reads the values of the classes whose words move by one unit.
func readSigns[T word.Word](t *tables, at *slots, buf []byte, pos uint, values []T) {
	for c, g := range t.gaps {
		if g.coded {
			continue
		}
		list := values[at.start[c]:at.end[c]]
		for len(list) > 0 {
			n := min(len(list), windowBits)
			window := bitio.Window(buf, pos)
			for i := range list[:n] {
				list[i] = 1 - T(window>>63)<<1
				window <<= 1
			}
			list, pos = list[n:], pos+uint(n)
		}
	}
}
