package prefix

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

func TestCodec(t *testing.T)      { codectest.Run(t, factory{}) }
func TestHammer(t *testing.T)     { codectest.Hammer(t, factory{}) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, factory{}) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, factory{}) }

// tablesOf writes tables as FORMAT.md says, well formed or not.
func tablesOf(contexts, shift uint64, starts []uint64, codes ...interval.Code) []byte {
	var w bitio.Writer
	w.Put(contexts-1, 6)
	if contexts > 1 {
		w.Put(shift, 4)
	}
	for _, gap := range starts {
		w.PutGamma(gap, 0)
	}
	for i := range codes {
		codes[i].AppendTo(&w)
	}
	return w.Finish(1)
}

// bytesCode says +1 in 0, -1 in 10, and one of 16 to 31 in 11 and 4 plain bits.
var bytesCode = interval.Code{Width: 8, Symbols: []interval.Symbol{
	{Base: 1, Length: 1, Bits: 0}, {Base: 16, Raw: 4, Length: 2, Bits: 2}, {Base: 255, Length: 2, Bits: 3},
}}

func ringCode(width uint) interval.Code {
	return interval.Code{Width: width, Symbols: []interval.Symbol{{Raw: uint8(width)}}}
}

func TestTables(t *testing.T) {
	wide := interval.Code{Width: 16, Symbols: []interval.Symbol{{Raw: 15, Length: 10}, {Base: 0x8000, Raw: 14, Length: 10}}}
	for length := uint8(1); length < 10; length++ { // a code of 10 bits behind codes of 1 to 9
		wide.Symbols = append(wide.Symbols, interval.Symbol{Base: 0xc000 + uint64(length), Length: length})
	}
	good := tablesOf(2, 7, []uint64{100}, ringCode(16), ringCode(16))
	if _, err := (factory{}).NewDecoder(dtype.BF16, good); err != nil {
		t.Fatalf("good tables: %v", err)
	}
	for _, c := range []struct {
		name   string
		dt     dtype.Type
		tables []byte
	}{
		{"nothing", dtype.BF16, nil},
		{"shift beyond the key", dtype.F8E4M3, tablesOf(2, 8, []uint64{0}, ringCode(8), ringCode(8))},
		{"keys of too many bits", dtype.BF16, tablesOf(2, 2, []uint64{100}, ringCode(16), ringCode(16))},
		{"context beyond the keys", dtype.BF16, tablesOf(2, 7, []uint64{255}, ringCode(16), ringCode(16))},
		{"contexts of an integer", dtype.I8, tablesOf(2, 0, []uint64{0}, ringCode(8), ringCode(8))},
		{"a code missing", dtype.BF16, tablesOf(2, 7, []uint64{100}, ringCode(16))},
		{"code of another width", dtype.I8, tablesOf(1, 0, nil, ringCode(16))},
		{"words of 25 bits", dtype.BF16, tablesOf(1, 0, nil, wide)},
		{"a byte more", dtype.BF16, append(bytes.Clone(good), 0)},
		{"a bit set behind the end", dtype.BF16, append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]|1)},
	} {
		if _, err := (factory{}).NewDecoder(c.dt, c.tables); !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	many := make([]interval.Code, 64)
	starts := make([]uint64, 63)
	for i := range many {
		many[i] = wide
		many[i].Symbols = []interval.Symbol{{Base: 0, Length: 9}, {Base: 2, Length: 9}}
		for length := uint8(1); length < 9; length++ {
			many[i].Symbols = append(many[i].Symbols, interval.Symbol{Base: 2 + uint64(length), Length: length})
		}
	}
	if _, err := (factory{}).NewDecoder(dtype.BF16, tablesOf(64, 7, starts, many...)); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("2^15 entries: got %v", err)
	}
}

// TestGolden decodes and makes again the block that FORMAT.md's rules give by
// hand for 20 I8 words: lanes 0 and 1, two exceptions.
func TestGolden(t *testing.T) {
	code := bytesCode
	tables := tablesOf(1, 0, nil, code)
	base, want := make([]byte, 20), make([]byte, 20)
	for i := range want {
		base[i], want[i] = byte(3*i), 1
	}
	want[1], want[2], want[15], want[19] = 0xff, 0x15, 100, 0
	// Lane 0: +1 (0), -1 (11), 0x15 (10 and 0101), twelve times +1, a stand-in (0): 0111 0010 1000 0000 0000 00;
	// lane 1 has three +1 and a stand-in: 0000.
	data := []byte{
		0, 0, 0x45, 0, // least 0, width 5, 2 exceptions
		0b10110_001, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // lengths 22 (10110) and 4 (00100)
		0x72, 0x80, 0, 0,
		15, 0, 19, 0,
		45 + 100, 57 + 0, 0, 0,
	}
	res := make([]byte, 20)
	d, err := factory{}.NewDecoder(dtype.I8, tables)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(codec.Block{Type: dtype.I8, Base: base, Residual: res}, data, 20); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(res, want) {
		t.Errorf("decoded %x, expected %x", res, want)
	}
	tab, err := parseTables(dtype.I8, tables)
	if err != nil {
		t.Fatal(err)
	}
	got, deltas, err := encoderOf[uint8, uint8](tab, 4096).Encode(nil, codec.Block{Type: dtype.I8, Base: base, Residual: want})
	if err != nil || deltas != 20 || !bytes.Equal(got, data) {
		t.Errorf("encoded %x with %d deltas, expected %x with 20", got, deltas, data)
	}
}

