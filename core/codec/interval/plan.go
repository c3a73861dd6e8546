package interval

import (
	"slices"

	"github.com/tpde-project/tpde/core/word"
)

// CostUnit is one bit in the costs below. They are integers, because floating
// point could round differently on another machine and give other bytes.
const CostUnit = 256

// Options bound a code.
type Options struct {
	MaxLength  uint // bits of the longest code, at most MaxLength
	MaxTotal   uint // bits of a code with its plain bits
	MaxRaw     uint // plain bits of an interval; 0 means as many as MaxTotal allows
	MaxSymbols int  // intervals, at most MaxSymbols
	Escape     uint // bits that a word costs which the code leaves out
}

func (o *Options) maxRaw() uint {
	if o.MaxRaw > 0 {
		return min(63, o.MaxTotal, o.MaxRaw)
	}
	return min(63, o.MaxTotal)
}

// symbolCost is about what a symbol takes in a file.
const symbolCost = 12 * CostUnit

// Plan returns the code that is cheapest for the words of sorted, which are in
// ascending order, and the cost of sorted and the code.
func Plan[T word.Word](sorted []T, o Options) (Code, int) {
	h := HistogramOf(sorted)
	return h.Code(o), h.Cost(o)
}

// Code returns the code that is cheapest for the words of h; of no words, a
// code of the whole ring.
//
// Intervals are nodes of the binary tree over the ring, chosen from the leaves
// up: a node is one interval, or its two halves are served as well as they can
// be, or its words are left out. The length of a code is taken to be what the
// frequency of its interval says, but never above MaxLength: a rare interval
// has the longest code, and takes the code space that it does not deserve from
// all others. Package-merge then finds the lengths.
func (h Histogram[T]) Code(o Options) Code {
	p := planner[T]{h: h, o: o}
	p.pick()
	return p.code(uint(8 * word.Size[T]()))
}

// Cost returns about what the words of h cost in their code, and the code.
func (h Histogram[T]) Cost(o Options) int {
	p := planner[T]{h: h, o: o}
	return p.pick()
}

// ring is a code that covers every word.
func ring(width uint) []Symbol {
	if width < 64 {
		return []Symbol{{Base: 0, Raw: uint8(width)}}
	}
	return []Symbol{{Raw: 63, Length: 1}, {Base: 1 << 63, Raw: 63, Length: 1, Bits: 1}}
}

type planner[T word.Word] struct {
	h         Histogram[T]
	total     int // words of h
	o         Options
	surcharge int
	picked    []pick // intervals of the nodes that are settled, in ascending order
}

type pick struct {
	base  uint64
	raw   uint
	count int
}

// pick chooses the intervals and returns the cost.
func (p *planner[T]) pick() int {
	p.total = p.h.Words()
	for {
		p.picked = p.picked[:0]
		if cost := p.node(0, len(p.h.values), 0, uint(8*word.Size[T]())); len(p.picked) <= p.o.MaxSymbols {
			return cost
		}
		// Too many: make intervals dearer, which joins neighbours.
		p.surcharge += max(p.surcharge/2, symbolCost/4)
	}
}

// node settles the values [lo, hi), which are those of the ring in [base,
// base + 2^raw): it appends the intervals to picked and returns the cost.
func (p *planner[T]) node(lo, hi int, base uint64, raw uint) int {
	count := p.h.before(hi) - p.h.before(lo)
	if count == 0 {
		return 0
	}
	escape := count * int(p.o.Escape) * CostUnit
	leaf := p.leaf(count, raw)
	// What halves could save are the plain bits, and they cost another interval.
	start := len(p.picked)
	best := escape
	if raw > 0 && (leaf < 0 || count*int(raw)*CostUnit > p.penalty(0)) {
		middle := base + 1<<(raw-1)
		at := p.h.search(lo, hi, middle)
		halves := p.node(lo, at, base, raw-1) + p.node(at, hi, middle, raw-1)
		best = min(best, halves)
		if best < escape && (leaf < 0 || halves < leaf) {
			return halves
		}
	}
	p.picked = p.picked[:start]
	if leaf >= 0 && leaf < best {
		best = leaf
		p.picked = append(p.picked, pick{base, raw, count})
	}
	return best
}

// leaf returns the cost of count words as one interval, -1 if there can be
// none so wide.
func (p *planner[T]) leaf(count int, raw uint) int {
	if raw > p.o.maxRaw() {
		return -1
	}
	longest := p.o.limit(raw)
	bits := log2(p.total) - log2(count)
	if limit := int(longest) * CostUnit; bits > limit {
		return count*(limit+int(raw)*CostUnit) + p.stolen(count, longest) + symbolCost + p.surcharge
	}
	return count*(bits+int(raw)*CostUnit) + symbolCost + p.surcharge
}

// stolen is what all others pay for the code space of a code of length bits
// that count of all words deserve less of: the logarithm of a little more room.
func (p *planner[T]) stolen(count int, length uint) int {
	const perNat = 369 // CostUnit * log2(e)
	return max(0, p.total>>length-count) * perNat
}

// penalty is the least that another interval costs.
func (p *planner[T]) penalty(count int) int {
	return p.stolen(count, p.o.MaxLength) + symbolCost + p.surcharge
}

// code turns what was picked into a code.
func (p *planner[T]) code(width uint) Code {
	picked := p.picked
	for len(picked) > 0 {
		if c, ok := codeOf(width, picked, p.o); ok {
			return c
		}
		// The widest do not all fit: leave out the rarest of those.
		least := -1
		for i, x := range picked {
			if p.o.limit(x.raw) < p.o.MaxLength && (least < 0 || x.count < picked[least].count) {
				least = i
			}
		}
		picked = slices.Delete(picked, least, least+1)
	}
	return Code{width, ring(width)}
}

// limit returns the most bits of the code of an interval with raw plain bits.
func (o *Options) limit(raw uint) uint { return min(o.MaxLength, o.MaxTotal-raw) }

// codeOf returns the best code of intervals, if there is one within limits.
func codeOf(width uint, picked []pick, o Options) (c Code, ok bool) {
	counts, limits := make([]int, len(picked)), make([]uint, len(picked))
	for i, x := range picked {
		counts[i], limits[i] = x.count, o.limit(x.raw)
	}
	found, ok := lengths(counts, limits)
	if !ok {
		return c, false
	}
	c = Code{Width: width, Symbols: make([]Symbol, len(picked))}
	for i, x := range picked {
		c.Symbols[i] = Symbol{Base: x.base, Raw: uint8(x.raw), Length: uint8(found[i])}
	}
	c.assign()
	return c, true
}
