package rice

import (
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// TestPlanOfSteps plans what an RL step looks like: a class for each of the
// frequent exponents, most of them with steps of one unit.
func TestPlanOfSteps(t *testing.T) {
	tab, n := planTables[uint16](dtype.BF16, []codec.Block{codectest.RL(1 << 17)}, 0, codec.LevelDefault)
	units := 0
	for _, g := range tab.gaps {
		if !g.coded {
			units++
		}
	}
	if units < 4 || !tab.hasDense {
		t.Errorf("classes %+v, dense %v", tab.gaps, tab.hasDense)
	}
	for i := 1; i < len(tab.gaps); i++ {
		if tab.gaps[i].low < tab.gaps[i-1].low {
			t.Errorf("class %d changes more often than the one of smaller weights", i)
		}
	}
	if n != 32<<10 && n != 64<<10 {
		t.Errorf("chunks of %d words", n)
	}
}

// TestPlanOfScales plans changes that are the same at every exponent, in units
// of a fixed size: the codes are doubles of each other.
func TestPlanOfScales(t *testing.T) {
	block := codectest.FineTune(1 << 16)
	tab, _ := planTables[uint16](dtype.BF16, []codec.Block{block}, 0, codec.LevelDefault)
	doubled := 0
	for _, c := range tab.codes {
		if c.doubled {
			doubled++
		}
	}
	if doubled == 0 {
		t.Errorf("none of %d codes is doubled", len(tab.codes))
	}
}

// TestPlanOfNothing plans samples without words, without changes, and without
// anything but changes.
func TestPlanOfNothing(t *testing.T) {
	block := codec.Block{Type: dtype.I32, Base: make([]byte, 4<<10), Residual: make([]byte, 4<<10)}
	if tab, _ := planTables[uint32](dtype.I32, nil, 0, codec.LevelDefault); !tab.hasDense || len(tab.gaps) != 0 {
		t.Errorf("no samples: %+v", tab)
	}
	tab, _ := planTables[uint32](dtype.I32, []codec.Block{block}, 0, codec.LevelDefault)
	data, _, err := newEncoder[uint32](tab, 1024).Encode(nil, block)
	if err != nil || len(data) > 8 {
		t.Errorf("no changes: %d bytes (%v)", len(data), err)
	}
	res := word.View[uint32](block.Residual)
	for i := range res {
		res[i] = 7
	}
	tab, _ = planTables[uint32](dtype.I32, []codec.Block{block}, 0, codec.LevelDefault)
	data, _, err = newEncoder[uint32](tab, 1024).Encode(nil, block)
	if err != nil || len(data) > 300 {
		t.Errorf("changes that are all the same: %d bytes (%v)", len(data), err)
	}
}

func TestLowBits(t *testing.T) {
	for _, c := range []struct{ words, events, low int }{{100, 100, 0}, {100, 50, 0}, {1000, 100, 3}, {1 << 20, 1 << 10, 9}} {
		low, cost := lowBits(c.words, c.events)
		if int(low) != c.low && int(low) != c.low+1 || cost < c.events*costUnit {
			t.Errorf("%d events in %d words: k %d, cost %d", c.events, c.words, low, cost)
		}
	}
	if _, cost := lowBits(1000, 0); cost != 0 {
		t.Error("no events cost something")
	}
}

func TestCut(t *testing.T) {
	counts := make([]int, 100)
	for key := 10; key < 90; key++ {
		counts[key] = key
	}
	starts := cut(counts, maxBins)
	if len(starts) != maxBins || starts[0] != 0 || starts[len(starts)-1] != 89 {
		t.Errorf("%d runs: %v", len(starts), starts)
	}
}

func TestDouble(t *testing.T) {
	c := codeOf[uint8](0, 0, 0, 1, 1, 2, 30, 30, 31, 250, 255, 255)
	d, ok := double(c.Code)
	if !ok {
		t.Fatal("a code near zero cannot be doubled")
	}
	for v := range 256 {
		i := c.Find(uint64(v))
		if j := d.Find(uint64(uint8(2 * int8(v)))); int8(v) >= -64 && int8(v) < 64 && i != j {
			t.Errorf("word %d is in symbol %d, its double in %d", v, i, j)
		}
	}
	if _, ok := double(interval.Code{Width: 8, Symbols: []interval.Symbol{{Base: 64, Raw: 6}}}); ok {
		t.Error("64 to 127 were doubled in 8 bits")
	}
}

// TestScaledGroupWithoutCode has no words for a code that can be doubled.
func TestScaledGroupWithoutCode(t *testing.T) {
	bins := []bin[uint16]{{first: 0, words: 2, changed: 1, values: []uint16{9}}, {first: 1, words: 2, changed: 1, values: []uint16{7}}}
	p := newPartition(bins, 1, 1, 16)
	tab := newTables(dtype.BF16)
	p.addContexts(&tab, &group[uint16]{from: 0, to: 2, scaled: true}, dense)
	if len(tab.codes) != 1 || len(tab.contexts) != 1 || tab.codes[0].Find(7) < 0 || tab.codes[0].Find(9) < 0 {
		t.Errorf("%d codes, contexts %+v", len(tab.codes), tab.contexts)
	}
}