// TestChunkWords expects shorter chunks where words take much: as many of them as
// of a delta have room in a GPU's shared memory.
func TestChunkWords(t *testing.T) {
	delta := codectest.FineTune(1 << 17)
	plain := codec.Block{Type: delta.Type, Base: make([]byte, len(delta.Base)), Residual: delta.Base}
	for _, c := range []struct {
		name  string
		block codec.Block
		level codec.Level
		want  int
	}{
		{"delta", delta, codec.LevelDefault, 12288},
		{"plain weights", plain, codec.LevelDefault, 8192},
		{"plain weights, fast", plain, codec.LevelFast, 4096},
		{"plain weights, small", plain, codec.LevelSmall, 32768},
	} {
		enc := factory{}.Plan(c.block.Type, []codec.Block{c.block}, 0, c.level)
		if got := enc.ChunkWords(); got != c.want {
			t.Errorf("%s: chunks of %d words, expected %d", c.name, got, c.want)
		}
	}
}

// TestTwoBlocks crosses the border of 2^16 words, with exceptions in both
// blocks and more in the second than a head counts.
func TestTwoBlocks(t *testing.T) {
	const n = blockWords + 4567
	base, res := make([]uint32, n), make([]uint32, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range res {
		base[i] = rng.Uint32()
		res[i] = rng.Uint32N(8)
		if i == 5 || i == blockWords-1 || i >= blockWords+1000 {
			res[i] = rng.Uint32() | 1<<24
		}
	}
	sample := codec.Block{Type: dtype.I32, Base: word.Bytes(base[:1000]), Residual: word.Bytes(res[:1000])}
	enc := factory{}.Plan(dtype.I32, []codec.Block{sample}, 0, codec.LevelDefault)
	b := codec.Block{Type: dtype.I32, Base: word.Bytes(base), Residual: word.Bytes(res)}
	data, deltas, err := enc.Encode(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := factory{}.NewDecoder(dtype.I32, enc.Tables())
	if err != nil {
		t.Fatal(err)
	}
	out := make([]uint32, n)
	if err := dec.Decode(codec.Block{Type: dtype.I32, Base: b.Base, Residual: word.Bytes(out)}, data, deltas); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(word.Bytes(out), b.Residual) {
		t.Error("residuals differ")
	}
}

// TestAssembly compares the assembly with its twin in Go on chunks around its
// steps, with contexts near and far apart, and words that the codes leave out.
func TestAssembly(t *testing.T) {
	for _, block := range []codec.Block{codectest.RL(20000), codectest.FineTune(20000)} {
		for _, words := range []int{1, 15, 16, 17, 255, 256, 257, 511, 512, 4095, 20000} {
			b := codec.Block{Type: block.Type, Base: block.Base[:2*words], Residual: bytes.Clone(block.Residual[:2*words])}
			for _, plan := range []codec.Block{block, b, codectest.RL(5000), {Type: block.Type}} {
				compareTwins(t, planned(plan), b)
			}
		}
	}
	wide := planned(codectest.FineTune(5000))
	wide.contexts.starts = []uint16{1, 200} // too far apart for a table of 64 keys
	wide.codes = wide.codes[:3]
	wide.finish()
	compareTwins(t, wide, codectest.FineTune(1000))
}

func planned(b codec.Block) tables {
	t, _ := planTables[uint16, uint16](b.Type, []codec.Block{b}, codec.LevelDefault)
	return t
}

func compareTwins(t *testing.T, tab tables, b codec.Block) {
	t.Helper()
	fast := encoderOf[uint16, uint16](tab, 4096)
	slow := encoderOf[uint16, uint16](tab, 4096)
	slow.findArgs = nil
	data, deltas, _ := fast.Encode(nil, b)
	want, _, _ := slow.Encode(nil, b)
	if !bytes.Equal(data, want) {
		t.Fatalf("%d words: assembly encodes other bytes", b.Words())
	}
	decoder := newDecoder[uint16, uint16](tab)
	twin := newDecoder[uint16, uint16](tab)
	twin.rowArgs = nil
	for _, damage := range []int{-1, 3, len(data) / 2, len(data) - 5} {
		if damage >= 0 && damage < len(data) {
			data = bytes.Clone(data)
			data[damage] ^= 0x10
		}
		got, expected := make([]byte, len(b.Base)), make([]byte, len(b.Base))
		err, err2 := decoder.Rebuild(got, b.Base, data, deltas), twin.Rebuild(expected, b.Base, data, deltas)
		if (err == nil) != (err2 == nil) || err == nil && !bytes.Equal(got, expected) {
			t.Fatalf("%d words, damage at %d: assembly gives %v, Go %v", b.Words(), damage, err, err2)
		}
	}
}
