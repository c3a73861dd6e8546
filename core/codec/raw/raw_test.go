package raw

import (
	"bytes"
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

func TestCodec(t *testing.T)      { codectest.Run(t, Codec) }
func TestHammer(t *testing.T)     { codectest.Hammer(t, Codec) }
func FuzzDecode(f *testing.F)     { codectest.Fuzz(f, Codec) }
func BenchmarkCodec(b *testing.B) { codectest.Benchmark(b, Codec) }

// block makes a BF16 block without a base.
func block(residual ...uint16) codec.Block {
	return codec.Block{Type: dtype.BF16, Base: make([]byte, 2*len(residual)), Residual: word.Bytes(residual)}
}

// TestGolden holds the examples of FORMAT.md.
func TestGolden(t *testing.T) {
	sparse := make([]uint16, 13)
	sparse[3], sparse[12] = 2, 0xFFFF
	for _, c := range []struct {
		block  codec.Block
		deltas uint32
		data   []byte
	}{
		{block(0, 5, 0, 0xFFFF), 4, []byte{0, 0, 5, 0, 0, 0, 0xFF, 0xFF}},
		{block(sparse...), 2, []byte{3, 0, 0, 0, 12, 0, 0, 0, 2, 0, 0xFF, 0xFF, 0, 0, 0, 0}},
		{block(0, 0, 0), 0, nil},
		{block(7), 1, []byte{7, 0, 0, 0, 0, 0, 0, 0}},
	} {
		data, deltas, err := encoder{}.Encode(nil, c.block)
		if err != nil || deltas != c.deltas || !bytes.Equal(data, c.data) {
			t.Errorf("%x: %x with %d deltas (%v), expected %x with %d", c.block.Residual, data, deltas, err, c.data, c.deltas)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		what   string
		words  int
		deltas uint32
		data   []byte
	}{
		{"more deltas than words", 1, 2, make([]byte, 16)},
		{"bytes without deltas", 4, 0, make([]byte, 8)},
		{"too short", 13, 2, make([]byte, 8)},
		{"too long", 13, 1, make([]byte, 24)},
		{"word numbers equal", 13, 2, []byte{3, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0}},
		{"word numbers falling", 13, 2, []byte{3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0}},
		{"word number beyond the chunk", 13, 2, []byte{3, 0, 0, 0, 13, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0}},
		{"zero residual", 13, 2, []byte{3, 0, 0, 0, 4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}},
		{"padding after word numbers", 13, 1, []byte{3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}},
		{"padding after residuals", 13, 1, []byte{3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 9}},
		{"padding of dense words", 1, 1, []byte{3, 0, 1, 0, 0, 0, 0, 0}},
	} {
		err := decoder{}.Decode(block(make([]uint16, c.words)...), c.data, c.deltas)
		if !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: %v, expected status.ErrCorrupt", c.what, err)
		}
	}
	if _, err := Codec.NewDecoder(dtype.BF16, []byte{0}); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("tables: %v, expected status.ErrCorrupt", err)
	}
}
