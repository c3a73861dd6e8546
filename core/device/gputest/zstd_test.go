//go:build gpu

package gputest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/zstd"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/device/nvcomp"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

func needNvcomp(t testing.TB) {
	t.Helper()
	lib, err := nvcomp.Open()
	if err != nil {
		t.Skip(err)
	}
	t.Logf("nvCOMP %s", lib.Version())
}

// scratched rebuilds jobs in scratch memory of exactly the size asked for.
type scratched struct {
	jobs    []engine.Job
	scratch *buffer
}

func withScratch(t testing.TB, jobs []engine.Job) *scratched {
	t.Helper()
	n, err := eng.ScratchBytes(jobs)
	must(t, err)
	return &scratched{jobs, upload(t, make([]byte, n))}
}

func (s *scratched) launch(t testing.TB, stream cuda.Stream) {
	t.Helper()
	must(t, eng.Reconstruct(s.jobs, s.scratch.p, uint64(s.scratch.n), uintptr(stream)))
}

// rebuild rebuilds jobs and checks what surrounds scratch memory.
func rebuild(t testing.TB, jobs []engine.Job) {
	t.Helper()
	s := withScratch(t, jobs)
	s.launch(t, 0)
	must(t, driver.Wait(0))
	s.scratch.download(t, "scratch")
}

func zstdSamples(t testing.TB) []*sample {
	t.Helper()
	var all []*sample
	add := func(o options) {
		o.id = codec.Zstd
		all = append(all, pack(t, o))
	}
	for _, level := range []codec.Level{codec.LevelFast, codec.LevelDefault, codec.LevelSmall} {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F16, dtype.F32, dtype.C64, dtype.F64, dtype.I64} {
			for _, words := range []int{2, 16, 256, 258, 4096, 10_002, 140_000} {
				add(options{dt: dt, words: words, chunkWords: 4096, base: true, density: 0.1, level: level})
			}
			add(options{dt: dt, words: 9000, chunkWords: 4096, base: false, density: 0.5, level: level})
			add(options{dt: dt, words: 9000, chunkWords: 1001, base: true, density: 1, level: level})
			add(options{dt: dt, words: 9000, chunkWords: 3000, base: true, density: 0, level: level})
			add(options{dt: dt, words: 300_000, chunkWords: 70_000, base: true, density: 0.05, level: level}) // gaps of 4 bytes
		}
		for _, dt := range []dtype.Type{dtype.F16, dtype.BF16, dtype.F32, dtype.F64, dtype.C64} {
			for _, words := range []int{2, 1000, 70_000} {
				add(options{dt: dt, kind: residual.Add, words: words, chunkWords: 4096, base: true, density: 0.2, level: level})
			}
		}
		// Chunks as the packer makes them, with frames of several blocks.
		for _, density := range []float64{0.003, 0.2, 0.9} {
			add(options{dt: dtype.BF16, words: 3<<20 + 5, base: true, density: density, level: level})
		}
		add(options{dt: dtype.BF16, words: 1 << 20, chunkWords: 1 << 20, base: true, density: 0.9, level: level})
	}
	add(options{dt: dtype.BF16, words: 0, base: true})
	return all
}

func TestZstd(t *testing.T) {
	needNvcomp(t)
	onGPU(t, func() {
		var all []*placed
		for _, s := range zstdSamples(t) {
			p := place(t, s)
			all = append(all, p)
			rebuild(t, []engine.Job{p.job()})
			p.check(t, p.dst)
		}
		t.Logf("%d tensors one by one", len(all))
		for _, id := range codecs {
			for _, words := range []int{1000, 70_000} {
				all = append(all, place(t, pack(t, options{id: id, dt: dtype.BF16, words: words, chunkWords: 4096, base: true, density: 0.1})))
			}
		}
		r := rand.New(rand.NewPCG(1, 2))
		r.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
		for _, verified := range []bool{false, true} {
			jobs := jobsOf(all)
			for i, p := range all {
				must(t, driver.Upload(p.dst.p, bytes.Repeat([]byte{0x77}, p.dst.n)))
				must(t, driver.Upload(p.status.p, bytes.Repeat([]byte{0xff}, p.status.n)))
				jobs[i].Verified = verified
			}
			rebuild(t, jobs)
			for _, p := range all {
				p.check(t, p.dst)
			}
		}
		var inPlace []*placed
		var jobs []engine.Job
		for _, p := range all {
			if p.base != nil {
				j := p.job()
				j.Dst = j.Base
				inPlace, jobs = append(inPlace, p), append(jobs, j)
			}
		}
		rebuild(t, jobs)
		for _, p := range inPlace {
			p.check(t, p.base)
		}
	})
}

