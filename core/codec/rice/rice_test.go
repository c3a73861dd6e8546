package rice

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

func TestCodec(t *testing.T)      { codectest.Run(t, factory{}) }
func TestHammer(t *testing.T)     { codectest.Hammer(t, factory{}) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, factory{}) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, factory{}) }

// TestGolden decodes and makes again the chunk that FORMAT.md's rules give by
// hand for 8 I8 words: one context in a unit class, an exception.
func TestGolden(t *testing.T) {
	// shift 7 (000111), one gap class (001), k 1 (00001), unit (0), order 0 (00000), mean 2 (1000010), not dense (0),
	// no codes (1), one context (000000) of class 0 (000).
	tables := []byte{0b00011100, 0b10000100, 0b00001000, 0b01001000, 0}
	data := []byte{
		// 2 events (1), exceptions (1), one of them (1); distances 2 and 1: low bits 0 and 1; signs 0 and 1;
		// quotients 1 (01) and 0 (1)
		0b11101010, 0b11000000, 0, 0,
		6, 0, 0, 0, // word 6
		100, 0, 0, 0, // becomes 100
	}
	want := []byte{0, 0, 1, 0, 0xff, 0, 100, 0}
	tab, err := parseTables(dtype.I8, tables)
	if err != nil {
		t.Fatal(err)
	}
	res := make([]byte, 8)
	if err := newDecoder[uint8](tab).Decode(codec.Block{Type: dtype.I8, Base: make([]byte, 8), Residual: res}, data, 3); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(res, want) {
		t.Errorf("decoded %x, expected %x", res, want)
	}
	got, deltas, err := newEncoder[uint8](tab, 1024).Encode(nil, codec.Block{Type: dtype.I8, Base: make([]byte, 8), Residual: want})
	if err != nil || deltas != 3 || !bytes.Equal(got, data) {
		t.Errorf("encoded %x with %d deltas, expected %x with 3", got, deltas, data)
	}
	if again := tab.marshal(); !bytes.Equal(again, tables) {
		t.Errorf("tables come out as %x", again)
	}
}

// TestRecorded pins the bytes of whole tensors, of the planner's choices too.
func TestRecorded(t *testing.T) {
	for _, c := range []struct {
		name  string
		block codec.Block
		want  uint32
	}{
		{"bf16 steps", steps(100000), 0xda805494},
		{"sparse fp32", sparse(100000), 0xd7bc7ccd},
	} {
		enc := factory{}.Plan(c.block.Type, []codec.Block{c.block}, 0, codec.LevelDefault)
		data, _, err := enc.Encode(enc.Tables(), c.block)
		if err != nil {
			t.Fatal(err)
		}
		if sum := crc32.ChecksumIEEE(data); sum != c.want {
			t.Errorf("%s: %d bytes with checksum %#x, expected %#x", c.name, len(data), sum, c.want)
		}
	}
}

// steps returns bf16 weights that moved by steps of a fixed size: half as many
// of each exponent change as of the one below, and by half as many units. It is
// made of integers, to be the same everywhere.
func steps(n int) codec.Block {
	rng := rand.New(rand.NewPCG(3, 3))
	base, res := make([]uint16, n), make([]uint16, n)
	for i := range base {
		exponent := 122 - min(bits.LeadingZeros32(rng.Uint32()), 16)
		base[i] = uint16(exponent)<<7 | uint16(rng.IntN(1<<7)) | uint16(rng.IntN(2))<<15
		unit := exponent - 104 // of a word with this exponent, as a power of two
		res[i] = uint16((rng.IntN(1<<11) + rng.IntN(1<<unit)) >> unit * (1 - 2*rng.IntN(2)))
	}
	return codec.Block{Type: dtype.BF16, Base: word.Bytes(base), Residual: word.Bytes(res)}
}

// sparse returns fp32 weights of which a tenth changed, by many units.
func sparse(n int) codec.Block {
	rng := rand.New(rand.NewPCG(1, 1))
	base, res := make([]uint32, n), make([]uint32, n)
	for i := range base {
		base[i] = uint32(rng.IntN(8)+118)<<23 | rng.Uint32()&(1<<23-1)
		if rng.IntN(10) == 0 {
			res[i] = uint32(rng.IntN(1<<16) - 1<<15)
		}
	}
	return codec.Block{Type: dtype.F32, Base: word.Bytes(base), Residual: word.Bytes(res)}
}

// TestLongChunk has more words than 2-byte positions can tell apart, and
// exceptions in a unit class, in a coded class, and in the dense class.
func TestLongChunk(t *testing.T) {
	const n = shortWords + 1000
	base, res := make([]uint16, n), make([]uint16, n)
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range base {
		base[i] = uint16(90+rng.IntN(40))<<7 | uint16(rng.IntN(2))<<15
		if rng.IntN(30) == 0 {
			res[i] = uint16(rng.IntN(5) - 2)
		}
	}
	res[0], res[1], res[n-1], res[n-300] = 1000, 2000, 3000, 1
	tab := everyFeature()
	b := codec.Block{Type: dtype.BF16, Base: word.Bytes(base), Residual: word.Bytes(res)}
	data, deltas, err := newEncoder[uint16](tab, n).Encode(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]uint16, n)
	b.Residual = word.Bytes(out)
	dec := newDecoder[uint16](tab)
	if err := dec.Decode(b, data, deltas); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(word.Bytes(out), word.Bytes(res)) {
		t.Error("residuals differ")
	}
	if err := dec.Decode(b, data, deltas-1); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("one delta less: %v", err)
	}
}

// TestOneEncoding changes a chunk so that it says the same in another way.
func TestOneEncoding(t *testing.T) {
	tab, err := parseTables(dtype.I8, []byte{0b00011100, 0b10000100, 0b00001000, 0b01001000, 0})
	if err != nil {
		t.Fatal(err)
	}
	d := newDecoder[uint8](tab)
	for name, data := range map[string][]byte{
		"exception of one unit":      {0b11101010, 0b11000000, 0, 0, 6, 0, 0, 0, 1, 0, 0, 0},
		"exception of nothing":       {0b11101010, 0b11000000, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0},
		"exception at an event":      {0b11101010, 0b11000000, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0},
		"exception outside":          {0b11101010, 0b11000000, 0, 0, 8, 0, 0, 0, 9, 0, 0, 0},
		"position padding":           {0b11101010, 0b11000000, 0, 0, 6, 0, 1, 0, 9, 0, 0, 0},
		"word padding":               {0b11101010, 0b11000000, 0, 0, 6, 0, 0, 0, 9, 0, 0, 1},
		"bit padding":                {0b11101010, 0b11000000, 0, 1, 6, 0, 0, 0, 9, 0, 0, 0},
		"more padding":               {0b11101010, 0b11000000, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0},
		"an event beyond the chunk":  {0b11101010, 0b00000001, 0b10000000, 0, 6, 0, 0, 0, 9, 0, 0, 0},
		"quotients that do not end":  {0b11101010, 0b10000000, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0},
		"more events than words":     {0b00001001, 0, 0, 0},
		"not a multiple of 4 bytes":  {0b11101010, 0b11000000, 0, 0, 6, 0, 0, 0, 9, 0, 0, 0, 0},
		"exceptions without a place": {0b11101010, 0b11000000, 0, 0},
	} {
		res := make([]byte, 8)
		err := d.Decode(codec.Block{Type: dtype.I8, Base: make([]byte, 8), Residual: res}, data, 3)
		if !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: got %v, %x", name, err, res)
		}
	}
}
