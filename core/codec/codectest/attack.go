package codectest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"runtime"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

const (
	canary      = 0xC5
	canaryBytes = 64
	// allocLimit is what decoding one small chunk may allocate: the state of a
	// general-purpose decompressor, but nothing that hostile data asks for.
	allocLimit = 32 << 20
)

// decodeGuarded decodes data into a residual that starts out as garbage,
// between canaries and with spare capacity behind it. The data, too, has
// foreign bytes behind it, and is aligned to codec.Align and no better.
func decodeGuarded(t testing.TB, dec codec.Decoder, b codec.Block, data []byte, deltas uint32) ([]byte, error) {
	t.Helper()
	n := len(b.Residual)
	buf := aligned(n + 2*canaryBytes)
	for i := range buf {
		buf[i] = canary
	}
	src := bytes.Repeat([]byte{canary}, canaryBytes+len(data))
	room := aligned(codec.Align + len(src))[codec.Align:]
	copy(room, src)
	copy(room, data)
	before := bytes.Clone(room)

	res := buf[canaryBytes : canaryBytes+n]
	err := dec.Decode(codec.Block{Type: b.Type, Base: b.Base, Residual: res}, room[:len(data)], deltas)
	if !bytes.Equal(before, room) {
		t.Fatal("Decode changed the data")
	}
	for i, c := range buf {
		if c != canary && (i < canaryBytes || i >= canaryBytes+n) {
			t.Fatalf("Decode wrote at byte %d, outside the %d bytes of the residual", i-canaryBytes, n)
		}
	}
	if err != nil && !errors.Is(err, status.ErrCorrupt) {
		t.Fatalf("Decode returned %v, expected one that is status.ErrCorrupt", err)
	}
	return res, err
}

// testBounds shows that chunks stay within what the index allows.
func testBounds(t *testing.T, c codec.Codec) {
	for _, typ := range types {
		for _, n := range sizes {
			for _, s := range samples(typ, n) {
				data, _ := encode(t, c.Plan(typ, nil, 0, codec.LevelDefault), s)
				if limit := container.MaxChunkBlobBytes(typ, uint64(n)); uint64(len(data)) > limit {
					t.Errorf("%s: %d bytes, the index allows %d", s.name, len(data), limit)
				}
			}
		}
	}
}

// testAttacks cuts a chunk at every byte, flips its every bit, lies about the
// number of deltas and mistreats the tables. Decoders may notice or not (the
// container's checksum does), but must stay within bounds.
func testAttacks(t *testing.T, c codec.Codec) {
	for _, typ := range []dtype.Type{dtype.F8E4M3, dtype.BF16, dtype.F32, dtype.F64} {
		for _, words := range []int{1, 100, 300} {
			for _, s := range samples(typ, words) {
				attack(t, c, s)
			}
		}
	}
}

func attack(t *testing.T, c codec.Codec, s sample) {
	enc := c.Plan(s.block.Type, []codec.Block{s.block}, 0, codec.LevelDefault)
	data, deltas := encode(t, enc, s)
	if len(data) > 1024 {
		return // nothing that a smaller chunk does not show
	}
	dec, err := c.NewDecoder(s.block.Type, enc.Tables())
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("while attacking %s", s.name)
		}
	})
	var start, end runtime.MemStats
	runtime.ReadMemStats(&start)
	tries := 0
	try := func(data []byte, deltas uint32) error {
		tries++
		res, err := decodeGuarded(t, dec, s.block, data, deltas)
		if err != nil {
			return err
		}
		if err := checkRebuild(t, dec, s.block, res, data, deltas); err != nil {
			t.Fatalf("%s: Decode took a chunk, but: %v", s.name, err)
		}
		return nil
	}
	for n := range data {
		if try(data[:n], deltas) == nil {
			t.Fatalf("%s: a chunk of %d bytes cut to %d was decoded", s.name, len(data), n)
		}
	}
	if try(append(bytes.Clone(data), make([]byte, codec.Align)...), deltas) == nil {
		t.Fatalf("%s: zeros after the chunk were not noticed", s.name)
	}
	for bit := range 8 * len(data) {
		flipped := bytes.Clone(data)
		flipped[bit/8] ^= 1 << (bit % 8)
		_ = try(flipped, deltas)
	}
	words := uint32(s.block.Words())
	for _, lie := range []uint32{0, 1, deltas - 1, deltas + 1, words - 1, words, words + 1, math.MaxUint32} {
		if err := try(data, lie); err == nil && lie > words {
			t.Fatalf("%s: %d deltas in %d words were accepted", s.name, lie, words)
		}
	}
	runtime.ReadMemStats(&end)
	// Each try may need a fresh decompressor where the race detector empties
	// the pools; the chunk itself is tiny.
	if total := end.TotalAlloc - start.TotalAlloc; total > uint64(tries)*allocLimit/16+allocLimit {
		t.Fatalf("%s: %d hostile chunks made the decoder allocate %d bytes", s.name, tries, total)
	}
	attackTables(t, c, s, enc.Tables(), data, deltas)
}

func attackTables(t *testing.T, c codec.Codec, s sample, tables, data []byte, deltas uint32) {
	try := func(tables []byte) {
		dec, err := c.NewDecoder(s.block.Type, tables)
		if err == nil {
			_, _ = decodeGuarded(t, dec, s.block, data, deltas)
		} else if !errors.Is(err, status.ErrCorrupt) {
			t.Fatalf("%s: NewDecoder returned %v, expected one that is status.ErrCorrupt", s.name, err)
		}
	}
	for n := range tables {
		try(tables[:n])
	}
	try(append(bytes.Clone(tables), 0))
	// Of large tables, some bits of every kind.
	for bit := 0; bit < 8*len(tables); bit += 1 + len(tables)/256 {
		flipped := bytes.Clone(tables)
		flipped[bit/8] ^= 1 << (bit % 8)
		try(flipped)
	}
}

// Fuzz feeds arbitrary tables and data to the decoder. The seeds are valid
// chunks of all word sizes.
func Fuzz(f *testing.F, c codec.Codec) {
	for _, typ := range types {
		for _, words := range []int{1, 33, 257} {
			for _, s := range samples(typ, words) {
				enc := c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault)
				data, deltas := encode(f, enc, s)
				f.Add(uint8(typ), uint16(words), deltas, enc.Tables(), data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, typ uint8, words uint16, deltas uint32, tables, data []byte) {
		b := codec.Block{Type: dtype.Type(typ)}
		if !b.Type.Valid() || len(tables) > container.MaxTableBytes {
			return
		}
		size := int(words) * b.Type.WordBytes()
		b.Base, b.Residual = aligned(size), aligned(size)
		for i := range b.Base {
			b.Base[i] = byte(i * 7)
		}
		dec, err := c.NewDecoder(b.Type, tables)
		if err != nil {
			if !errors.Is(err, status.ErrCorrupt) {
				t.Fatalf("NewDecoder returned %v, expected one that is status.ErrCorrupt", err)
			}
			return
		}
		first, err := decodeGuarded(t, dec, b, data, deltas)
		if err != nil {
			return
		}
		if err := checkRebuild(t, dec, b, first, data, deltas); err != nil {
			t.Fatalf("Decode took a chunk, but: %v", err)
		}
		// What decodes can be encoded again, and means the same then.
		again := sample{fmt.Sprintf("%v/%d", b.Type, words), codec.Block{Type: b.Type, Base: b.Base, Residual: first}}
		checkRoundTrip(t, c, c.Plan(b.Type, nil, 0, codec.LevelDefault), again)
	})
}
