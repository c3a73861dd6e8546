package prefix

import (
	"slices"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

const (
	codeBits   = 8  // of the longest code
	totalBits  = 16 // of a code with its plain bits: two words to a refill of 32 bits on a GPU
	escapeBits = 36 // that an exception costs, with what stands in for it
	// fineBits is how many bits of the mantissa tell contexts apart, before
	// neighbours that are served as well by one code are joined.
	fineBits = 2
	// minSamples is how many samples a context needs of its own.
	minSamples = 384
)

// planTables chooses contexts and their codes from samples.
func planTables[T word.Word, P part](dt dtype.Type, samples []codec.Block, level codec.Level) (tables, int) {
	t := tables{layout: layoutOf(dt)}
	l := &t.layout
	t.contexts.shift = l.keyBits
	if l.keyBits > 0 {
		t.contexts.shift = max(l.exponent, fineBits) - fineBits
		for l.keyBits-t.contexts.shift > maxKeyBits {
			t.contexts.shift++
		}
	}
	runs := gather[T, P](&t, samples)
	o := interval.Options{MaxLength: codeBits, MaxTotal: totalBits, MaxSymbols: interval.MaxSymbols, Escape: escapeBits}
	merged := merge(runs, o)
	cost, words := 0, 0
	for i, r := range merged {
		if i > 0 {
			t.contexts.starts = append(t.contexts.starts, r.start)
		}
		t.codes = append(t.codes, r.words.Code(o))
		cost += r.cost
		words += r.words.Words()
	}
	t.finish()
	return t, chunkWords(cost/interval.CostUnit+int(l.codeShift)*words, words, level)
}

// run is a run of keys that share a context.
type run[P part] struct {
	start uint16 // first key
	words interval.Histogram[P]
	cost  int
}

// gather sorts the residuals of the samples by key and value, and cuts them
// into runs of keys that have enough of them.
func gather[T word.Word, P part](t *tables, samples []codec.Block) []run[P] {
	l := &t.layout
	total := 0
	for _, s := range samples {
		total += s.Words()
	}
	pairs := make([]uint32, 0, 2*total) // key above residual; the other half is for sorting
	mask := T(1)<<l.keyBits - 1
	for _, s := range samples {
		base, res := word.View[T](s.Base), word.View[T](s.Residual)
		for i, v := range res {
			b := base[i] >> l.codeShift
			r := P((base[i]+v)>>l.codeShift) - P(b)
			if l.signed {
				r = P(v)
			}
			pairs = append(pairs, uint32(b&mask>>t.contexts.shift)<<16|uint32(r))
		}
	}
	pairs = radixSort(pairs, pairs[total:2*total])

	words := make([]P, total)
	for i, x := range pairs {
		words[i] = P(x)
	}
	var runs []run[P]
	first, start := 0, uint16(0)
	for i := range pairs {
		last := i+1 == len(pairs)
		if !last && (pairs[i]>>16 == pairs[i+1]>>16 || i+1-first < minSamples || len(pairs)-i-1 < minSamples) {
			continue
		}
		key := uint16(pairs[i] >> 16)
		if uint16(pairs[first]>>16) != key {
			slices.Sort(words[first : i+1]) // they are in order within each key only
		}
		runs = append(runs, run[P]{start: start, words: interval.HistogramOf(words[first : i+1])})
		first, start = i+1, key+1 // keys between two that occur go with the upper one
	}
	if runs == nil {
		runs = make([]run[P], 1)
	}
	return runs
}

// radixSort sorts values below 2^28 in ascending order, using spare of the same
// length, and returns where they are then.
func radixSort(values, spare []uint32) []uint32 {
	const digit = 10
	for shift := uint(0); shift < 28; shift += digit {
		var starts [1 << digit]int
		for _, v := range values {
			starts[v>>shift&(1<<digit-1)]++
		}
		sum := 0
		for i, n := range starts {
			starts[i] = sum
			sum += n
		}
		for _, v := range values {
			d := v >> shift & (1<<digit - 1)
			spare[starts[d]] = v
			starts[d]++
		}
		values, spare = spare, values
	}
	return values
}

// merge joins neighbours that one code serves nearly as well as two, the
// cheapest join first, and as long as there are too many.
func merge[P part](runs []run[P], o interval.Options) []run[P] {
	total := 0
	for i := range runs {
		runs[i].cost = runs[i].words.Cost(o)
		total += runs[i].words.Words()
	}
	// What a context must save: its decoding table takes room in caches.
	worth := total / 100000 * interval.CostUnit
	join := func(a, b run[P]) run[P] {
		words := a.words.Add(b.words)
		return run[P]{a.start, words, words.Cost(o)}
	}
	joined := make([]run[P], max(len(runs)-1, 0)) // of each run and the next
	for i := range joined {
		joined[i] = join(runs[i], runs[i+1])
	}
	for len(runs) > 1 {
		best, least := 0, 0
		for i, r := range joined {
			if loss := r.cost - runs[i].cost - runs[i+1].cost; i == 0 || loss < least {
				best, least = i, loss
			}
		}
		if least > worth && len(runs) <= maxContexts && len(runs)<<codeBits <= maxTable {
			break
		}
		runs[best] = joined[best]
		runs = append(runs[:best+1], runs[best+2:]...)
		joined = append(joined[:best], joined[best+1:]...)
		if best < len(joined) {
			joined[best] = join(runs[best], runs[best+1])
		}
		if best > 0 {
			joined[best-1] = join(runs[best-1], runs[best])
		}
	}
	return runs
}

// chunkWords returns how many words a chunk should have. What a chunk costs is
// some 40 bytes, most of it the lane table; a GPU decodes a chunk with one
// warp, and needs thousands of them to be busy.
func chunkWords(_, _ int, level codec.Level) int {
	switch level {
	case codec.LevelFast:
		return 4096
	case codec.LevelSmall:
		return 32768
	}
	return 12288
}
