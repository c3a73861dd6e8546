//go:build gpu

package gputest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// packWords packs words as they are.
func packWords(t testing.TB, name string, id codec.ID, dt dtype.Type, base, target []byte, chunkWords uint64) *sample {
	t.Helper()
	s := &sample{name: name, base: base, target: target}
	var out bytes.Buffer
	var err error
	d := tensor.Desc{Type: dt, Shape: []uint64{uint64(8 * len(target) / dt.Bits())}}
	s.index, err = tensor.Encode(context.Background(), &out, d, base, target, tensor.Options{Codec: id, ChunkWords: chunkWords})
	must(t, err)
	s.blob = out.Bytes()
	s.prepared, err = engine.Prepare(s.index)
	must(t, err)
	return s
}

// riceSteps is a tensor before and after some RL steps; more than 16 Mi words
// repeat.
func riceSteps(words, steps int) (base, target []byte) {
	const most = 16 << 20
	b := codectest.RLSteps(min(words, most), steps)
	target = bytes.Clone(b.Base)
	residual.Apply(residual.Bit, b.Type, target, b.Base, b.Residual)
	n := (words + most - 1) / most
	return bytes.Repeat(b.Base, n)[:2*words], bytes.Repeat(target, n)[:2*words]
}

// TestRiceChunks decodes chunks that fit into shared memory and chunks that do
// not, with few events and many, to both sides.
func TestRiceChunks(t *testing.T) {
	onGPU(t, func() {
		for _, steps := range []int{1, 8, 100, 10_000} {
			for _, chunkWords := range []uint64{0, 1000, 8192, 65_536, 65_537, 200_000, 1 << 18, 1 << 20} {
				base, target := riceSteps(1<<20+12_345, steps)
				s := packWords(t, fmt.Sprintf("%d steps in chunks of %d", steps, chunkWords), codec.Rice, dtype.BF16, base, target, chunkWords)
				p := place(t, s)
				must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
				must(t, driver.Wait(0))
				p.check(t, p.dst)
				j := p.job()
				j.Dst = j.Base
				must(t, eng.Reconstruct([]engine.Job{j}, 0, 0, 0))
				must(t, driver.Wait(0))
				p.check(t, p.base)
			}
		}
		// Distances beyond 16 bits, and a value at the far end.
		r := rand.New(rand.NewPCG(7, 8))
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
			size := dt.WordBytes()
			base := make([]byte, 250_000*size)
			for i := range base {
				base[i] = byte(r.Uint32())
			}
			target := bytes.Clone(base)
			for range 9 {
				target[r.IntN(len(target))]++
			}
			target[len(target)-1] ^= 0x55
			p := place(t, packWords(t, fmt.Sprintf("ten changes of %v", dt), codec.Rice, dt, base, target, 1<<18))
			must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
			must(t, driver.Wait(0))
			p.check(t, p.dst)
		}
	})
}

// TestRiceMalformed damages chunks under checksums that are right: what the CPU
// decodes, a GPU does, to the same words.
func TestRiceMalformed(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	refused, taken, other := 0, 0, 0
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
			for _, density := range []float64{0.02, 0.5, 1} {
				s := pack(t, options{id: codec.Rice, dt: dt, words: 12_000, chunkWords: 3000, base: true, density: density})
				for range 100 {
					x, err := container.Parse(bytes.Clone(s.index))
					must(t, err)
					rec := &x.Records[1]
					blob := bytes.Clone(s.blob)
					part := blob[rec.DataOffset:][:rec.CompressedBytes]
					part[r.IntN(len(part))] ^= 1 << r.IntN(8)
					rec.Checksum = rec.Sum(part)
					bad := &sample{name: "malformed " + s.name, base: s.base, target: make([]byte, len(s.target)), index: x.Append(nil), blob: blob}
					bad.prepared, err = engine.Prepare(bad.index)
					must(t, err)
					reader, err := tensor.Open(bad.index, blob)
					must(t, err)
					err = reader.Reconstruct(context.Background(), bad.target, s.base, tensor.ReconstructOptions{SkipTargetDigest: true})
					p := place(t, bad)
					must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
					must(t, driver.Wait(0))
					st := p.statuses(t)[1]
					switch {
					case err == nil:
						taken++
						p.check(t, p.dst)
					case st == uint32(status.Corrupt):
						refused++
					default: // what no encoder writes, but can be decoded
						other++
					}
					bad.target = s.target
					checkOthers(t, p, 1)
				}
			}
		}
	})
	t.Logf("%d refused by both, %d taken by both, %d by the GPU alone", refused, taken, other)
	if refused < 300 {
		t.Errorf("%d refused", refused)
	}
}

// BenchmarkRice is what the codec is for: a checkpoint one and eight RL steps
// later.
func BenchmarkRice(b *testing.B) { benchmarkSteps(b, codec.Rice) }

// benchmarkSteps rebuilds half a gigabyte, and a single matrix, of a checkpoint some
// RL steps later, in the chunks that the codec makes. In place, a tensor goes there
// and back again, so that every launch finds the base that it needs.
func benchmarkSteps(b *testing.B, id codec.ID) {
	for _, steps := range []int{1, 8} {
		for _, words := range []int{256 << 20, 4096 * 4096} {
			for _, inPlace := range []bool{false, true} {
				name := fmt.Sprintf("steps=%d/MiB=%d/in_place=%v", steps, words>>19, inPlace)
				b.Run(name, func(b *testing.B) {
					onGPU(b, func() { benchmarkOne(b, id, words, steps, inPlace) })
				})
			}
		}
	}
}

func benchmarkOne(b *testing.B, id codec.ID, words, steps int, inPlace bool) {
	base, target := riceSteps(words, steps)
	there := place(b, packWords(b, "there", id, dtype.BF16, base, target, 0))
	jobs := []engine.Job{there.job(), there.job()}
	check := func() {
		if !inPlace {
			there.check(b, there.dst)
		} else if got := there.base.download(b, "base"); !bytes.Equal(got, base) {
			b.Fatal("the base did not come back")
		}
		for i, s := range there.statuses(b) {
			if s != 0 {
				b.Fatalf("chunk %d has status %d", i, s)
			}
		}
	}
	if inPlace {
		back := packWords(b, "back", id, dtype.BF16, target, base, 0)
		jobs[0].Dst = jobs[0].Base
		jobs[1] = engine.Job{
			P: back.prepared, Base: there.base.p, Dst: there.base.p, Blob: upload(b, back.blob).p, Image: upload(b, back.prepared.Image()).p,
			Status: upload(b, make([]byte, 4*len(back.prepared.Index().Records))).p,
		}
	}
	launch := func(i int) { must(b, eng.Reconstruct(jobs[i%2:i%2+1], 0, 0, 0)) }
	launch(0)
	launch(1)
	must(b, driver.Wait(0))
	check()
	b.SetBytes(int64(len(target)))
	b.ResetTimer()
	for i := range b.N {
		launch(i)
	}
	must(b, driver.Wait(0))
	b.StopTimer()
	if b.N%2 == 1 {
		launch(1)
		must(b, driver.Wait(0))
	}
	check()
	b.ReportMetric(float64(len(target))/float64(len(there.sample.blob)+len(there.index)), "ratio")
	b.ReportMetric(float64(words)/float64(len(there.prepared.Index().Records)), "words/chunk")
}
