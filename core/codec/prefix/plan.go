package prefix

import (
	"slices"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

const (
	codeBits   = 8  // of the longest code
	totalBits  = 16 // of a code with its plain bits: two words to a refill of 32 bits on a GPU
	escapeBits = 36 // that an exception costs, with what stands in for it
	// fineWords is how many samples make it worth while to tell contexts apart
	// by two bits of the mantissa rather than one. Neighbours that are served as
	// well by one code are joined afterwards.
	fineWords = 128 << 10
	// minSamples is how many samples a context needs of its own.
	minSamples = 384
	windowKeys = 46 // of window
	// longWord is what coded parts cost at most if their chunks are not to be
	// shorter: 7.5 bits. Those of deltas cost less, of plain bf16 11 bits.
	longWord = 15 * interval.CostUnit / 2
)

// planTables chooses contexts and their codes from samples.
func planTables[T word.Word, P part](dt dtype.Type, samples []codec.Block, level codec.Level) (tables, int) {
	t := tables{layout: layoutOf(dt)}
	l := &t.layout
	words := total(samples)
	t.contexts.shift = l.keyBits
	if l.keyBits > 0 {
		fine := uint(1)
		if words >= fineWords {
			fine = 2
		}
		t.contexts.shift = max(l.exponent, fine) - fine
		for l.keyBits-t.contexts.shift > maxKeyBits {
			t.contexts.shift++
		}
	}
	runs := gather[T, P](&t, samples, words)
	o := interval.Options{MaxLength: codeBits, MaxTotal: totalBits, MaxSymbols: interval.MaxSymbols, Escape: escapeBits}
	merged := merge(runs, words, o)
	cost := 0
	for i, r := range merged {
		cost += r.cost
		if i > 0 {
			t.contexts.starts = append(t.contexts.starts, r.start)
		}
		t.codes = append(t.codes, r.words.Code(o))
	}
	t.finish()
	return t, chunkWords(level, cost, words)
}

// total returns the number of words of all samples.
func total(samples []codec.Block) (words int) {
	for _, s := range samples {
		words += s.Words()
	}
	return words
}

// run is a run of keys that share a context.
type run[P part] struct {
	start uint16 // first key
	words interval.Histogram[P]
	cost  int
}

// rooms are what gather works in: planning is much of the work of a small
// tensor, and garbage would be much of planning.
var rooms = sync.Pool{New: func() any { return new([]uint16) }}

// gather sorts the residuals of the samples, `total` words, by key, cuts them into runs of keys
// that have enough of them, and counts those of each run.
func gather[T word.Word, P part](t *tables, samples []codec.Block, total int) []run[P] {
	l := &t.layout
	if total == 0 {
		return make([]run[P], 1)
	}
	room := rooms.Get().(*[]uint16)
	defer rooms.Put(room)
	if cap(*room) < 3*total {
		*room = make([]uint16, 3*total)
	}
	part := func(i int) []P { return word.View[P](word.Bytes((*room)[i*total : (i+1)*total]))[:total] }
	keys, words, sorted := (*room)[:total], part(1), part(2)
	at := 0
	starts := make([]int, t.contexts.keys(l)+1) // of each key's words in sorted
	mask, shift, down := uint64(1)<<l.keyBits-1, t.contexts.shift, l.codeShift
	for _, s := range samples {
		base, res := word.View[T](s.Base), word.View[T](s.Residual)
		base = base[:len(res)]
		keys, words := keys[at:][:len(res)], words[at:][:len(res)]
		at += len(res)
		for i, v := range res {
			// Shifts of 64 bits spare tests of how far they go.
			b := uint64(base[i]) >> (down & 63)
			r := P(uint64(base[i]+v)>>(down&63)) - P(b)
			if l.signed {
				r = P(v)
			}
			key := uint16(b & mask >> (shift & 63))
			keys[i], words[i] = key, r
			starts[key+1]++
		}
	}
	for i := range starts[1:] {
		starts[i+1] += starts[i]
	}
	next := slices.Clone(starts)
	for i, key := range keys {
		sorted[next[key]] = words[i]
		next[key]++
	}
	low, high := window(starts)
	var runs []run[P]
	var counter interval.Counter[P]
	first, start := 0, 0
	for key := range len(starts) - 1 {
		end := starts[key+1]
		// The keys between two that occur go with the upper one.
		enough := end-first >= minSamples && end > starts[key] && total-end >= minSamples
		if end == total || enough && low <= key && key < high {
			runs = append(runs, run[P]{start: uint16(start), words: counter.HistogramOf(sorted[first:end])})
			if first, start = end, key+1; end == total {
				break
			}
		}
	}
	return runs
}

// window returns the run of keys within which contexts may end that has the
// most words, as counted by starts. On a GPU each key of it takes 1 KiB of shared
// memory, for all have entries of their own (DeviceTables), and vector registers look
// up 64. The keys on either side are so rare that a window of 62 makes a fine-tune
// 0.01% smaller than one of 46.
func window(starts []int) (low, high int) {
	most := -1
	for key := range max(len(starts)-windowKeys, 1) {
		if n := starts[min(key+windowKeys, len(starts)-1)] - starts[key]; n > most {
			low, most = key, n
		}
	}
	return low, low + windowKeys
}

// merge joins neighbours, of `total` words in all, that one code serves nearly as well as two, the
// cheapest join first, and as long as there are too many.
func merge[P part](runs []run[P], total int, o interval.Options) []run[P] {
	for i := range runs {
		runs[i].cost = runs[i].words.Cost(o)
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

// chunkWords returns how many words a chunk should have, where the coded parts of
// `words` of them cost so much. A chunk takes some 40 bytes of its own, most of it the
// lane table. A GPU decodes a chunk with one warp, and needs thousands of them to be
// busy; as many warps run at once as have room for a chunk in shared memory, so
// chunks are shorter where a word takes much.
func chunkWords(level codec.Level, cost, words int) int {
	switch {
	case level == codec.LevelFast:
		return 4096
	case level == codec.LevelSmall:
		return 32768
	case cost > longWord*words:
		return 8192
	}
	return 12288
}
