package rice

import (
	"slices"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// Costs are in 1/256 bit and integers throughout: floating point could round
// differently on another machine and give other bytes.
const (
	costUnit = 256
	// symbolCost is about what an interval takes in the tables.
	symbolCost = 12 * costUnit
	// countCost is about what the number of a class's events takes in a chunk,
	// of classChunk words or so.
	countCost  = 9 * costUnit
	classChunk = 32 << 10
	// classCost is about what a class takes in the tables.
	classCost = 20 * costUnit
)

// planTables chooses classes, codes and the chunk size from samples.
func planTables[T word.Word](dt dtype.Type, samples []codec.Block, words uint64, level codec.Level) (*tables, int) {
	t := newTables(dt)
	t.shift = t.width - 1
	if shift, exponent := dt.Exponent(); exponent > 0 {
		t.shift = max(uint(shift), t.leastShift())
	}
	keys := &classifier{mask: t.mask, shift: t.shift}
	bins, stride := gather[T](keys, t.keyBits(), samples)
	if len(bins) == 0 {
		everything[T](&t)
		return &t, chunkWords(word.Size[T](), 1, 1, level)
	}
	p := newPartition(bins, stride, scaleOf(samples, words), t.width)
	if shift, exponent := dt.Exponent(); exponent > 0 {
		p.scales = t.shift == uint(shift)
	}
	cost, segments := p.solve()
	events := p.apply(&t, segments)
	n := chunkWords(word.Size[T](), cost, p.words[len(bins)], level)
	for c := range t.gaps {
		t.gaps[c].count = planCount(events[c], p.words[len(bins)], n)
	}
	t.denseCount = planCount(events[dense], p.words[len(bins)], n)
	return &t, n
}

// scaleOf returns how much larger a tensor of so many words is than its samples.
func scaleOf(samples []codec.Block, words uint64) int {
	sampled := uint64(0)
	for _, s := range samples {
		sampled += uint64(s.Words())
	}
	return int(max(1, words/max(sampled, 1)))
}

// everything makes tables that code every word as it is.
func everything[T word.Word](t *tables) {
	t.hasDense, t.denseCount.order = true, 10
	code, _ := interval.Plan[T](nil, codeOptions(t.width)) // covers all
	t.codes = []tableCode{{Code: code}}
	t.contexts = []context{{class: dense}}
}

func codeOptions(width uint) interval.Options {
	return interval.Options{MaxLength: 8, MaxTotal: width + 8, MaxSymbols: interval.MaxSymbols, Escape: exceptionBits(width)}
}

// exceptionBits is about what an exception costs.
func exceptionBits(width uint) uint { return width + 18 }

// lowBits returns the best Golomb-Rice parameter for words of which events are
// events, and the cost of all distances. The expected length of a code with k
// low bits is k + 1/(1-f) with f the probability that 2^k words in a row are no
// events.
func lowBits(words, events int) (k uint8, cost int) {
	f := (uint64(2*(words-events)+1) << 32) / uint64(2*words+2) // of one word
	cost = -1
	for low := range maxLowBits + 1 {
		each := low*costUnit + int(costUnit<<32/(1<<32-f))
		if c := max(events, 1) * each; cost < 0 || c < cost {
			k, cost = uint8(low), c
		}
		f = f * f >> 32
	}
	if events == 0 {
		cost = 0
	}
	return k, cost
}

// partition finds the cheapest division of the bins into classes: prefix sums
// over bins are what makes every candidate cheap to judge.
type partition[T word.Word] struct {
	bins                  []bin[T]
	scales                bool // neighbouring keys differ by a factor of two
	stride, scale         int
	width                 uint
	words, changed, units []int
	gapValues, allValues  []int // cost of values, in gap classes and in the dense class
}

func newPartition[T word.Word](bins []bin[T], stride, scale int, width uint) *partition[T] {
	n := len(bins) + 1
	p := &partition[T]{
		bins: bins, stride: stride, scale: scale, width: width,
		words: make([]int, n), changed: make([]int, n), units: make([]int, n),
		gapValues: make([]int, n), allValues: make([]int, n),
	}
	for i := range bins {
		b := &bins[i]
		p.words[i+1] = p.words[i] + b.words
		p.changed[i+1] = p.changed[i] + b.changed
		p.units[i+1] = p.units[i] + b.units
		p.gapValues[i+1] = p.gapValues[i] + b.valueCost(0, stride)
		p.allValues[i+1] = p.allValues[i] + b.valueCost((b.words-b.changed)/stride, stride)
	}
	return p
}

// segment is a run of bins in one class.
type segment struct {
	from, to int
	low      uint8
	isDense  bool
	coded    bool
}

// judge returns the best gap class for bins [from, to), and its cost.
func (p *partition[T]) judge(from, to int) (segment, int) {
	words, changed, units := p.words[to]-p.words[from], p.changed[to]-p.changed[from], p.units[to]-p.units[from]
	overhead := countCost*(words/classChunk+1) + classCost/p.scale
	low, cost := lowBits(words, units)
	cost += overhead + units*costUnit + (changed-units)*int(exceptionBits(p.width))*costUnit
	best := segment{from: from, to: to, low: low}
	low, coded := lowBits(words, changed)
	coded += overhead + p.gapValues[to] - p.gapValues[from]
	if coded < cost {
		return segment{from: from, to: to, low: low, coded: true}, coded
	}
	return best, cost
}

// solve returns the cheapest segments, in ascending order, and their cost.
// Any number of them may be dense.
func (p *partition[T]) solve() (cost int, segments []segment) {
	n := len(p.bins)
	const never = int(^uint(0) >> 2)
	type cell struct {
		cost int
		last segment
	}
	// least[g][i] is the cost of the first i bins with g gap classes.
	least := make([][]cell, maxGaps+1)
	for g := range least {
		least[g] = make([]cell, n+1)
		for i := range least[g] {
			least[g][i].cost = never
		}
	}
	least[0][0].cost = 0
	for to := 1; to <= n; to++ {
		for from := range to {
			gap, gapCost := p.judge(from, to)
			denseCost := p.allValues[to] - p.allValues[from] + classCost/p.scale
			for g := range maxGaps + 1 {
				if c := least[g][from].cost + denseCost; c < least[g][to].cost {
					least[g][to] = cell{c, segment{from: from, to: to, isDense: true}}
				}
				if g > 0 {
					if c := least[g-1][from].cost + gapCost; c < least[g][to].cost {
						least[g][to] = cell{c, gap}
					}
				}
			}
		}
	}
	best := 0
	for g := range least {
		if least[g][n].cost < least[best][n].cost {
			best = g
		}
	}
	cost = least[best][n].cost
	for g, to := best, n; to > 0; {
		last := least[g][to].last
		segments = append(segments, last)
		to = last.from
		if !last.isDense {
			g--
		}
	}
	slices.Reverse(segments)
	return cost, segments
}

// apply fills in the tables and returns the number of events of each class.
func (p *partition[T]) apply(t *tables, segments []segment) (events [classes]int) {
	for _, s := range segments {
		class := uint8(dense)
		if s.isDense {
			t.hasDense = true
			events[dense] += p.words[s.to] - p.words[s.from]
		} else {
			class = uint8(len(t.gaps))
			t.gaps = append(t.gaps, gapClass{low: s.low, coded: s.coded})
			events[class] = p.units[s.to] - p.units[s.from]
			if s.coded {
				events[class] = p.changed[s.to] - p.changed[s.from]
			}
		}
		if !s.isDense && !s.coded {
			t.contexts = append(t.contexts, context{first: uint16(p.bins[s.from].first), class: class})
			continue
		}
		for _, g := range p.groups(s) {
			p.addContexts(t, &g, class)
		}
	}
	return events
}

// addContexts appends the contexts and codes of a group.
func (p *partition[T]) addContexts(t *tables, g *group[T], class uint8) {
	codes, ok := p.codesOf(g)
	if !ok { // so few words that they have no code: one for the lot
		plain := group[T]{from: g.from, to: g.to}
		for i := g.from; i < g.to; i++ {
			plain.words = plain.words.Add(p.histogram(i, class == dense))
		}
		g = &plain
		codes, _ = p.codesOf(g)
	}
	number := len(t.codes)
	t.codes = append(t.codes, codes...)
	if !g.scaled {
		t.contexts = append(t.contexts, context{first: uint16(p.bins[g.from].first), class: class, code: uint8(number)})
		return
	}
	for i := g.from; i < g.to; i++ {
		t.contexts = append(t.contexts, context{first: uint16(p.bins[i].first), class: class, code: uint8(number + g.to - 1 - i)})
	}
}

// planCount returns the code for the number of events in a chunk, of which the
// samples had events in words. Chunks differ by chance and because layers do.
func planCount(events, words, chunk int) countCode {
	c := countCode{mean: uint32(min(uint64(events)*uint64(chunk)/uint64(words), maxMean))}
	spread := uint64(c.mean) / 16
	for s := uint64(0); s*s < uint64(c.mean); s++ {
		spread++
	}
	least := -1
	for k := range uint8(maxOrder + 1) {
		bits := 0
		for _, d := range []uint64{spread / 4, spread / 2, spread} {
			bits += bitio.GammaBits(2*d, uint(k))
		}
		if least < 0 || bits < least {
			c.order, least = k, bits
		}
	}
	return c
}

// chunkWords returns the least power of two of words whose code takes enough
// bytes that what every chunk costs is small, about 20 bytes. A chunk is decoded
// by a block of threads, and a single matrix should keep a GPU busy.
func chunkWords(wordBytes, cost, words int, level codec.Level) int {
	enough, least, most := 768, 64<<10, 256<<10
	switch level {
	case codec.LevelFast:
		enough, least, most = 384, 32<<10, 128<<10
	case codec.LevelSmall:
		enough, least, most = 4096, 128<<10, 512<<10
	}
	n := least
	for n < most && cost/(8*costUnit)*(n/wordBytes) < words*enough {
		n *= 2
	}
	return n / wordBytes
}
