package codectest

import (
	"errors"
	"flag"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

var hammer = flag.Int("hammer", 50_000, "damaged chunks that Hammer decodes")

// target is a chunk that Hammer damages.
type target struct {
	name   string
	block  codec.Block
	tables []byte
	dec    codec.Decoder
	data   []byte
	deltas uint32
}

// Hammer decodes -hammer damaged chunks: random small damage to small chunks
// of every kind, and now and then to their tables. It looks for what fuzzing
// looks for, without following the decoder's steps, and so does a hundred times
// as many: `go test ./core/codec/prefix -run Hammer -hammer 100000000`.
func Hammer(t *testing.T, c codec.Codec) {
	var targets []target
	for _, typ := range []dtype.Type{dtype.F8E4M3, dtype.BF16, dtype.F32, dtype.F64, dtype.I32} {
		for _, words := range []int{40, 300} {
			for _, s := range samples(typ, words) {
				enc := c.Plan(typ, []codec.Block{s.block}, 0, codec.LevelDefault)
				x := target{name: s.name, block: s.block, tables: enc.Tables()}
				x.data, x.deltas = encode(t, enc, s)
				var err error
				if x.dec, err = c.NewDecoder(typ, x.tables); err != nil {
					t.Fatal(err)
				}
				targets = append(targets, x)
			}
		}
	}
	// Large enough that assembly takes part.
	for _, b := range []codec.Block{RL(1000), FineTune(1000)} {
		enc := c.Plan(b.Type, []codec.Block{b}, 0, codec.LevelDefault)
		x := target{name: "trained", block: b, tables: enc.Tables()}
		x.data, x.deltas, _ = enc.Encode(nil, b)
		x.dec, _ = c.NewDecoder(b.Type, x.tables)
		targets = append(targets, x)
	}
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	room := make([]uint64, 8192)
	taken := 0
	for n := range *hammer {
		x := &targets[n%len(targets)]
		data := append(make([]byte, 0, len(x.data)+2*codec.Align), x.data...)
		dec, deltas := x.dec, x.deltas
		if n%64 == 0 {
			tables := damage(append([]byte(nil), x.tables...), rng)
			var err error
			if dec, err = c.NewDecoder(x.block.Type, tables); err != nil {
				if !errors.Is(err, status.ErrCorrupt) {
					t.Fatalf("%s, tables %x: %v", x.name, tables, err)
				}
				continue
			}
		} else {
			data = damage(data, rng)
		}
		if rng.IntN(16) == 0 {
			deltas += rng.Uint32N(5) - 2
		}
		buf := word.Bytes(room)[:len(x.block.Residual)+2*canaryBytes]
		for i := range canaryBytes {
			buf[i], buf[len(buf)-1-i] = canary, canary
		}
		b := codec.Block{Type: x.block.Type, Base: x.block.Base, Residual: buf[canaryBytes : len(buf)-canaryBytes]}
		err := dec.Decode(b, data, deltas)
		if err == nil {
			taken++
		} else if !errors.Is(err, status.ErrCorrupt) {
			t.Fatalf("%s, data %x: %v", x.name, data, err)
		}
		for i := range canaryBytes {
			if buf[i] != canary || buf[len(buf)-1-i] != canary {
				t.Fatalf("%s, data %x: Decode wrote outside the residual", x.name, data)
			}
		}
	}
	t.Logf("%d damaged chunks; %d were decoded, to something else or the same", *hammer, taken)
}

// damage changes a few bits or bytes, or the length.
func damage(data []byte, rng *rand.Rand) []byte {
	for range 1 + rng.IntN(3) {
		if len(data) == 0 {
			return append(data, byte(rng.Uint32()))
		}
		at := rng.IntN(len(data))
		if rng.IntN(2) == 0 { // heads and tables more often than they are long
			at = rng.IntN(min(len(data), 24))
		}
		switch rng.IntN(8) {
		case 0:
			data[at] = byte(rng.Uint32())
		case 1:
			data[at] = 0xff * byte(rng.IntN(2))
		case 2:
			data = data[:at]
		case 3:
			data = append(data, byte(rng.Uint32()))
		default:
			data[at] ^= 1 << rng.IntN(8)
		}
	}
	return data
}
