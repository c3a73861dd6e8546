//go:build gpu

package gputest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// tuned packs fine-tuned weights: of BF16, or of F32 with the same high halves
// and low halves that are noise.
func tuned(t testing.TB, id codec.ID, dt dtype.Type, words int, base bool, chunkWords uint64) *sample {
	t.Helper()
	from := codectest.FineTune(words)
	target := bytes.Clone(from.Base)
	residual.Apply(residual.Bit, from.Type, target, from.Base, from.Residual)
	widen := func(b []byte, seed uint64) []byte {
		if dt != dtype.F32 {
			return b
		}
		r := rand.New(rand.NewPCG(seed, 2))
		out := make([]byte, 0, 2*len(b))
		for i := 0; i < len(b); i += 2 {
			out = append(binary.LittleEndian.AppendUint16(out, uint16(r.Uint32())), b[i:i+2]...)
		}
		return out
	}
	s := &sample{name: fmt.Sprintf("%d fine-tuned words of %v, base %v", words, dt, base), target: widen(target, 1)}
	if base {
		s.base = widen(from.Base, 3)
	}
	s.encode(t, dt, tensor.Options{Codec: id, ChunkWords: chunkWords})
	return s
}

// TestPrefixChunks: chunks that are staged and those that are too large for it,
// at every number of warps that a thread block has, in one launch and in many.
func TestPrefixChunks(t *testing.T) {
	onGPU(t, func() {
		var all []*placed
		for _, dt := range []dtype.Type{dtype.BF16, dtype.F32} {
			for _, chunkWords := range []uint64{1, 31, 256, 1000, 4096, 12288, 40_000, 65_536, 65_537, 200_000} {
				for _, base := range []bool{true, false} {
					words := 300_001
					if chunkWords < 256 {
						words = 3000
					}
					p := place(t, tuned(t, codec.Prefix, dt, words, base, chunkWords))
					must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
					must(t, driver.Wait(0))
					p.check(t, p.dst)
					must(t, driver.Upload(p.dst.p, bytes.Repeat([]byte{0x77}, p.dst.n)))
					all = append(all, p)
				}
			}
		}
		must(t, eng.Reconstruct(jobsOf(all), 0, 0, 0))
		must(t, driver.Wait(0))
		for _, p := range all {
			p.check(t, p.dst)
		}
	})
}

// TestPrefixMalformed damages chunks under checksums that are right: a GPU
// decodes what the CPU does to the same words, and refuses what the CPU does,
// padding aside.
func TestPrefixMalformed(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	const chunk, rounds = 1, 150
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64, dtype.I32} {
			for _, words := range []uint64{40, 3000} {
				s := pack(t, options{id: codec.Prefix, dt: dt, words: 4 * int(words), chunkWords: words, base: true, density: 1})
				refused := 0
				for round := range rounds {
					x, err := container.Parse(bytes.Clone(s.index))
					must(t, err)
					rec := &x.Records[chunk]
					blob := bytes.Clone(s.blob)
					part := blob[rec.DataOffset:][:rec.CompressedBytes]
					if round%10 == 0 {
						for i := range part {
							part[i] = byte(r.Uint32())
						}
					} else {
						part[r.IntN(len(part))] ^= 1 << r.IntN(8)
					}
					rec.Checksum = rec.Sum(part)
					bad := &sample{name: fmt.Sprint("malformed ", s.name), base: s.base, target: bytes.Clone(s.target), index: x.Append(nil), blob: blob}
					bad.prepared, err = engine.Prepare(bad.index)
					must(t, err)
					whole, err := bad.onCPU(t)
					p := place(t, bad)
					must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
					must(t, driver.Wait(0))
					checkOthers(t, p, chunk)
					st := p.statuses(t)[chunk]
					switch {
					case err == nil:
						bad.target = whole
						p.check(t, p.dst)
					case st == uint32(status.Corrupt):
						refused++
					case st != 0 || !strings.Contains(err.Error(), "not padded"):
						t.Fatalf("%s round %d: status %d, the CPU says %v", s.name, round, st, err)
					}
				}
				t.Logf("%s: %d of %d refused", s.name, refused, rounds)
			}
		}
	})
}

