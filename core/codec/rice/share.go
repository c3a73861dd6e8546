package rice

import (
	"slices"

	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/word"
)

// contextCost is about what a context takes in the tables.
const contextCost = 10 * costUnit

// group is a run of bins that share an interval code.
//
// A step of the optimizer that is a unit of one exponent is two units of the
// exponent below. In a scaled group the code is that of the highest key, and
// each lower key has it with its intervals doubled: this says what rare
// exponents need although hardly any sample has them.
type group[T word.Word] struct {
	from, to int
	scaled   bool
	words    interval.Histogram[T] // residuals; in units of the highest bin, if scaled
	extra    int                   // cost of what that leaves out
	cost     int
}

// groups makes the groups of a segment: it starts with one for each bin and
// joins neighbours as long as that saves anything.
func (p *partition[T]) groups(s segment) []group[T] {
	var groups []group[T]
	for i := s.from; i < s.to; i++ {
		g := group[T]{from: i, to: i + 1, words: p.histogram(i, s.isDense)}
		p.plan(&g)
		groups = append(groups, g)
	}
	joined := make([]group[T], max(0, len(groups)-1)) // each group with the next
	for i := range joined {
		joined[i] = p.join(&groups[i], &groups[i+1])
	}
	for len(joined) > 0 {
		best, saved := -1, 0
		for i := range joined {
			if x := groups[i].cost + groups[i+1].cost - joined[i].cost; best < 0 || x > saved {
				best, saved = i, x
			}
		}
		if saved < 0 {
			break
		}
		groups[best] = joined[best]
		groups, joined = slices.Delete(groups, best+1, best+2), slices.Delete(joined, best, best+1)
		if best > 0 {
			joined[best-1] = p.join(&groups[best-1], &groups[best])
		}
		if best < len(joined) {
			joined[best] = p.join(&groups[best], &groups[best+1])
		}
	}
	return groups
}

// histogram returns the words of a bin for which a code is made.
func (p *partition[T]) histogram(i int, isDense bool) interval.Histogram[T] {
	zeros := 0
	if isDense {
		zeros = (p.bins[i].words - p.bins[i].changed) / p.stride
	}
	return interval.HistogramOf(p.bins[i].smooth(zeros, p.scale))
}

// join returns the cheaper of the groups that a and b, which follow each
// other, can make.
func (p *partition[T]) join(a, b *group[T]) group[T] {
	best := group[T]{cost: int(^uint(0) >> 2)}
	if !a.scaled && !b.scaled {
		g := group[T]{from: a.from, to: b.to, words: a.words.Add(b.words)}
		p.plan(&g)
		best = g
	}
	if g, ok := p.joinScaled(a, b); ok {
		p.plan(&g)
		if g.cost < best.cost {
			best = g
		}
	}
	return best
}

// joinScaled returns the scaled group of a and b, without a code.
func (p *partition[T]) joinScaled(a, b *group[T]) (g group[T], ok bool) {
	isScaled := func(g *group[T]) bool { return g.scaled || g.to == g.from+1 }
	span := p.bins[b.to-1].first - p.bins[a.from].first
	// A code for each key: with keys that have no bin, there could be too many.
	if !p.scales || !isScaled(a) || !isScaled(b) || span != b.to-1-a.from || span > int(p.width)-4 {
		return g, false
	}
	d := uint(p.bins[b.to-1].first - p.bins[a.to-1].first)
	// What doubling would take out of the ring cannot be in the code.
	limit := T(1) << (p.width - 2 - uint(span))
	high, left := b.words.Floor(0, limit)
	low, more := a.words.Floor(d, limit)
	g = group[T]{from: a.from, to: b.to, scaled: true, words: low.Add(high)}
	g.extra = a.extra + b.extra + (a.words.Words()*int(d)+(left+more)*int(exceptionBits(p.width)))*costUnit
	return g, g.words.Words() > 0
}

func (p *partition[T]) plan(g *group[T]) {
	g.cost = g.words.Cost(p.optionsOf(g))
	contexts := 1
	if g.scaled {
		contexts = g.to - g.from
	}
	g.cost += g.extra + contexts*contextCost
}

// optionsOf keeps the intervals of a scaled group so narrow that they can be
// doubled as often as they must be.
func (p *partition[T]) optionsOf(g *group[T]) interval.Options {
	o := codeOptions(p.width)
	if g.scaled {
		o.MaxRaw = p.width - 2 - uint(g.to-1-g.from)
	}
	return o
}

// codesOf returns the code of a group; for a scaled one, those of all keys from
// the highest down. ok is false if there are none such.
func (p *partition[T]) codesOf(g *group[T]) (codes []tableCode, ok bool) {
	o := p.optionsOf(g)
	code := g.words.Refine(g.words.Code(o), o)
	codes = []tableCode{{Code: code}}
	if !g.scaled {
		return codes, true
	}
	for range g.to - 1 - g.from {
		if code, ok = double(code); !ok {
			return nil, false
		}
		codes = append(codes, tableCode{code, true})
	}
	return codes, true
}

// double returns a code with all intervals twice as far from zero and twice as
// wide; ok is false if the ring is too small for that.
func double(c interval.Code) (out interval.Code, ok bool) {
	out = interval.Code{Width: c.Width, Symbols: slices.Clone(c.Symbols)}
	ring := ^uint64(0) >> (64 - c.Width)
	quarter := uint64(1) << (c.Width - 2)
	for i := range out.Symbols {
		s := &out.Symbols[i]
		last := s.Base + (1<<s.Raw - 1)
		if (s.Base+quarter)&ring >= 2*quarter || (last+quarter)&ring >= 2*quarter || last-s.Base >= quarter {
			return out, false
		}
		s.Base = s.Base << 1 & ring
		s.Raw++
	}
	return out, true
}
