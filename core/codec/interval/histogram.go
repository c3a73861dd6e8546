package interval

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/word"
)

// Histogram counts residual words.
type Histogram[T word.Word] struct {
	values []T   // that occur, ascending
	upto   []int // words up to and with each value
}

// HistogramOf counts words that are in ascending order.
func HistogramOf[T word.Word](sorted []T) Histogram[T] {
	var h Histogram[T]
	for i, v := range sorted {
		if i+1 == len(sorted) || sorted[i+1] != v {
			h.values = append(h.values, v)
			h.upto = append(h.upto, i+1)
		}
	}
	return h
}

// Counter makes histograms of short words in any order. It is not safe for
// concurrent use.
type Counter[T ~uint8 | ~uint16] struct {
	counts []int32
	seen   []uint64 // a bit for each value
}

// HistogramOf counts words.
func (c *Counter[T]) HistogramOf(words []T) Histogram[T] {
	if c.counts == nil {
		ring := 1 << (8 * word.Size[T]())
		c.counts, c.seen = make([]int32, ring), make([]uint64, ring/64)
	}
	n := 0
	for _, v := range words {
		if c.counts[v] == 0 {
			c.seen[v/64] |= 1 << (v % 64)
			n++
		}
		c.counts[v]++
	}
	h := Histogram[T]{make([]T, 0, n), make([]int, 0, n)}
	total := 0
	for i, seen := range c.seen {
		for ; seen != 0; seen &= seen - 1 {
			v := T(64*i + bits.TrailingZeros64(seen))
			total += int(c.counts[v])
			h.values, h.upto = append(h.values, v), append(h.upto, total)
			c.counts[v] = 0
		}
		c.seen[i] = 0
	}
	return h
}

// Words returns the number of words.
func (h Histogram[T]) Words() int { return h.before(len(h.values)) }

// before returns the number of words with the first i values.
func (h Histogram[T]) before(i int) int {
	if i == 0 {
		return 0
	}
	return h.upto[i-1]
}

// search returns the number of values from lo up to hi, counted from 0, that
// are below limit.
func (h Histogram[T]) search(lo, hi int, limit uint64) int {
	for lo < hi { // sort.Search, but inlined: planning spends its time here
		if middle := int(uint(lo+hi) / 2); uint64(h.values[middle]) < limit {
			lo = middle + 1
		} else {
			hi = middle
		}
	}
	return lo
}

// Add returns the histogram of the words of both.
func (h Histogram[T]) Add(o Histogram[T]) Histogram[T] {
	n := len(h.values) + len(o.values)
	sum := Histogram[T]{make([]T, 0, n), make([]int, 0, n)}
	for i, k := 0, 0; i < len(h.values) || k < len(o.values); {
		var v T
		switch {
		case k == len(o.values) || i < len(h.values) && h.values[i] < o.values[k]:
			v = h.values[i]
			i++
		case i == len(h.values) || o.values[k] < h.values[i]:
			v = o.values[k]
			k++
		default:
			v = h.values[i]
			i++
			k++
		}
		sum.values = append(sum.values, v)
		sum.upto = append(sum.upto, h.before(i)+o.before(k))
	}
	return sum
}

// Floor returns the histogram of the words divided by 2^d as two's complement
// numbers and rounded down, and how many words it leaves out because that is not
// within limit of zero.
func (h Histogram[T]) Floor(d uint, limit T) (out Histogram[T], left int) {
	out = Histogram[T]{make([]T, 0, len(h.values)), make([]int, 0, len(h.values))}
	total := 0
	for i, v := range h.values {
		sign := -(v >> (8*word.Size[T]() - 1))
		v = (v^sign)>>d ^ sign
		n := h.before(i+1) - h.before(i)
		if v+limit >= 2*limit {
			left += n
			continue
		}
		total += n
		if last := len(out.values) - 1; last >= 0 && out.values[last] == v {
			out.upto[last] = total
			continue
		}
		out.values, out.upto = append(out.values, v), append(out.upto, total)
	}
	return out, left
}
