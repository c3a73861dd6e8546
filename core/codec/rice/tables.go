package rice

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// gapClass is a class of which only the changed words are coded.
type gapClass struct {
	low   uint8 // plain low bits of a distance
	count countCode
	coded bool // events have values in the codes of their contexts, else a sign
}

// countCode codes how many events of a class a chunk has: an exp-Golomb code
// of the distance from the mean.
type countCode struct {
	mean  uint32
	order uint8
}

// meanOrder is the order of the code of a mean.
const meanOrder = 6

func (c countCode) put(w *bitio.Writer, n int) {
	w.PutGamma(word.Zigzag(uint64(n)-uint64(c.mean)), uint(c.order))
}

// get reads a number of at most limit.
func (c countCode) get(r *bitio.Reader, limit int) (n int, ok bool) {
	z, ok := r.Gamma(uint(c.order))
	n = int(uint64(c.mean) + word.Unzigzag(z))
	return n, ok && n >= 0 && n <= limit
}

func (c countCode) appendTo(w *bitio.Writer) {
	w.Put(uint64(c.order), 5)
	w.PutGamma(uint64(c.mean), meanOrder)
}

func readCountCode(r *bitio.Reader) (c countCode, err error) {
	c.order = uint8(r.Get(5))
	mean, ok := r.Gamma(meanOrder)
	if !ok || c.order > maxOrder || mean > maxMean {
		return c, status.Errorf(status.ErrCorrupt, "rice counts have mean %d and parameter %d, expected at most %d and %d", mean, c.order, maxMean, maxOrder)
	}
	c.mean = uint32(mean)
	return c, nil
}

// tableCode is an interval code. A doubled one is the code before it with all
// intervals doubled.
type tableCode struct {
	interval.Code
	doubled bool
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
	denseCount countCode
	codes      []tableCode
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
		w.Put(bit(g.coded), 1)
		g.count.appendTo(&w)
	}
	w.Put(bit(t.hasDense), 1)
	if t.hasDense {
		t.denseCount.appendTo(&w)
	}
	w.PutGamma(uint64(len(t.codes)), 0)
	for i := range t.codes {
		if i > 0 {
			w.Put(bit(t.codes[i].doubled), 1)
		}
		if !t.codes[i].doubled {
			t.codes[i].AppendTo(&w)
		}
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
		g := gapClass{low: uint8(r.Get(5)), coded: r.Get(1) != 0}
		if g.low > maxLowBits {
			return nil, status.Errorf(status.ErrCorrupt, "rice class %d has %d low bits, expected at most %d", i, g.low, maxLowBits)
		}
		var err error
		if g.count, err = readCountCode(r); err != nil {
			return nil, err
		}
		t.gaps[i] = g
	}
	if t.hasDense = r.Get(1) != 0; t.hasDense {
		var err error
		if t.denseCount, err = readCountCode(r); err != nil {
			return nil, err
		}
	}
	n, ok := r.Gamma(0)
	if !ok || n > maxContexts {
		return nil, status.Errorf(status.ErrCorrupt, "rice tables have %d interval codes, expected at most %d", n, maxContexts)
	}
	for i := range int(n) {
		if i > 0 && r.Get(1) != 0 {
			c, ok := double(t.codes[i-1].Code)
			if !ok {
				return nil, status.Errorf(status.ErrCorrupt, "rice code %d cannot be doubled in %d bits", i-1, t.width)
			}
			t.codes = append(t.codes, tableCode{c, true})
			continue
		}
		c, err := interval.Read(r, t.width)
		if err != nil {
			return nil, err
		}
		t.codes = append(t.codes, tableCode{c, false})
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
