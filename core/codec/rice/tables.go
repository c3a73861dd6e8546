package rice

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// gapClass is a class of which only the changed words are coded.
type gapClass struct {
	low   uint8 // plain low bits of a distance
	order uint8 // of the code of the number of events in a chunk
	coded bool  // events have values in the codes of their contexts, else a sign
}

// context is a run of keys, from first up to the next context.
type context struct {
	first uint16
	class uint8 // number of a gap class, or dense
	code  uint8 // number of the interval code, where the class has values
}

// tables are the parameters of a tensor. The key of a base word is
// word & mask >> shift.
type tables struct {
	width      uint // of a word in bits
	mask       uint64
	shift      uint
	gaps       []gapClass
	hasDense   bool
	denseOrder uint8 // as gapClass.order
	codes      []interval.Code
	contexts   []context // in ascending order; the first starts at key 0
}

// newTables fixes what the type says: a float's key leaves out the sign.
func newTables(t dtype.Type) tables {
	x := tables{width: uint(8 * t.WordBytes())}
	x.mask = ^uint64(0) >> (64 - x.width)
	if _, exponent := t.Exponent(); exponent > 0 {
		x.mask >>= 1
	}
	return x
}

// leastShift is the least shift that leaves a key of maxKeyBits.
func (t *tables) leastShift() uint {
	return uint(max(0, bits.Len64(t.mask)-maxKeyBits))
}

// keyBits returns the number of bits of a key.
func (t *tables) keyBits() uint { return uint(bits.Len64(t.mask >> t.shift)) }

// hasValues reports whether words of a class have values in interval codes.
func (t *tables) hasValues(class uint8) bool {
	return class == dense || t.gaps[class].coded
}

// codeBits is the width of the number of an interval code.
func (t *tables) codeBits() uint { return uint(bits.Len(uint(max(1, len(t.codes)) - 1))) }

// marshal writes the tables: see FORMAT.md.
func (t *tables) marshal() []byte {
	var w bitio.Writer
	w.Put(uint64(t.shift), 6)
	w.Put(uint64(len(t.gaps)), 3)
	for _, g := range t.gaps {
		w.Put(uint64(g.low), 5)
		w.Put(uint64(g.order), 5)
		w.Put(bit(g.coded), 1)
	}
	w.Put(bit(t.hasDense), 1)
	if t.hasDense {
		w.Put(uint64(t.denseOrder), 5)
	}
	w.PutGamma(uint64(len(t.codes)), 0)
	for i := range t.codes {
		t.codes[i].AppendTo(&w)
	}
	w.Put(uint64(len(t.contexts)-1), 6)
	for i, c := range t.contexts {
		if i > 0 {
			w.PutGamma(uint64(c.first-t.contexts[i-1].first-1), 0)
		}
		w.Put(uint64(c.class), 3)
		if t.hasValues(c.class) {
			w.Put(uint64(c.code), t.codeBits())
		}
	}
	return w.Finish(1)
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func parseTables(dt dtype.Type, data []byte) (*tables, error) {
	t := newTables(dt)
	r := bitio.NewReader(data)
	t.shift = uint(r.Get(6))
	if t.shift < t.leastShift() || t.shift >= t.width {
		return nil, status.Errorf(status.ErrCorrupt, "rice keys are shifted by %d bits, expected %d to %d", t.shift, t.leastShift(), t.width-1)
	}
	t.gaps = make([]gapClass, r.Get(3))
	for i := range t.gaps {
		g := gapClass{low: uint8(r.Get(5)), order: uint8(r.Get(5)), coded: r.Get(1) != 0}
		if g.low > maxLowBits || g.order > maxOrder {
			return nil, status.Errorf(status.ErrCorrupt, "rice class %d has parameters %d and %d, expected at most %d and %d", i, g.low, g.order, maxLowBits, maxOrder)
		}
		t.gaps[i] = g
	}
	if t.hasDense = r.Get(1) != 0; t.hasDense {
		if t.denseOrder = uint8(r.Get(5)); t.denseOrder > maxOrder {
			return nil, status.Errorf(status.ErrCorrupt, "rice dense class has parameter %d, expected at most %d", t.denseOrder, maxOrder)
		}
	}
	n, ok := r.Gamma(0)
	if !ok || n > maxContexts {
		return nil, status.Errorf(status.ErrCorrupt, "rice tables have %d interval codes, expected at most %d", n, maxContexts)
	}
	for range n {
		c, err := interval.Read(r, t.width)
		if err != nil {
			return nil, err
		}
		t.codes = append(t.codes, c)
	}
	if err := t.readContexts(r); err != nil {
		return nil, err
	}
	if !r.Padded(1) {
		return nil, status.Errorf(status.ErrCorrupt, "rice tables have %d bytes, expected %d and zero padding", len(data), (r.Pos()+7)/8)
	}
	return &t, nil
}

func (t *tables) readContexts(r *bitio.Reader) error {
	t.contexts = make([]context, r.Get(6)+1)
	next := uint64(0)
	for i := range t.contexts {
		first := uint64(0)
		if i > 0 {
			distance, ok := r.Gamma(0)
			if first = next + distance; !ok || first >= 1<<t.keyBits() {
				return status.Errorf(status.ErrCorrupt, "rice context %d starts at key %d, expected at most %d", i, first, 1<<t.keyBits()-1)
			}
		}
		next = first + 1
		c := context{first: uint16(first), class: uint8(r.Get(3))}
		if c.class == dense && !t.hasDense || c.class < dense && int(c.class) >= len(t.gaps) {
			return status.Errorf(status.ErrCorrupt, "rice context %d has class %d, which the tables lack", i, c.class)
		}
		if t.hasValues(c.class) {
			if c.code = uint8(r.Get(t.codeBits())); int(c.code) >= len(t.codes) {
				return status.Errorf(status.ErrCorrupt, "rice context %d has interval code %d of %d", i, c.code, len(t.codes))
			}
		}
		t.contexts[i] = c
	}
	return nil
}
