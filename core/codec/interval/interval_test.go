package interval

import (
	"errors"
	"math"
	"math/bits"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

var options = Options{MaxLength: 8, MaxTotal: 16, MaxSymbols: MaxSymbols, Escape: 40}

// check holds a code to what every code promises.
func check(t *testing.T, c *Code, o Options) {
	t.Helper()
	space := 0
	end, full := uint64(0), false
	for i, s := range c.Symbols {
		if full || s.Base < end || s.Base%(1<<s.Raw) != 0 || s.Length > MaxLength || int(s.Bits)>>s.Length != 0 {
			t.Fatalf("symbol %d is %+v after %#x", i, s, end)
		}
		end = s.Base + 1<<s.Raw
		full = end == 0
		if c.Width < 64 && end > 1<<c.Width {
			t.Fatalf("symbol %d ends at %#x", i, end)
		}
		space += 1 << (MaxLength - s.Length)
	}
	if space != 1<<MaxLength {
		t.Fatalf("codes fill %d/%d", space, 1<<MaxLength)
	}
	longest, total := c.Longest()
	if uint(longest) > o.MaxLength || len(c.Symbols) > o.MaxSymbols || uint(total) > max(o.MaxTotal, c.Width) {
		t.Fatalf("%d symbols, %d bits of %d", len(c.Symbols), longest, total)
	}
	var table [1 << MaxLength]uint8
	c.Lookup(table[:], MaxLength)
	for i, s := range c.Symbols {
		first := int(s.Bits) << (MaxLength - s.Length)
		if table[first] != uint8(i) || table[first+1<<(MaxLength-s.Length)-1] != uint8(i) {
			t.Fatalf("look-up of symbol %d", i)
		}
		if c.Find(s.Base) != i || c.Find(s.Base+1<<s.Raw-1) != i {
			t.Fatalf("symbol %d does not find itself", i)
		}
	}
	var w bitio.Writer
	c.AppendTo(&w)
	buf := slices.Clone(w.Finish(1))
	r := bitio.NewReader(buf)
	again, err := Read(r, c.Width)
	if err != nil || !reflect.DeepEqual(&again, c) || !r.Padded(1) {
		t.Fatalf("read back: %v\n%+v\n%+v", err, again, c)
	}
	for n := range buf {
		if _, err := Read(bitio.NewReader(buf[:n]), c.Width); err != nil && !errors.Is(err, status.ErrCorrupt) {
			t.Fatal(err)
		}
	}
}

func planOf[T word.Word](t *testing.T, words []T, o Options) Code {
	slices.Sort(words)
	c, _ := Plan(words, o)
	check(t, &c, o)
	return c
}

// TestPlan makes codes of all widths for words near zero, in two lobes,
// anywhere, all the same, and none.
func TestPlan(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	kinds := map[string]func() uint64{
		"normal": func() uint64 { return uint64(int64(rng.NormFloat64() * 20)) },
		"lobes":  func() uint64 { return uint64(int64(rng.NormFloat64()*300)) + rng.Uint64N(2)<<15 },
		"random": rng.Uint64,
		"same":   func() uint64 { return 77 },
		"octaves": func() uint64 {
			return uint64(int64(math.Exp(rng.Float64()*40) * float64(1-2*rng.IntN(2))))
		},
	}
	for name, kind := range kinds {
		for _, n := range []int{0, 1, 2, 3, 10, 1000, 30000} {
			t.Run(name, func(t *testing.T) {
				a, b, c, d := make([]uint8, n), make([]uint16, n), make([]uint32, n), make([]uint64, n)
				for i := range n {
					v := kind()
					a[i], b[i], c[i], d[i] = uint8(v), uint16(v), uint32(v), v
				}
				planOf(t, a, options)
				planOf(t, b, options)
				wide := options
				wide.MaxTotal = 80
				planOf(t, c, wide)
				planOf(t, d, wide)
				few := options
				few.MaxSymbols = 5
				planOf(t, b, few)
			})
		}
	}
}

// TestPlanIsGood compares what codes cost with the entropy. Whole bits cost 5 %
// where a single word has four tenths of all; that is any prefix code's price.
func TestPlanIsGood(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for sigma, limit := range map[float64]float64{1: 1.06, 5: 1.015, 40: 1.01, 300: 1.01} {
		words := make([]uint16, 200000)
		counts := map[uint16]int{}
		for i := range words {
			words[i] = uint16(int16(math.Round(rng.NormFloat64() * sigma)))
			counts[words[i]]++
		}
		c := planOf(t, words, options)
		bits, entropy := 0.0, 0.0
		for v, n := range counts {
			entropy -= float64(n) * math.Log2(float64(n)/float64(len(words)))
			if i := c.Find(uint64(v)); i >= 0 {
				bits += float64(n * int(c.Symbols[i].Length+c.Symbols[i].Raw))
			} else {
				bits += float64(n) * float64(options.Escape)
			}
		}
		t.Logf("sigma %g: %d intervals, %.4f of the entropy", sigma, len(c.Symbols), bits/entropy)
		if bits/entropy > limit {
			t.Errorf("sigma %g: %.2f bits a word, entropy %.2f", sigma, bits/float64(len(words)), entropy/float64(len(words)))
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, words := range [][]uint16{{}, {1}, {1, 1, 2, 3, 4, 65535}, {0, 0, 0, 32768, 32769}} {
		c, _ := Plan(words, options)
		var w bitio.Writer
		c.AppendTo(&w)
		f.Add(uint8(16), w.Finish(1))
	}
	f.Fuzz(func(t *testing.T, width uint8, data []byte) {
		w := uint(8) << (width % 4)
		r := bitio.NewReader(data)
		c, err := Read(r, w)
		if err != nil {
			if !errors.Is(err, status.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		check(t, &c, Options{MaxLength: MaxLength, MaxTotal: 80, MaxSymbols: MaxSymbols})
	})
}

func TestLog2(t *testing.T) {
	for _, v := range []int{1, 2, 3, 7, 100, 255, 256, 511, 512, 12345, 1 << 40, 1<<62 + 1} {
		n := bits.Len(uint(v)) - 1
		short := v >> max(n-8, 0) << max(n-8, 0) // the nine highest bits
		if want := int(math.Floor(math.Log2(float64(short)) * CostUnit)); log2(v) != want {
			t.Errorf("log2(%d) = %d, expected %d", v, log2(v), want)
		}
	}
}
