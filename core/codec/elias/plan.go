package elias

import (
	"math/bits"
	"slices"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// Costs are in 1/256 bit and integers throughout: floating point could round
// differently on another machine and give other bytes.
const costUnit = 256

// bucketsPerOctave is the resolution of the value histograms.
const bucketsPerOctave = 4

// contextStats is what the samples say of a context.
type contextStats struct {
	words   int
	changed int
	units   int                          // changes of +1 or -1
	values  [64 * bucketsPerOctave]int32 // zigzag residuals of changed words by size
}

// planTables chooses gap classes, value codes and the chunk size from samples.
func planTables[T word.Word](dt dtype.Type, samples []codec.Block, level codec.Level) (tables, int) {
	t := newTables(dt)
	stats := gather[T](&t, samples)
	width := uint(8 * word.Size[T]())

	used := make([]int, 0, maxContexts)
	for c := range t.contexts() {
		if stats[c].words > 0 {
			used = append(used, c)
		}
	}
	// From the context that changes least to the one that changes most.
	slices.SortStableFunc(used, func(a, b int) int {
		x, y := &stats[a], &stats[b]
		return x.changed*y.words - y.changed*x.words
	})
	p := newPartition(stats, used, width)
	cost := p.solve(&t)
	spread(&t, used)
	return t, chunkWords(word.Size[T](), cost, p.words, level)
}

// gather counts the residuals of every context.
func gather[T word.Word](t *tables, samples []codec.Block) *[maxContexts]contextStats {
	stats := new([maxContexts]contextStats)
	for _, s := range samples {
		base, res := word.View[T](s.Base), word.View[T](s.Residual)
		for i, v := range res {
			x := &stats[uint64(base[i])>>(t.shift&63)&t.mask&(maxContexts-1)]
			x.words++
			if v == 0 {
				continue
			}
			x.changed++
			if v == 1 || v == ^T(0) {
				x.units++
			}
			x.values[bucket(uint64(word.Zigzag(v)))]++
		}
	}
	return stats
}

// bucket returns the histogram bucket of a value above zero: its bit length
// and the two bits below the leading one.
func bucket(v uint64) int {
	n := bits.Len64(v) - 1
	return n*bucketsPerOctave + int(v<<(63-n)>>61&3)
}

// bucketValue returns the smallest value of a bucket.
func bucketValue(b int) uint64 {
	n := b / bucketsPerOctave
	return (uint64(4+b%bucketsPerOctave) << n) >> 2
}

// bestValueCode returns the cheapest code for the values of a context in a gap
// class (dense false) or in the dense class, and its cost.
func (x *contextStats) bestValueCode(width uint, isDense bool) (code uint8, cost int) {
	n := x.changed
	if isDense {
		n = x.words
	}
	code, cost = codeVerbatim, n*int(width)*costUnit
	if !isDense {
		exceptional := x.changed - x.units
		if c := (x.units + exceptional*int(32+width)) * costUnit; c < cost {
			code, cost = codeSign, c
		}
	}
	for k := range width {
		c := 0
		if isDense {
			c = (x.words - x.changed) * int(1+k)
		}
		for b, count := range x.values[:int(width)*bucketsPerOctave] {
			if count == 0 {
				continue
			}
			v := bucketValue(b)
			if !isDense {
				v--
			}
			zeros := uint(bits.Len64(v>>k+1)) - 1
			if zeros >= maxZeros {
				c += int(count) * int(maxZeros+width)
			} else {
				c += int(count) * int(2*zeros+1+k)
			}
		}
		if c *= costUnit; c < cost {
			code, cost = uint8(k), c
		}
	}
	return code, cost
}

// bestGap returns the cheapest gap parameter for words of which changed change
// independently, and the cost of all gaps: a gap is then geometric with
// s = 1-changed/words the chance that a word does not end it.
func bestGap(words, changed int) (k uint8, cost int) {
	const one = 1 << 32
	stay := uint64(one)
	if words > 0 {
		stay = (uint64(words-changed) << 32) / uint64(words)
	}
	gaps := changed + words/laneWordsGuess // each lane also has an open gap at its end
	best := -1
	s := stay // chance that 2^k words in a row do not change
	for k2 := range maxGapBits {
		c := uint64(costUnit * (1 + k2))
		// The code has 2n+1+k bits where (gap>>k)+1 has n+1 bits; sum over n
		// of the chance that gap>>k is at least 2^n - 1.
		tail := s
		for n := 1; n < maxGapBits-k2 && tail > 0; n++ {
			c += 2 * costUnit * tail >> 32
			sq, lo := bits.Mul64(tail, tail)
			sq = sq<<32 | lo>>32
			hi, lo := bits.Mul64(sq, s)
			tail = hi<<32 | lo>>32
		}
		if total := int(c) * gaps; best < 0 || total < best {
			best, k = total, uint8(k2)
		}
		hi, lo := bits.Mul64(s, s)
		s = hi<<32 | lo>>32
	}
	return k, best
}

// laneWordsGuess is about how many words a lane has.
const laneWordsGuess = 2048

// partition splits the used contexts, ordered by how often they change, into
// at most maxGaps gap classes and the dense class.
type partition struct {
	used      []int
	words     int
	gapCode   []uint8 // value code of each used context in a gap class
	denseCode []uint8
	gapCost   []int // of the values alone, summed up to each used context
	denseCost []int // summed from each used context on
	sumWords  []int
	sumChange []int
}

func newPartition(stats *[maxContexts]contextStats, used []int, width uint) *partition {
	n := len(used)
	p := &partition{
		used: used, gapCode: make([]uint8, n), denseCode: make([]uint8, n),
		gapCost: make([]int, n+1), denseCost: make([]int, n+1),
		sumWords: make([]int, n+1), sumChange: make([]int, n+1),
	}
	for i, c := range used {
		x := &stats[c]
		var cost int
		p.gapCode[i], cost = x.bestValueCode(width, false)
		p.gapCost[i+1] = p.gapCost[i] + cost
		p.sumWords[i+1] = p.sumWords[i] + x.words
		p.sumChange[i+1] = p.sumChange[i] + x.changed
	}
	for i := n - 1; i >= 0; i-- {
		var cost int
		p.denseCode[i], cost = stats[used[i]].bestValueCode(width, true)
		p.denseCost[i] = p.denseCost[i+1] + cost
	}
	p.words = p.sumWords[n]
	return p
}

// solve fills in classes and codes of the used contexts and returns the cost of
// the samples. least[g][i] is the cost of the first i contexts in g classes.
func (p *partition) solve(t *tables) (cost int) {
	n := len(p.used)
	const never = int(^uint(0) >> 2)
	type cell struct {
		cost, from int
		k          uint8
	}
	var least [maxGaps + 1][]cell
	for g := range least {
		least[g] = make([]cell, n+1)
		for i := range least[g] {
			least[g][i] = cell{cost: never}
		}
	}
	least[0][0].cost = 0
	for to := 1; to <= n; to++ {
		for from := range to {
			k, c := bestGap(p.sumWords[to]-p.sumWords[from], p.sumChange[to]-p.sumChange[from])
			c += p.gapCost[to] - p.gapCost[from]
			for g := 1; g <= maxGaps; g++ {
				if total := least[g-1][from].cost + c; total < least[g][to].cost {
					least[g][to] = cell{total, from, k}
				}
			}
		}
	}
	bestG, bestTo, cost := 0, 0, never
	for g := range least {
		for to := range n + 1 {
			if c := least[g][to].cost + p.denseCost[to]; c < cost {
				bestG, bestTo, cost = g, to, c
			}
		}
	}
	for i := bestTo; i < n; i++ {
		t.class[p.used[i]], t.code[p.used[i]] = dense, p.denseCode[i]
	}
	t.gaps = make([]uint8, bestG)
	for g, to := bestG, bestTo; g > 0; g-- {
		x := least[g][to]
		t.gaps[g-1] = x.k
		for i := x.from; i < to; i++ {
			t.class[p.used[i]], t.code[p.used[i]] = uint8(g-1), p.gapCode[i]
		}
		to = x.from
	}
	return cost
}

// spread gives the contexts that the samples lack the parameters of the next
// used one below, or else above: neighbouring exponents behave alike. Without
// any sample every word is coded verbatim.
func spread(t *tables, used []int) {
	if len(used) == 0 {
		for c := range t.contexts() {
			t.class[c], t.code[c] = dense, codeVerbatim
		}
		return
	}
	isUsed := [maxContexts]bool{}
	for _, c := range used {
		isUsed[c] = true
	}
	like := slices.Min(used)
	for c := range t.contexts() {
		if isUsed[c] {
			like = c
		}
		t.class[c], t.code[c] = t.class[like], t.code[like]
	}
}

// chunkWords returns the least power of two of words whose code takes enough
// bytes that what every chunk costs (about 50 bytes) is small. A GPU decodes a
// chunk with one warp, and needs thousands of them to be busy: an RL step of
// 0.5 GB decodes 7% faster in chunks of 32 Ki words than of 64 Ki, a single
// matrix of 32 MB twice as fast, and takes 8% more room.
func chunkWords(wordBytes, cost, words int, level codec.Level) int {
	enough, most := 4096, 32768
	switch level {
	case codec.LevelFast:
		enough, most = 2048, 16384
	case codec.LevelSmall:
		enough, most = 8192, 262144
	}
	n := 2048
	for n < most && uint64(cost)*uint64(n) < uint64(words)*uint64(enough)*8*costUnit {
		n *= 2
	}
	return n
}
