package prefix

import "github.com/tpde-project/tpde/core/codec/interval"

// lookup is what an encoder looks residuals up in: for each context 256 page
// numbers by the high byte of the residual, and pages of 256 entries by its
// low byte. Pages on which nothing differs are shared. Coded parts of 8 bits
// have one page a context.
type lookup struct {
	pages []uint32 // number of the first entry of the page
	leaf  []uint32
}

// An entry: in bits 0-4 the length of code and plain bits, in bit 7 whether the
// residual is left out by the code, from bit 8 on what, added to the residual,
// gives the bits to write.
const leftOut = 1 << 7

func (t *tables) lookup() lookup {
	var k lookup
	empty := k.addPage()
	for i := range k.leaf[empty : empty+256] {
		k.leaf[int(empty)+i] = leftOut
	}
	for i := range t.codes {
		if t.layout.coded == 8 {
			page := k.addPage()
			for v := range k.leaf[page : page+256] {
				k.leaf[int(page)+v] = leftOut
			}
			k.pages = append(k.pages, page)
			k.fill(&t.codes[i], func(uint64) uint32 { return page })
			continue
		}
		first := len(k.pages)
		for range 256 {
			k.pages = append(k.pages, empty)
		}
		k.fill(&t.codes[i], func(v uint64) uint32 {
			p := &k.pages[first+int(v>>8)]
			if *p == empty {
				*p = k.addPage()
				copy(k.leaf[*p:], k.leaf[empty:empty+256])
			}
			return *p
		})
	}
	return k
}

func (k *lookup) addPage() uint32 {
	n := uint32(len(k.leaf))
	k.leaf = append(k.leaf, make([]uint32, 256)...)
	return n
}

// fill sets the entries of all residuals that c covers. pageOf returns the page
// that a residual is on; where an interval covers whole pages, they share one.
func (k *lookup) fill(c *interval.Code, pageOf func(v uint64) uint32) {
	for _, s := range c.Symbols {
		add := uint32(s.Bits)<<s.Raw - uint32(s.Base)
		e := add<<8 | uint32(s.Length) + uint32(s.Raw)
		for v := s.Base; v < s.Base+1<<s.Raw; {
			page := pageOf(v)
			for n := min(s.Base+1<<s.Raw, v|255+1); v < n; v++ {
				k.leaf[int(page)+int(v&255)] = e
			}
		}
	}
}