func TestZstdUnaligned(t *testing.T) {
	needNvcomp(t)
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
			for _, density := range []float64{0.1, 1} {
				for _, off := range [][2]int{{0, 1}, {1, 0}, {1, 1}} {
					size := dt.WordBytes()
					s := pack(t, options{id: codec.Zstd, dt: dt, words: 10_001, chunkWords: 4096, base: true, density: density})
					p := place(t, s)
					dst := upload(t, make([]byte, len(s.target)+off[0]*size))
					base := upload(t, append(make([]byte, off[1]*size), s.base...))
					j := p.job()
					j.Dst, j.Base = dst.p+uintptr(off[0]*size), base.p+uintptr(off[1]*size)
					rebuild(t, []engine.Job{j})
					if got := dst.download(t, s.name); !bytes.Equal(got[off[0]*size:], s.target) || !bytes.Equal(got[:off[0]*size], make([]byte, off[0]*size)) {
						t.Errorf("%s: wrong words, offsets %v", s.name, off)
					}
				}
			}
		}
	})
}

// Streams at the same time, each with scratch memory of its own, again and
// again in the same.
func TestZstdStreams(t *testing.T) {
	needNvcomp(t)
	onGPU(t, func() {
		all := zstdSamples(t)
		var streams []cuda.Stream
		var calls []*scratched
		var placedOn [][]*placed
		for i := range 4 {
			stream, err := driver.NewStream()
			must(t, err)
			defer driver.Destroy(stream)
			var mine []*placed
			for k := i; k < len(all); k += 4 {
				mine = append(mine, place(t, all[k]))
			}
			streams, placedOn = append(streams, stream), append(placedOn, mine)
			calls = append(calls, withScratch(t, jobsOf(mine)))
		}
		must(t, driver.Wait(0))
		for range 3 {
			for i, c := range calls {
				c.launch(t, streams[i])
			}
		}
		for i, c := range calls {
			must(t, driver.Wait(streams[i]))
			c.scratch.download(t, "scratch")
			for _, p := range placedOn[i] {
				p.check(t, p.dst)
			}
		}
	})
}

// More than goes through nvCOMP at once.
func TestZstdWaves(t *testing.T) {
	needNvcomp(t)
	onGPU(t, func() {
		s := pack(t, options{id: codec.Zstd, dt: dtype.BF16, words: 12<<20 + 7, base: true, density: 1, level: codec.LevelFast})
		var all []*placed
		for range 28 { // 24 MiB of planes each
			all = append(all, place(t, s))
		}
		rebuild(t, jobsOf(all))
		for _, p := range all {
			p.check(t, p.dst)
		}
	})
}

func TestZstdQuantised(t *testing.T) {
	needNvcomp(t)
	onGPU(t, func() {
		s := quant.Scheme{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16}
		for _, dt := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
			for _, density := range []float64{0.02, 1} {
				q := placeQuantised(t, s, options{id: codec.Zstd, dt: dt, words: 20_003, chunkWords: 8192, base: true, density: density})
				rebuild(t, []engine.Job{q.job()})
				q.check(t, q.dst)
			}
		}
	})
}

// Damaged blobs never get to nvCOMP: their checksum is wrong.
func TestZstdDamaged(t *testing.T) {
	needNvcomp(t)
	r := rand.New(rand.NewPCG(3, 4))
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
			for _, kind := range []residual.Kind{residual.Bit, residual.Add} {
				if kind == residual.Add && dt == dtype.U8 {
					continue
				}
				s := pack(t, options{id: codec.Zstd, dt: dt, kind: kind, words: 12_000, chunkWords: 3000, base: true, density: 0.1})
				for round := range 20 {
					blob := bytes.Clone(s.blob)
					rec := s.prepared.Index().Records[1]
					part := blob[rec.DataOffset:][:rec.CompressedBytes]
					if round%2 == 0 {
						part[r.IntN(len(part))] ^= 1 << r.IntN(8)
					} else {
						for i := range part {
							part[i] = byte(r.Uint32())
						}
					}
					p := placeBlob(t, s, blob)
					rebuild(t, []engine.Job{p.job()})
					checkOthers(t, p, 1)
					if got := p.statuses(t); got[1] != uint32(status.Checksum) {
						t.Fatalf("%s round %d: status %d", s.name, round, got[1])
					}
				}
			}
		}
	})
}

// checkOthers checks that all chunks but one are right.
func checkOthers(t testing.TB, p *placed, chunk int) {
	t.Helper()
	rec := p.prepared.Index().Records[chunk]
	got := p.dst.download(t, p.name)
	from := int(rec.OutputWord) * p.prepared.Index().Type.WordBytes()
	to := from + int(rec.UncompressedBytes)
	if !bytes.Equal(got[:from], p.target[:from]) || !bytes.Equal(got[to:], p.target[to:]) {
		t.Fatalf("%s: other chunks were touched", p.name)
	}
	st := p.statuses(t)
	st[chunk] = 0
	if !slices.Equal(st, make([]uint32, len(st))) {
		t.Fatalf("%s: statuses of other chunks %v", p.name, st)
	}
}

