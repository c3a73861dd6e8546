package rice

import (
	"math/bits"
	"slices"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

const (
	// maxBins bounds the work of the planner, and the contexts that it makes.
	maxBins = 48
	// maxValues is about how many changed words are looked at for their values.
	maxValues = 16 << 10
	// bucketsPerOctave is the resolution of the value histograms.
	bucketsPerOctave = 4
	buckets          = 2 * 64 * bucketsPerOctave // of either sign
)

// bin is what the samples say of a run of keys.
type bin[T word.Word] struct {
	first   int // key
	words   int
	changed int
	units   int // changes of +1 or -1
	values  []T // residuals of changed words, one of every stride
	// histogram counts values by sign and size.
	histogram [buckets]int32
}

// gather counts what the samples hold, in bins of ascending keys without gaps
// between them. Of the changed words, one in stride is listed.
func gather[T word.Word](k *classifier, keyBits uint, samples []codec.Block) (bins []bin[T], stride int) {
	counts := make([]int, 1<<keyBits)
	changed := 0
	for _, s := range samples {
		for _, w := range word.View[T](s.Base) {
			counts[key(k, w)]++
		}
		changed += residual.CountChanged(s.Residual, word.Size[T]())
	}
	starts := cut(counts, maxBins)
	bins = make([]bin[T], len(starts))
	number := make([]uint8, 1<<keyBits)
	for i, first := range starts {
		bins[i].first = first
		for key := first; key < len(number); key++ {
			number[key] = uint8(i)
		}
	}
	for key, n := range counts {
		if n > 0 {
			bins[number[key]].words += n
		}
	}
	stride = changed/maxValues + 1
	skip := 0
	var at []uint32
	for _, s := range samples {
		base, res := word.View[T](s.Base), word.View[T](s.Residual)
		at = residual.AppendChanged(at[:0], s.Residual, word.Size[T]())
		for _, i := range at {
			v := res[i]
			b := &bins[number[key(k, base[i])]]
			b.changed++
			if v == 1 || v == ^T(0) {
				b.units++
			}
			if skip == 0 {
				b.values = append(b.values, v)
				b.histogram[bucket(v)]++
				skip = stride
			}
			skip--
		}
	}
	for i := range bins {
		slices.Sort(bins[i].values)
	}
	return bins, stride
}

// cut divides the keys that occur into runs, at most limit of them, and returns
// the first key of each. It joins the neighbours that have the fewest words.
func cut(counts []int, limit int) []int {
	var starts, words []int
	for key, n := range counts {
		if n > 0 {
			starts, words = append(starts, key), append(words, n)
		}
	}
	for len(starts) > limit {
		least := 0
		for i := range len(words) - 1 {
			if words[i]+words[i+1] < words[least]+words[least+1] {
				least = i
			}
		}
		words[least] += words[least+1]
		starts, words = slices.Delete(starts, least+1, least+2), slices.Delete(words, least+1, least+2)
	}
	if len(starts) > 0 {
		starts[0] = 0
	}
	return starts
}

// bucket returns the histogram bucket of a residual: its sign, its size, and
// the bits below the leading one.
func bucket[T word.Word](v T) int {
	z := uint64(word.Zigzag(v))
	sign := int(z & 1)
	m := z>>1 + uint64(sign) // magnitude, above zero
	n := bits.Len64(m) - 1
	return 2*(n*bucketsPerOctave+int(m<<(63-n)>>61&3)) + sign
}

// plainBits returns how many bits tell apart the residuals of a bucket.
func plainBits(bucket int) int {
	return max(0, bucket/(2*bucketsPerOctave)-2)
}

// valueCost estimates what an interval code of the bin's residuals costs, those
// of zero included: a prefix code of their buckets.
func (b *bin[T]) valueCost(zeros, stride int) int {
	counts := make([]int, 0, buckets+1)
	cost := 0
	for i, n := range b.histogram {
		if n > 0 {
			counts = append(counts, int(n))
			cost += int(n) * plainBits(i)
		}
	}
	if zeros > 0 {
		counts = append(counts, zeros)
	}
	used := len(counts)
	return (cost+interval.Huffman(counts))*stride*costUnit + used*symbolCost
}

// enoughValues is how many values say what a code should be.
const enoughValues = 1024

// smooth returns the residuals for which a code is made, zeros of zero among
// them, in ascending order. Few samples of a large tensor stand for many words,
// which are as likely on the other side of zero.
func (b *bin[T]) smooth(zeros, scale int) []T {
	if scale == 1 || len(b.values) >= enoughValues {
		return append(make([]T, zeros, zeros+len(b.values)), b.values...)
	}
	out := make([]T, 2*zeros, 2*(zeros+len(b.values)))
	for _, v := range b.values {
		out = append(out, v, -v)
	}
	slices.Sort(out)
	return out
}
