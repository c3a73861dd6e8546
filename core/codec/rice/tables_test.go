package rice

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// codeOf makes an interval code of words.
func codeOf[T word.Word](sorted ...T) tableCode {
	c, _ := interval.Plan(sorted, codeOptions(uint(8*word.Size[T]())))
	return tableCode{Code: c}
}

// everyFeature has a unit class, a coded class, the dense class and a doubled
// code.
func everyFeature() *tables {
	t := newTables(dtype.BF16)
	t.shift = 7
	t.gaps = []gapClass{
		{low: 1, count: countCode{mean: 3, order: 1}},
		{low: 2, count: countCode{order: 2}, coded: true},
	}
	t.hasDense, t.denseCount = true, countCode{mean: 70, order: 3}
	plain := codeOf[uint16](0, 0, 1, 1, 2, 3, 65534, 65535)
	twice, ok := double(plain.Code)
	if !ok {
		panic("a code near zero can be doubled")
	}
	t.codes = []tableCode{plain, {twice, true}, codeOf[uint16](1, 1, 1, 2, 65535)}
	t.contexts = []context{
		{first: 0, class: dense, code: 1}, {first: 100, class: dense, code: 0},
		{first: 110, class: 1, code: 2}, {first: 120, class: 0},
	}
	return &t
}

func TestTablesRoundTrip(t *testing.T) {
	want := everyFeature()
	data := want.marshal()
	got, err := parseTables(dtype.BF16, data)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("read back: %v\n%+v\n%+v", err, got, want)
	}
	for n := range data {
		if _, err := parseTables(dtype.BF16, data[:n]); !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("tables cut to %d bytes of %d: %v", n, len(data), err)
		}
	}
}

func TestTablesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*tables){
		"shift too small":  func(x *tables) { x.shift = 2 },
		"shift too large":  func(x *tables) { x.shift = 16 },
		"low bits":         func(x *tables) { x.gaps[0].low = maxLowBits + 1 },
		"order":            func(x *tables) { x.gaps[1].count.order = maxOrder + 1 },
		"mean":             func(x *tables) { x.denseCount.mean = maxMean + 1 },
		"no dense class":   func(x *tables) { x.hasDense = false },
		"code":             func(x *tables) { x.contexts[2].code = 3 },
		"key beyond all":   func(x *tables) { x.contexts[3].first = 256 },
		"too many codes":   func(x *tables) { x.codes = append(x.codes, slices.Repeat(x.codes[:1], maxContexts)...) },
		"doubled too wide": func(x *tables) { x.codes[0] = codeOf[uint16]() },
	} {
		x := everyFeature()
		spoil(x)
		if _, err := parseTables(dtype.BF16, x.marshal()); !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	var w bitio.Writer
	w.Put(7, 6)      // shift
	w.Put(0, 4)      // no gap classes, no dense class
	w.PutGamma(0, 0) // no codes
	w.Put(0, 6+3)    // a context of class 0
	if _, err := parseTables(dtype.BF16, w.Finish(1)); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("class of none: got %v", err)
	}
	if _, err := parseTables(dtype.BF16, append(everyFeature().marshal(), 0)); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("a byte more: %v", err)
	}
}

// FuzzTables feeds arbitrary tables to the decoder: they are refused, or they
// come out of marshal again and decode without harm.
func FuzzTables(f *testing.F) {
	f.Add(byte(dtype.BF16), everyFeature().marshal(), []byte{0, 0, 0, 0})
	for _, typ := range []dtype.Type{dtype.I8, dtype.F32, dtype.F64} {
		f.Add(byte(typ), factory{}.Plan(typ, nil, 0, codec.LevelDefault).Tables(), []byte{1, 2, 3, 4, 5, 6, 7, 8})
	}
	f.Fuzz(func(t *testing.T, typ byte, data, chunk []byte) {
		dt := dtype.Type(typ)
		if !dt.Valid() {
			return
		}
		x, err := parseTables(dt, data)
		if err != nil {
			if !errors.Is(err, status.ErrCorrupt) {
				t.Fatalf("tables %x: %v", data, err)
			}
			return
		}
		if again := x.marshal(); !bytes.Equal(again, data) {
			t.Fatalf("tables %x come out as %x", data, again)
		}
		d, err := factory{}.NewDecoder(dt, data)
		if err != nil {
			t.Fatal(err)
		}
		const n = 1000
		base := word.Bytes(make([]uint64, n))[:n*dt.WordBytes()]
		for i := range base {
			base[i] = byte(i * 7)
		}
		res := word.Bytes(make([]uint64, n))[:len(base)]
		if err := d.Decode(codec.Block{Type: dt, Base: base, Residual: res}, chunk, 3); err != nil && !errors.Is(err, status.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}
