package elias

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/bits"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

func TestCodec(t *testing.T)      { codectest.Run(t, factory{}) }
func TestHammer(t *testing.T)     { codectest.Hammer(t, factory{}) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, factory{}) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, factory{}) }

// FuzzTables feeds arbitrary tables to the decoder: they are refused, or they
// come out of marshal again and decode without harm.
func FuzzTables(f *testing.F) {
	f.Add(byte(dtype.BF16), []byte{0, 31 | dense<<5, codeVerbatim}, []byte{0, 0, 0, 0})
	f.Add(byte(dtype.F32), []byte{2, 3, 14, 9, 4, 21 | 1<<5, codeSign}, []byte{1, 2, 3, 4, 5, 6, 7, 8})
	f.Add(byte(dtype.I64), []byte{0, dense << 5, 63}, []byte{0xff, 0xff, 0xff, 0, 9, 9, 9, 9})
	f.Fuzz(func(t *testing.T, typ byte, tables, data []byte) {
		dt := dtype.Type(typ)
		if !dt.Valid() {
			return
		}
		d, err := factory{}.NewDecoder(dt, tables)
		if err != nil {
			if !errors.Is(err, status.ErrCorrupt) {
				t.Fatalf("tables %x: %v", tables, err)
			}
			return
		}
		const n = 1000
		base := word.Bytes(make([]uint64, n))[:n*dt.WordBytes()]
		for i := range base {
			base[i] = byte(i * 7)
		}
		res := word.Bytes(make([]uint64, n))[:len(base)]
		if err := d.Decode(codec.Block{Type: dt, Base: base, Residual: res}, data, 3); err != nil && !errors.Is(err, status.ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

func TestTablesAreRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		tables []byte
	}{
		{"empty", nil},
		{"four classes", []byte{4, 0, 0, 0, 0, 31, 0}},
		{"no parameters", []byte{2, 0}},
		{"gap parameter", []byte{1, 15, 31, 0}},
		{"class of none", []byte{0, 31, 0}},
		{"unknown class", []byte{0, 31 | 4<<5, 0}},
		{"dense sign", []byte{0, 31 | dense<<5, codeSign}},
		{"value code", []byte{0, 31 | dense<<5, 16}},
		{"too few contexts", []byte{0, 30 | dense<<5, 0}},
		{"too many contexts", []byte{0, 31 | dense<<5, 0, dense << 5, 1}},
		{"odd byte", []byte{0, 31 | dense<<5, 0, 0}},
	} {
		if _, err := (factory{}).NewDecoder(dtype.BF16, c.tables); !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: got %v", c.name, err)
		}
	}
	if _, err := (factory{}).NewDecoder(dtype.BF16, []byte{0, 31 | dense<<5, 15}); err != nil {
		t.Errorf("good tables: %v", err)
	}
}

// TestGolden decodes and makes again the block that FORMAT.md's rules give by
// hand for 8 I8 words: one context, gap class with parameter 1, sign values,
// an exception.
func TestGolden(t *testing.T) {
	tables := []byte{1, 1, 0, codeSign}
	// Lane 0 owns all words: gap 2 (0100 with k 1: (2>>1)+1 = 2, low bit 0), +1 (0), gap 1 (11), -1 (1),
	// last gap 3 (0101): 0100 0 11 1 0101, 12 bits; the other lanes have one gap of 0 each (10).
	data := []byte{
		0x02, 0x00, 0x00, 0x84, // least 2, width 4, exceptions
		1, 0, 0, 0, // one exception
		0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // lane 0 has 10 bits more
		0x47, 0x5a, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0x80, 0, 0,
		6, 0, 0, 0, // word 6
		100, 0, 0, 0, // becomes 100
	}
	want := []byte{0, 0, 1, 0, 0xff, 0, 100, 0}
	d, err := factory{}.NewDecoder(dtype.I8, tables)
	if err != nil {
		t.Fatal(err)
	}
	res := make([]byte, 8)
	if err := d.Decode(codec.Block{Type: dtype.I8, Base: make([]byte, 8), Residual: res}, data, 3); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(res, want) {
		t.Errorf("decoded %x, expected %x", res, want)
	}
	tab, err := parseTables(dtype.I8, tables)
	if err != nil {
		t.Fatal(err)
	}
	got, deltas, err := encoderOf[uint8](tab, 2048).Encode(nil, codec.Block{Type: dtype.I8, Base: make([]byte, 8), Residual: want})
	if err != nil || deltas != 3 || !bytes.Equal(got, data) {
		t.Errorf("encoded %x with %d deltas, expected %x with 3", got, deltas, data)
	}
}

// oneWord returns the tables and the block of one unchanged U8 word whose lane
// opens with the given gap of parameter k; that it is 1 is what FORMAT.md wants.
func oneWord(gap uint64, k uint) (tables, data []byte) {
	var table, strings bitio.Writer
	strings.PutGamma(gap, k)
	beyond := strings.Pos() - int(k+1)
	width := uint(bits.Len(uint(beyond)))
	table.Put(uint64(beyond), width)
	for range lanes - 1 {
		table.Put(0, width)
		strings.PutGamma(0, k)
	}
	data = binary.LittleEndian.AppendUint32(nil, uint32(k+1)|uint32(width)<<24)
	data = append(append(data, table.Finish(1)...), strings.Finish(codec.Align)...)
	return []byte{1, byte(k), 0, codeVerbatim}, data
}

// gapsBeyond are gaps that are 1 in their 15 low bits, and others that no lane
// has words for.
var gapsBeyond = []uint64{2, 1 << 14, 1<<15 - 1, 1 << 15, 1<<15 + 1, 1<<16 + 1, 1<<17 + 1, 5<<15 + 1, 1<<20 + 1, 1<<24 + 1}

func TestGapBeyondLaneIsRefused(t *testing.T) {
	for k := range uint(maxGapBits) {
		for i, gap := range append([]uint64{1}, gapsBeyond...) {
			tables, data := oneWord(gap, k)
			d, err := factory{}.NewDecoder(dtype.U8, tables)
			if err != nil {
				t.Fatal(err)
			}
			err = d.Decode(codec.Block{Type: dtype.U8, Base: []byte{7}, Residual: []byte{0}}, data, 0)
			if i == 0 && err != nil || i > 0 && !errors.Is(err, status.ErrCorrupt) {
				t.Errorf("gap %d with parameter %d: got %v", gap, k, err)
			}
		}
	}
}

// TestTwoBlocks crosses the border of 2^19 words.
func TestTwoBlocks(t *testing.T) {
	const n = blockWords + 77
	base := word.Bytes(make([]uint16, n))
	res := make([]uint16, n)
	res[0], res[blockWords-1], res[blockWords], res[n-1] = 1, 2, 3, 4
	b := codec.Block{Type: dtype.BF16, Base: base, Residual: word.Bytes(res)}
	enc := factory{}.Plan(dtype.BF16, []codec.Block{b}, 0, codec.LevelDefault)
	data, deltas, err := enc.Encode(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	dec, err := factory{}.NewDecoder(dtype.BF16, enc.Tables())
	if err != nil {
		t.Fatal(err)
	}
	out := make([]uint16, n)
	if err := dec.Decode(codec.Block{Type: dtype.BF16, Base: base, Residual: word.Bytes(out)}, data, deltas); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(word.Bytes(out), word.Bytes(res)) {
		t.Error("residuals differ")
	}
}
