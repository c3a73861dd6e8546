package codectest

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/residual"
)

// Run checks the contract of package codec.
func Run(t *testing.T, c codec.Codec) {
	t.Run("RoundTrip", func(t *testing.T) { testRoundTrip(t, c) })
	t.Run("Levels", func(t *testing.T) { testLevels(t, c) })
	t.Run("ForeignTables", func(t *testing.T) { testForeignTables(t, c) })
	t.Run("Deterministic", func(t *testing.T) { testDeterministic(t, c) })
	t.Run("Concurrent", func(t *testing.T) { testConcurrent(t, c) })
	t.Run("Bounds", func(t *testing.T) { testBounds(t, c) })
	t.Run("Attacks", func(t *testing.T) { testAttacks(t, c) })
}

func testRoundTrip(t *testing.T, c codec.Codec) {
	for _, typ := range types {
		for _, n := range sizes {
			for _, s := range samples(typ, n) {
				enc := c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault)
				checkRoundTrip(t, c, enc, s)
			}
		}
	}
}

func testLevels(t *testing.T, c codec.Codec) {
	trained := []sample{{"RL", RL(20000)}, {"fine-tune", FineTune(20000)}}
	for _, level := range []codec.Level{codec.LevelFast, codec.LevelDefault, codec.LevelSmall} {
		for _, typ := range types {
			for _, s := range samples(typ, 4097) {
				checkRoundTrip(t, c, c.Plan(typ, []codec.Block{s.block}, 0, level), s)
			}
		}
		for _, s := range trained {
			checkRoundTrip(t, c, c.Plan(s.block.Type, []codec.Block{s.block}, 0, level), s)
		}
	}
}

// testForeignTables encodes blocks with tables that were planned from other
// blocks, or from none: samples are a hint, not a promise.
func testForeignTables(t *testing.T, c codec.Codec) {
	for _, typ := range types {
		all := samples(typ, 1000)
		plans := []codec.Encoder{c.Plan(typ, nil, 0, codec.LevelDefault)}
		for _, s := range all {
			plans = append(plans, c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault))
		}
		for _, enc := range plans {
			for _, s := range all {
				checkRoundTrip(t, c, enc, s)
			}
		}
	}
}

// encode encodes behind a prefix, which must survive, and checks what every
// encoder promises.
func encode(t testing.TB, enc codec.Encoder, s sample) (data []byte, deltas uint32) {
	t.Helper()
	prefix := []byte("before")
	base, res := bytes.Clone(s.block.Base), bytes.Clone(s.block.Residual)
	out, deltas, err := enc.Encode(append(make([]byte, 0, 10), prefix...), s.block)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if !bytes.HasPrefix(out, prefix) {
		t.Fatalf("%s: Encode did not append", s.name)
	}
	if !bytes.Equal(base, s.block.Base) || !bytes.Equal(res, s.block.Residual) {
		t.Fatalf("%s: Encode changed its input", s.name)
	}
	data = out[len(prefix):]
	if len(data)%codec.Align != 0 {
		t.Fatalf("%s: chunk of %d bytes, expected a multiple of %d", s.name, len(data), codec.Align)
	}
	changed := residual.CountChanged(s.block.Residual, s.block.Type.WordBytes())
	if int(deltas) < changed || int(deltas) > s.block.Words() {
		t.Fatalf("%s: %d deltas, expected %d to %d", s.name, deltas, changed, s.block.Words())
	}
	return data, deltas
}

func checkRoundTrip(t testing.TB, c codec.Codec, enc codec.Encoder, s sample) {
	t.Helper()
	if enc.ChunkWords() < 1 {
		t.Fatalf("%s: chunks of %d words", s.name, enc.ChunkWords())
	}
	data, deltas := encode(t, enc, s)
	dec, err := c.NewDecoder(s.block.Type, enc.Tables())
	if err != nil {
		t.Fatalf("%s: tables refused: %v", s.name, err)
	}
	got, err := decodeGuarded(t, dec, s.block, data, deltas)
	if err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
	if !bytes.Equal(got, s.block.Residual) {
		t.Fatalf("%s: decoded residual differs", s.name)
	}
	if err := checkRebuild(t, dec, s.block, got, data, deltas); err != nil {
		t.Fatalf("%s: %v", s.name, err)
	}
}

// checkRebuild rebuilds a chunk out of place and in place, if the decoder can,
// and compares with base plus residual, which is what Decode gave.
func checkRebuild(t testing.TB, dec codec.Decoder, b codec.Block, res, data []byte, deltas uint32) error {
	t.Helper()
	r, ok := dec.(codec.Rebuilder)
	if !ok {
		return nil
	}
	want := aligned(len(b.Base))
	residual.Apply(residual.Bit, b.Type, want, b.Base, res)
	for _, inPlace := range []bool{false, true} {
		n := len(b.Base)
		buf := aligned(n + 2*canaryBytes)
		for i := range buf {
			buf[i] = canary
		}
		dst, base := buf[canaryBytes:canaryBytes+n], b.Base
		if inPlace {
			base = dst
			copy(dst, b.Base)
		}
		if err := r.Rebuild(dst, base, data, deltas); err != nil {
			return err
		}
		if !bytes.Equal(dst, want) {
			return fmt.Errorf("rebuilt target differs (in place: %v)", inPlace)
		}
		for i, c := range buf {
			if c != canary && (i < canaryBytes || i >= canaryBytes+n) {
				return fmt.Errorf("the rebuild wrote at byte %d, outside the %d bytes of the target", i-canaryBytes, n)
			}
		}
	}
	return nil
}

func testDeterministic(t *testing.T, c codec.Codec) {
	for _, typ := range types {
		for _, s := range samples(typ, 4096) {
			first := c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault)
			again := c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault)
			if !bytes.Equal(first.Tables(), again.Tables()) || first.ChunkWords() != again.ChunkWords() {
				t.Fatalf("%s: two plans of the same samples differ", s.name)
			}
			want, deltas := encode(t, first, s)
			for _, enc := range []codec.Encoder{first, again} {
				if got, n := encode(t, enc, s); n != deltas || !bytes.Equal(got, want) {
					t.Fatalf("%s: the same block gave other bytes", s.name)
				}
			}
		}
	}
}

func testConcurrent(t *testing.T, c codec.Codec) {
	block := RL(40000)
	enc := c.Plan(block.Type, []codec.Block{block}, 0, codec.LevelDefault)
	dec, err := c.NewDecoder(block.Type, enc.Tables())
	if err != nil {
		t.Fatal(err)
	}
	var chunks []sample
	var want [][]byte
	for i := range 8 {
		part := codec.Block{Type: block.Type, Base: block.Base[:10000*i], Residual: block.Residual[:10000*i]}
		chunks = append(chunks, sample{fmt.Sprintf("chunk of %d words", part.Words()), part})
		data, _ := encode(t, enc, chunks[i])
		want = append(want, data)
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for k := range chunks {
				i := (k + worker) % len(chunks)
				b := chunks[i].block
				data, deltas, err := enc.Encode(nil, b)
				if err != nil || !bytes.Equal(data, want[i]) {
					t.Errorf("%s: other bytes when encoded concurrently (%v)", chunks[i].name, err)
					return
				}
				res := aligned(len(b.Residual))
				err = dec.Decode(codec.Block{Type: b.Type, Base: b.Base, Residual: res}, data, deltas)
				if err != nil || !bytes.Equal(res, b.Residual) {
					t.Errorf("%s: other residual when decoded concurrently (%v)", chunks[i].name, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
