//go:build gpu

package gputest

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

var damaged = flag.Int("damaged", 4000, "damaged chunks that TestDamagedChunks gives to each codec")

// TestDamagedChunks damages every chunk of large tensors under checksums that
// are right, and rebuilds them at once: what the CPU decodes, a GPU does, to the
// same words, and the guards around all buffers stay as they were. A GPU may
// decode what the CPU refuses, but not with prefix, padding aside.
func TestDamagedChunks(t *testing.T) {
	types := []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64, dtype.I32}
	shapes := []struct {
		chunkWords uint64
		density    float64
	}{{40, 0.3}, {300, 0.02}, {300, 1}, {2000, 0.1}}
	for _, id := range []codec.ID{codec.Prefix, codec.Rice} {
		refused, taken, other := 0, 0, 0
		r := rand.New(rand.NewPCG(uint64(id), 11))
		onGPU(t, func() {
			for _, dt := range types {
				for _, shape := range shapes {
					chunks := *damaged/(len(types)*len(shapes)) + 1
					s := pack(t, options{id: id, dt: dt, words: chunks * int(shape.chunkWords), chunkWords: shape.chunkWords, base: true, density: shape.density})
					a, b, c := damageAll(t, r, s)
					refused, taken, other = refused+a, taken+b, other+c
				}
			}
		})
		t.Logf("%v: %d refused by both, %d taken by both, %d by the GPU alone", id, refused, taken, other)
		if refused < *damaged/10 {
			t.Errorf("%v: only %d of %d are refused", id, refused, *damaged)
		}
	}
}

// damageAll does that to one tensor, and counts the chunks that both refuse,
// both take, and the GPU alone takes.
func damageAll(t *testing.T, r *rand.Rand, s *sample) (refused, taken, other int) {
	x, err := container.Parse(bytes.Clone(s.index))
	must(t, err)
	blob := bytes.Clone(s.blob)
	for i := range x.Records {
		rec := &x.Records[i]
		part := blob[rec.DataOffset:][:rec.CompressedBytes]
		switch r.IntN(10) {
		case 0: // noise
			for k := range part {
				part[k] = byte(r.Uint32())
			}
		case 1: // a word
			k := r.IntN(len(part)/4) * 4
			for range 4 {
				part[k] = byte(r.Uint32())
				k++
			}
		default:
			part[r.IntN(len(part))] ^= 1 << r.IntN(8)
		}
		rec.Checksum = rec.Sum(part)
	}
	bad := &sample{name: "damaged " + s.name, base: s.base, target: s.target, index: x.Append(nil), blob: blob}
	bad.prepared, err = engine.Prepare(bad.index)
	must(t, err)
	p := place(t, bad)
	must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
	must(t, driver.Wait(0))
	statuses, got := p.statuses(t), p.dst.download(t, bad.name)

	c, err := codec.Get(x.Codec)
	must(t, err)
	dec, err := c.NewDecoder(x.Type, x.Tables)
	must(t, err)
	size := x.Type.WordBytes()
	for i := range x.Records {
		rec := &x.Records[i]
		from, to := int(rec.OutputWord)*size, int(rec.OutputWord)*size+int(rec.UncompressedBytes)
		want := make([]byte, to-from)
		err := dec.(codec.Rebuilder).Rebuild(want, s.base[from:to], blob[rec.DataOffset:][:rec.CompressedBytes], rec.Deltas)
		switch st := statuses[i]; {
		case err == nil && (st != 0 || !bytes.Equal(got[from:to], want)):
			t.Fatalf("%s: chunk %d has status %d or other words than the CPU's", bad.name, i, st)
		case err == nil:
			taken++
		case st == uint32(status.Corrupt):
			refused++
		case st == 0 && (x.Codec == codec.Rice || strings.Contains(err.Error(), "not padded")):
			other++
		default:
			t.Fatalf("%s: chunk %d has status %d, the CPU says %v", bad.name, i, st, err)
		}
	}
	for _, b := range []*buffer{p.base, p.blob, p.image} {
		b.download(t, bad.name)
	}
	return refused, taken, other
}