// TestZstdMalformed damages all but the blocks of frames, whose behaviour
// nvCOMP leaves undefined, under checksums that are right: a GPU refuses what
// the CPU does, and decodes the rest to the same words.
func TestZstdMalformed(t *testing.T) {
	needNvcomp(t)
	r := rand.New(rand.NewPCG(5, 6))
	refused, taken := 0, 0
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
			for _, chunkWords := range []int{24, 3000} { // stored planes; frames
				for _, density := range []float64{0.2, 1} {
					s := pack(t, options{id: codec.Zstd, dt: dt, words: 4 * chunkWords, chunkWords: uint64(chunkWords), base: true, density: density})
					for round := range 40 {
						p, err := malform(t, s, 1, r)
						rebuild(t, []engine.Job{p.job()})
						checkOthers(t, p, 1)
						st := p.statuses(t)[1]
						if err != nil {
							refused++
							if st != uint32(status.Corrupt) {
								t.Fatalf("%s round %d: status %d, the CPU says %v", s.name, round, st, err)
							}
							continue
						}
						taken++
						p.check(t, p.dst)
					}
				}
			}
		}
	})
	if refused < 200 || taken < 20 {
		t.Errorf("%d refused, %d taken", refused, taken)
	}
}

// malform damages the directory of a chunk, its stored planes, padding or
// frame headers, and returns it on the GPU, with the words or the error that
// the CPU gets.
func malform(t testing.TB, s *sample, chunk int, r *rand.Rand) (*placed, error) {
	t.Helper()
	x, err := container.Parse(bytes.Clone(s.index))
	must(t, err)
	rec := &x.Records[chunk]
	blob := bytes.Clone(s.blob)
	part := blob[rec.DataOffset:][:rec.CompressedBytes]
	size := x.Type.WordBytes()
	planes := zstd.Planes(int(rec.UncompressedBytes)/size, int(rec.Deltas), size)
	if planes == 0 {
		t.Fatalf("%s: chunk %d has no planes", s.name, chunk)
	}
	var free []int // what may be damaged
	at := (4*planes + 7) &^ 7
	for i := range at {
		free = append(free, i, i)
	}
	for k := range planes {
		entry := uint32(part[4*k]) | uint32(part[4*k+1])<<8 | uint32(part[4*k+2])<<16 | uint32(part[4*k+3])<<24
		n := int(entry & (1<<30 - 1))
		switch entry >> 30 {
		case 2:
			continue
		case 1: // the header, of 6 bytes at least
			for i := range 6 {
				free = append(free, at+i)
			}
		default:
			for i := range n {
				free = append(free, at+i)
			}
		}
		for i := n; i < (n+7)&^7; i++ {
			free = append(free, at+i)
		}
		at += (n + 7) &^ 7
	}
	if at != len(part) {
		t.Fatalf("%s: streams of %d bytes in a chunk of %d", s.name, at, len(part))
	}
	part[free[r.IntN(len(free))]] ^= 1 << r.IntN(8)
	rec.Checksum = rec.Sum(part)
	bad := &sample{name: fmt.Sprint("malformed ", s.name), base: s.base, target: bytes.Clone(s.target), index: x.Append(nil), blob: blob}
	bad.prepared, err = engine.Prepare(bad.index)
	must(t, err)
	words, err := bad.onCPU(t)
	if err == nil {
		bad.target = words
	}
	return place(t, bad), err
}

// BenchmarkZstd is BenchmarkReconstruct for zstd, of verified blobs and with
// the verification.
func BenchmarkZstd(b *testing.B) {
	needNvcomp(b)
	for _, density := range []float64{0.005, 0.1, 1} {
		for _, verified := range []bool{true, false} {
			b.Run(fmt.Sprintf("%v/verified=%v", density, verified), func(b *testing.B) {
				onGPU(b, func() {
					p := place(b, pack(b, options{id: codec.Zstd, dt: dtype.BF16, words: 64 << 20, base: true, density: density}))
					j := p.job()
					j.Verified = verified
					s := withScratch(b, []engine.Job{j})
					s.launch(b, 0)
					must(b, driver.Wait(0))
					p.check(b, p.dst)
					b.SetBytes(int64(len(p.target)))
					b.ResetTimer()
					for range b.N {
						s.launch(b, 0)
					}
					must(b, driver.Wait(0))
					b.ReportMetric(float64(len(p.target))/float64(p.blob.n+len(p.index)), "ratio")
					b.ReportMetric(float64(s.scratch.n)/(1<<20), "scratch-MiB")
				})
			})
		}
	}
}
