package interval

import (
	"slices"
	"sort"

	"github.com/tpde-project/tpde/core/word"
)

// CostUnit is one bit in the costs below. They are integers, because floating
// point could round differently on another machine and give other bytes.
const CostUnit = 256

// Options bound a code.
type Options struct {
	MaxLength  uint // bits of the longest code, at most MaxLength
	MaxTotal   uint // bits of a code with its plain bits
	MaxSymbols int  // intervals, at most MaxSymbols
	Escape     uint // bits that a word costs which the code leaves out
}

// symbolCost is about what a symbol takes in a file.
const symbolCost = 12 * CostUnit

// Plan returns the code that is cheapest for the words of sorted, which are in
// ascending order, and the cost of sorted and the code. Without words it
// returns a code of the whole ring.
//
// Intervals are nodes of the binary tree over the ring, chosen from the leaves
// up: a node is one interval, or its two halves are served as well as they can
// be, or its words are left out. The length of a code is taken to be what the
// frequency of its interval says, but never above MaxLength: a rare interval
// has the longest code, and takes the code space that it does not deserve from
// all others. Package-merge then finds the lengths.
func Plan[T word.Word](sorted []T, o Options) (Code, int) {
	width := uint(8 * word.Size[T]())
	if len(sorted) == 0 {
		return Code{width, ring(width)}, 0
	}
	p := planner[T]{words: sorted, o: o}
	for {
		p.picked = p.picked[:0]
		if cost := p.node(0, len(sorted), 0, width); len(p.picked) <= o.MaxSymbols {
			return p.code(width), cost
		}
		// Too many: make intervals dearer, which joins neighbours.
		p.surcharge += max(p.surcharge, len(sorted)*CostUnit/1024, symbolCost)
	}
}

// ring is a code that covers every word.
func ring(width uint) []Symbol {
	if width < 64 {
		return []Symbol{{Base: 0, Raw: uint8(width)}}
	}
	return []Symbol{{Raw: 63, Length: 1}, {Base: 1 << 63, Raw: 63, Length: 1, Bits: 1}}
}

type planner[T word.Word] struct {
	words     []T
	o         Options
	surcharge int
	picked    []pick // intervals of the nodes that are settled, in ascending order
}

type pick struct {
	base  uint64
	raw   uint
	count int
}

// node settles the words [lo, hi), which are those of the ring in [base,
// base + 2^raw): it appends the intervals to picked and returns the cost.
func (p *planner[T]) node(lo, hi int, base uint64, raw uint) int {
	count := hi - lo
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
		at := lo + sort.Search(count, func(i int) bool { return uint64(p.words[lo+i]) >= middle })
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
	if raw > 63 || raw > p.o.MaxTotal {
		return -1
	}
	longest := min(p.o.MaxLength, p.o.MaxTotal-raw)
	bits := log2(len(p.words)) - log2(count)
	if limit := int(longest) * CostUnit; bits > limit {
		return count*(limit+int(raw)*CostUnit) + p.stolen(count, longest) + symbolCost + p.surcharge
	}
	return count*(bits+int(raw)*CostUnit) + symbolCost + p.surcharge
}

// stolen is what all others pay for the code space of a code of length bits
// that count of all words deserve less of: the logarithm of a little more room.
func (p *planner[T]) stolen(count int, length uint) int {
	const perNat = 369 // CostUnit * log2(e)
	return max(0, len(p.words)>>length-count) * perNat
}

// penalty is the least that another interval costs.
func (p *planner[T]) penalty(count int) int {
	return p.stolen(count, p.o.MaxLength) + symbolCost + p.surcharge
}

// code turns what was picked into a code.
func (p *planner[T]) code(width uint) Code {
	picked := p.picked
	for len(picked) > 0 {
		counts := make([]int, len(picked))
		limits := make([]uint, len(picked))
		for i, x := range picked {
			counts[i], limits[i] = x.count, min(p.o.MaxLength, p.o.MaxTotal-x.raw)
		}
		if found, ok := lengths(counts, limits); ok {
			c := Code{Width: width, Symbols: make([]Symbol, len(picked))}
			for i, x := range picked {
				c.Symbols[i] = Symbol{Base: x.base, Raw: uint8(x.raw), Length: uint8(found[i])}
			}
			c.assign()
			return c
		}
		// The widest do not all fit: leave out the rarest of those.
		least := -1
		for i := range picked {
			if limits[i] < p.o.MaxLength && (least < 0 || counts[i] < counts[least]) {
				least = i
			}
		}
		picked = slices.Delete(picked, least, least+1)
	}
	return Code{width, ring(width)}
}
