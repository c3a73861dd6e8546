package rice

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// TestDeviceTables checks every field against kernels/rice_state.cuh, with an
// interval code of one symbol and one of two.
func TestDeviceTables(t *testing.T) {
	x := newTables(dtype.F64)
	x.shift = 52
	x.gaps = []gapClass{{low: 9, count: countCode{mean: 70, order: 3}}, {low: 2, coded: true, count: countCode{mean: 5, order: 1}}}
	x.hasDense, x.denseCount = true, countCode{mean: 1000, order: 6}
	x.codes = []tableCode{
		{Code: interval.Code{Width: 64, Symbols: []interval.Symbol{{Base: 1 << 40, Raw: 7}}}},
		{Code: interval.Code{Width: 64, Symbols: []interval.Symbol{{Base: 8, Raw: 3, Length: 1}, {Base: 1 << 63, Raw: 2, Length: 1, Bits: 1}}}},
	}
	x.contexts = []context{{first: 0, class: dense, code: 1}, {first: 1000, class: 1, code: 0}, {first: 1023, class: 0}}
	out, err := DeviceTables(dtype.F64, x.marshal())
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	at := func(i int) uint32 { return le.Uint32(out[i:]) }
	words := func(what string, start int, want ...uint32) {
		t.Helper()
		for i, w := range want {
			if got := at(start + 4*i); got != w {
				t.Errorf("%s: word %d is %#x, expected %#x", what, i, got, w)
			}
		}
	}
	const steps = DeviceHeadBytes
	const codes = steps + 4*2048
	const symbols = codes + 2048
	const entries = symbols + 8*3 + 8 // at a multiple of 16 bytes
	words("head", 0, 20, 2048, dense, 3, steps, codes, symbols, entries)
	words("classes", 32, 9, kindUnit, 3, 70, 2, kindValued, 1, 5, 0, kindAbsent)
	words("dense class", 32+16*dense, 0, kindValued, 6, 1000)
	words("codes", 160, 0, 0, 0, 1<<8, 1, 1, 0, 1<<31) // of the second, the symbol with fewer bits stands for others
	for key, want := range map[int]uint32{0: 1 << 28, 999: 1 << 28, 1000: 1 << 4, 1022: 1 << 4, 1023: 1, 2047: 1} {
		if got := at(steps + 4*key); got != want {
			t.Errorf("step of key %d is %#x, expected %#x", key, got, want)
		}
	}
	if out[codes] != 1 || out[codes+999] != 1 || out[codes+1000] != 0 {
		t.Error("wrong codes of keys")
	}
	for i, want := range []uint64{1 << 40, 8, 1 << 63} {
		if got := le.Uint64(out[symbols+8*i:]); got != want {
			t.Errorf("symbol %d starts at %#x, expected %#x", i, got, want)
		}
	}
	words("entries", entries, 7|7<<7, 4|3<<7|1<<16, 3|2<<7|2<<16)
	if len(out) != entries+16 {
		t.Errorf("%d bytes", len(out))
	}
	if _, err := DeviceTables(dtype.U8, x.marshal()); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("tables of another dtype: %v", err)
	}
}

// TestDeviceEntries checks the entries of words of up to 16 bits: a word is the
// bits of code and plain bits, as a number, and what the entry adds.
func TestDeviceEntries(t *testing.T) {
	x := newTables(dtype.BF16)
	x.shift = 7
	x.hasDense = true
	x.codes = []tableCode{{Code: interval.Code{Width: 16, Symbols: []interval.Symbol{
		{Base: 8, Raw: 3, Length: 1}, {Base: 0xfffc, Raw: 2, Length: 1, Bits: 1},
	}}}}
	x.contexts = []context{{first: 0, class: dense}}
	out, err := DeviceTables(dtype.BF16, x.marshal())
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	at := le.Uint32(out[28:])
	for i, want := range []uint32{4 | 8<<16, 3 | (0xfffc-1<<2)<<16} {
		if got := le.Uint32(out[int(at)+4*i:]); got != want {
			t.Errorf("entry %d is %#x, expected %#x", i, got, want)
		}
	}
}
