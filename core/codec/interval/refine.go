package interval

import (
	"slices"

	"github.com/tpde-project/tpde/core/word"
)

// refineSymbols is the size up to which Refine works on a code. The lengths of
// many codes come close to what frequencies ask for in any case.
const refineSymbols = 24

// Refine returns a code for the words of h that is no dearer than c. Code takes
// it that a code may have a fraction of a bit; Refine goes by what whole bits
// cost, and divides, joins and drops intervals as long as that saves anything.
func (h Histogram[T]) Refine(c Code, o Options) Code {
	r := newRefiner(&c, h, o)
	cost := r.cost(r.parts)
	for {
		best := cost
		var parts []part
		r.moves(func(candidate []part) {
			if x := r.cost(candidate); x < best {
				best, parts = x, slices.Clone(candidate)
			}
		})
		if parts == nil {
			break
		}
		cost, r.parts = best, parts
	}
	picked := make([]pick, len(r.parts))
	for i, x := range r.parts {
		picked[i] = pick{x.base, x.raw, r.count(x)}
	}
	if out, ok := codeOf(c.Width, picked, o); ok {
		return out
	}
	return c
}

// part is an interval, and which of the values it holds.
type part struct {
	base   uint64
	raw    uint
	lo, hi int
}

type refiner[T word.Word] struct {
	h       Histogram[T]
	o       Options
	parts   []part // in ascending order of base
	scratch []part
	weights []int
}

func newRefiner[T word.Word](c *Code, h Histogram[T], o Options) *refiner[T] {
	r := &refiner[T]{h: h, o: o}
	for _, s := range c.Symbols {
		lo := h.search(0, len(h.values), s.Base)
		hi := len(h.values)
		if end := s.Base + 1<<s.Raw; end != 0 { // 0 stands for 2^64
			hi = h.search(lo, hi, end)
		}
		r.parts = append(r.parts, part{s.Base, uint(s.Raw), lo, hi})
	}
	return r
}

// count returns the number of words of a part.
func (r *refiner[T]) count(x part) int { return r.h.before(x.hi) - r.h.before(x.lo) }

// cost returns what the words and the code cost with the best whole lengths.
func (r *refiner[T]) cost(parts []part) int {
	left := r.h.Words()
	bits := 0
	r.weights = r.weights[:0]
	for _, x := range parts {
		n := r.count(x)
		left -= n
		bits += n * int(x.raw)
		r.weights = append(r.weights, n)
	}
	bits += left*int(r.o.Escape) + Huffman(r.weights)
	return bits*CostUnit + len(parts)*symbolCost
}

// moves calls try with every neighbour of the present parts.
func (r *refiner[T]) moves(try func([]part)) {
	replace := func(from, to int, with ...part) {
		r.scratch = append(append(append(r.scratch[:0], r.parts[:from]...), with...), r.parts[to:]...)
		try(r.scratch)
	}
	for i, x := range r.parts {
		if x.raw > 0 && len(r.parts) < min(refineSymbols, r.o.MaxSymbols) {
			middle := x.base + 1<<(x.raw-1)
			at := r.h.search(x.lo, x.hi, middle)
			low, high := part{x.base, x.raw - 1, x.lo, at}, part{middle, x.raw - 1, at, x.hi}
			switch {
			case at == x.hi:
				replace(i, i+1, low)
			case at == x.lo:
				replace(i, i+1, high)
			default:
				replace(i, i+1, low, high)
			}
		}
		if i+1 < len(r.parts) {
			y := r.parts[i+1]
			if x.raw == y.raw && x.base>>x.raw^1 == y.base>>x.raw && x.raw < r.o.maxRaw() {
				replace(i, i+2, part{x.base, x.raw + 1, x.lo, y.hi})
			}
		}
	}
	// The rarest: one alone may save nothing where two do.
	order := slices.Clone(r.parts)
	slices.SortStableFunc(order, func(a, b part) int { return r.count(a) - r.count(b) })
	rest := slices.Clone(r.parts)
	for _, x := range order[:max(0, min(4, len(order)-1))] {
		rest = slices.Delete(rest, slices.Index(rest, x), slices.Index(rest, x)+1)
		try(rest)
	}
}

// Huffman returns the bits of all symbols of the given frequencies in an
// optimal prefix code. It sorts counts and uses them up.
func Huffman(counts []int) int {
	slices.Sort(counts)
	total, made, next := 0, 0, 0 // counts[:made] are sums, those from next on are symbols
	taken := 0                   // sums that were joined
	least := func() int {
		if next == len(counts) || taken < made && counts[taken] <= counts[next] {
			taken++
			return counts[taken-1]
		}
		next++
		return counts[next-1]
	}
	for range len(counts) - 1 {
		sum := least() + least()
		total += sum
		counts[made] = sum
		made++
	}
	return total
}