// BenchmarkPrefix rebuilds 512 MiB, as a batch of tensors of 4096x4096 words,
// or one of those alone.
func BenchmarkPrefix(b *testing.B) {
	const side = 4096 * 4096
	for _, c := range []struct {
		name       string
		dt         dtype.Type
		base       bool
		chunkWords uint64 // 0: what the codec likes
	}{
		{"fine-tune", dtype.BF16, true, 0},
		{"fine-tune/chunks=4096", dtype.BF16, true, 4096},
		{"fine-tune/chunks=8192", dtype.BF16, true, 8192},
		{"no-base", dtype.BF16, false, 0},
		{"fp32", dtype.F32, true, 0},
	} {
		s := tuned(b, codec.Prefix, c.dt, side, c.base, c.chunkWords)
		for _, n := range []int{512 << 20 / len(s.target), 1} {
			b.Run(fmt.Sprintf("%s/tensors=%d", c.name, n), func(b *testing.B) {
				onGPU(b, func() { benchmarkPlaced(b, placeMany(b, s, n)) })
			})
			if c.base {
				b.Run(fmt.Sprintf("%s/tensors=%d/in-place", c.name, n), func(b *testing.B) {
					onGPU(b, func() { benchmarkInPlace(b, s, n) })
				})
			}
		}
	}
	for _, n := range []int{16, 1} {
		b.Run(fmt.Sprintf("int4-base/tensors=%d", n), func(b *testing.B) {
			onGPU(b, func() {
				scheme := quant.Scheme{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16}
				weights := codectest.FineTune(side).Base
				var jobs []engine.Job
				size, stored := 0, 0
				for range n {
					q := quantise(b, scheme, options{id: codec.Prefix, dt: dtype.BF16, words: side, base: true}, weights, func([]byte) []byte { return weights })
					must(b, eng.Reconstruct([]engine.Job{q.job()}, 0, 0, 0))
					must(b, driver.Wait(0))
					q.check(b, q.dst)
					jobs = append(jobs, q.job())
					size, stored = size+len(q.target), stored+len(q.sample.blob)
				}
				measure(b, jobs, size, stored)
			})
		})
	}
}

func placeMany(b *testing.B, s *sample, n int) (all []*placed) {
	for range n {
		all = append(all, place(b, s))
	}
	return all
}

func benchmarkPlaced(b *testing.B, all []*placed) {
	jobs := jobsOf(all)
	must(b, eng.Reconstruct(jobs, 0, 0, 0))
	must(b, driver.Wait(0))
	size, stored := 0, 0
	for _, p := range all {
		p.check(b, p.dst)
		size, stored = size+len(p.target), stored+len(p.sample.blob)
	}
	measure(b, jobs, size, stored)
}

// measure times calls that follow each other without waiting.
func measure(b *testing.B, jobs []engine.Job, size, stored int) {
	b.SetBytes(int64(size))
	b.ReportMetric(float64(size)/float64(stored), "ratio")
	b.ResetTimer()
	for range b.N {
		must(b, eng.Reconstruct(jobs, 0, 0, 0))
	}
	must(b, driver.Wait(0))
	b.StopTimer()
}

// benchmarkInPlace takes tensors there and back again, so that every launch
// finds the bases that it needs.
func benchmarkInPlace(b *testing.B, s *sample, n int) {
	back := packWords(b, "back of "+s.name, s.prepared.Index().Codec, s.prepared.Index().Type, s.target, s.base, s.prepared.Index().ChunkWords)
	all := placeMany(b, s, n)
	there := jobsOf(all)
	returns := make([]engine.Job, n)
	size := 0
	for i, p := range all {
		r := place(b, back)
		there[i].Dst, returns[i] = there[i].Base, r.job()
		returns[i].Base, returns[i].Dst = p.base.p, p.base.p
		size += len(p.target)
	}
	launch := func(i int) {
		if i%2 == 0 {
			must(b, eng.Reconstruct(there, 0, 0, 0))
		} else {
			must(b, eng.Reconstruct(returns, 0, 0, 0))
		}
	}
	b.SetBytes(int64(size))
	b.ResetTimer()
	for i := range b.N {
		launch(i)
	}
	must(b, driver.Wait(0))
	b.StopTimer()
	if b.N%2 == 0 {
		launch(0)
		must(b, driver.Wait(0))
	}
	for _, p := range all {
		p.check(b, p.base)
	}
}
