package prefix

import (
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// tables are the parameters of a tensor: the contexts and the code of each.
type tables struct {
	layout   layout
	contexts contexts
	codes    []interval.Code // one for each context
	index    uint            // bits of the longest code: what a decoding table is indexed by
	longest  uint            // bits of the longest code with its plain bits
}

const maxContexts = 64

func (t *tables) finish() {
	t.index, t.longest = 0, 0
	for i := range t.codes {
		code, total := t.codes[i].Longest()
		t.index, t.longest = max(t.index, uint(code)), max(t.longest, uint(total))
	}
}

// marshal writes the tables as FORMAT.md says.
func (t *tables) marshal() []byte {
	var w bitio.Writer
	w.Put(uint64(len(t.codes)-1), 6)
	if len(t.codes) > 1 {
		w.Put(uint64(t.contexts.shift), 4)
		last := uint16(0)
		for _, s := range t.contexts.starts {
			w.PutGamma(uint64(s-last-1), 0)
			last = s
		}
	}
	for i := range t.codes {
		t.codes[i].AppendTo(&w)
	}
	return w.Finish(1)
}

func parseTables(dt dtype.Type, data []byte) (tables, error) {
	t := tables{layout: layoutOf(dt)}
	l := &t.layout
	r := bitio.NewReader(data)
	n := int(r.Get(6)) + 1
	t.contexts.shift = l.keyBits
	if n > 1 {
		t.contexts.shift = uint(r.Get(4))
		if t.contexts.shift > l.keyBits || l.keyBits-t.contexts.shift > maxKeyBits {
			return t, status.Errorf(status.ErrCorrupt, "prefix contexts are %d bits of a key of %d shifted by %d, expected at most %d", l.keyBits-t.contexts.shift, l.keyBits, t.contexts.shift, maxKeyBits)
		}
		last := uint64(0)
		for range n - 1 {
			gap, ok := r.Gamma(0)
			if last += gap + 1; !ok || last >= uint64(t.contexts.keys(l)) {
				return t, status.Errorf(status.ErrCorrupt, "prefix context starts at key %d, expected less than %d", last, t.contexts.keys(l))
			}
			t.contexts.starts = append(t.contexts.starts, uint16(last))
		}
	}
	for range n {
		c, err := interval.Read(r, l.coded)
		if err != nil {
			return t, err
		}
		if _, total := c.Longest(); total > maxTotal {
			return t, status.Errorf(status.ErrCorrupt, "prefix code has words of %d bits, expected at most %d", total, maxTotal)
		}
		t.codes = append(t.codes, c)
	}
	t.finish()
	switch {
	case !r.Padded(1):
		return t, status.Errorf(status.ErrCorrupt, "prefix tables of %d bytes end at bit %d, expected the rest to be zeros of the last byte", len(data), r.Pos())
	case n<<t.index > maxTable:
		return t, status.Errorf(status.ErrCorrupt, "prefix tables have %d contexts with codes of up to %d bits, expected at most %d entries", n, t.index, maxTable)
	}
	return t, nil
}

// entry describes to a decoder what a window of bits starts with: in bits 0-4
// the length of code and plain bits, from bit 8 on what, added to those bits
// taken as a number, gives the residual.
func entry(c *interval.Code, s interval.Symbol) uint32 {
	bias := uint32(s.Base) - uint32(s.Bits)<<s.Raw
	return uint32(s.Length) + uint32(s.Raw) | bias<<16>>8
}

// decoding returns the decoding table, 2^index entries for each context.
func (t *tables) decoding() []uint32 {
	out := make([]uint32, 0, len(t.codes)<<t.index)
	symbols := make([]uint8, 1<<t.index)
	for i := range t.codes {
		c := &t.codes[i]
		c.Lookup(symbols, t.index)
		for _, s := range symbols {
			out = append(out, entry(c, c.Symbols[s]))
		}
	}
	return out
}
