package interval

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRefine holds refined codes to what every code promises, and shows that
// they cost less where whole bits matter.
func TestRefine(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	for name, c := range map[string]struct {
		word func() uint16
		less float64 // of what the code costs without
	}{
		"two rare ones": {func() uint16 { return []uint16{0, 0, 1, 65535}[rng.IntN(4)] * uint16(1+rng.IntN(1001)/1000) }, 0.9},
		"two lobes":     {func() uint16 { return uint16(1+rng.IntN(8)+rng.IntN(40)/39) * uint16(1-2*rng.IntN(2)) }, 1},
		"one":           {func() uint16 { return 9 }, 1},
		"random":        {func() uint16 { return uint16(rng.Uint32()) }, 1},
	} {
		words := make([]uint16, 20000)
		for i := range words {
			words[i] = c.word()
		}
		slices.Sort(words)
		h := HistogramOf(words)
		plain := h.Code(options)
		refined := h.Refine(plain, options)
		check(t, &refined, options)
		cost := func(c *Code) (bits int) {
			for _, v := range words {
				if i := c.Find(uint64(v)); i >= 0 {
					bits += int(c.Symbols[i].Length + c.Symbols[i].Raw)
				} else {
					bits += int(options.Escape)
				}
			}
			return bits
		}
		if got, before := cost(&refined), cost(&plain); float64(got) > c.less*float64(before) {
			t.Errorf("%s: %d bits instead of %d", name, got, before)
		}
	}
}

func TestHuffman(t *testing.T) {
	for _, c := range []struct {
		counts []int
		want   int
	}{{nil, 0}, {[]int{5}, 0}, {[]int{1, 9}, 10}, {[]int{1, 1, 2, 4}, 14}, {[]int{3, 3, 3, 3}, 24}} {
		if got := Huffman(slices.Clone(c.counts)); got != c.want {
			t.Errorf("Huffman(%v) = %d, expected %d", c.counts, got, c.want)
		}
	}
}

func TestFloor(t *testing.T) {
	var words []uint8
	for v := range 256 {
		words = append(words, uint8(v))
	}
	h, left := HistogramOf(words).Floor(3, 8)
	if left != 128 || h.Words() != 128 || len(h.values) != 16 {
		t.Fatalf("%d words left out, %d in %d values", left, h.Words(), len(h.values))
	}
	for i, v := range h.values {
		if h.before(i+1)-h.before(i) != 8 || i < 8 && v != uint8(i) || i >= 8 && v != uint8(240+i) {
			t.Errorf("value %d is %d, %d words", i, v, h.before(i+1)-h.before(i))
		}
	}
}
