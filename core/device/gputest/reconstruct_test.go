//go:build gpu

package gputest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

var codecs = []codec.ID{codec.Elias, codec.Raw, codec.Prefix, codec.Rice}

// samples are all codecs, dtypes of each word size, residuals, and sizes at
// the borders of groups, rows, warps, chunks and blocks.
func samples(t testing.TB) []*sample {
	t.Helper()
	var all []*sample
	add := func(o options) { all = append(all, pack(t, o)) }
	for _, id := range codecs {
		for _, dt := range []dtype.Type{dtype.F8E4M3, dtype.U8, dtype.BF16, dtype.F16, dtype.I16, dtype.F32, dtype.C64, dtype.F64, dtype.I64} {
			for _, words := range []int{0, 2, 16, 31 * 2, 256, 258, 4096, 10_002, 140_000} {
				add(options{id: id, dt: dt, words: words, chunkWords: 4096, base: true, density: 0.1})
			}
			add(options{id: id, dt: dt, words: 9000, chunkWords: 4096, base: false, density: 0.5})
			add(options{id: id, dt: dt, words: 9001 &^ 1, chunkWords: 1001, base: true, density: 1})
			add(options{id: id, dt: dt, words: 9000, chunkWords: 3000, base: true, density: 0})
		}
		small := []dtype.Type{dtype.F8E4M3, dtype.F8E5M2, dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ}
		for _, dt := range append(small, dtype.F16, dtype.BF16, dtype.F32, dtype.F64, dtype.C64) {
			for _, words := range []int{2, 1000, 70_000} {
				add(options{id: id, dt: dt, kind: residual.Add, words: words, chunkWords: 4096, base: true, density: 0.2})
			}
		}
		// Several blocks of elias and prefix in a chunk.
		add(options{id: id, dt: dtype.BF16, words: 1<<21 + 5, chunkWords: 1 << 20, base: true, density: 0.01})
	}
	return all
}

func jobsOf(all []*placed) []engine.Job {
	jobs := make([]engine.Job, len(all))
	for i, p := range all {
		jobs[i] = p.job()
	}
	return jobs
}

func TestReconstruct(t *testing.T) {
	onGPU(t, func() {
		var all []*placed
		for _, s := range samples(t) {
			p := place(t, s)
			all = append(all, p)
			must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
			must(t, driver.Wait(0))
			p.check(t, p.dst)
		}
		t.Logf("%d tensors one by one", len(all))
		for _, p := range all {
			must(t, driver.Upload(p.dst.p, bytes.Repeat([]byte{0x77}, p.dst.n)))
			must(t, driver.Upload(p.status.p, bytes.Repeat([]byte{0xff}, p.status.n)))
		}
		must(t, eng.Reconstruct(jobsOf(all), 0, 0, 0))
		must(t, driver.Wait(0))
		for _, p := range all {
			p.check(t, p.dst)
		}
		must(t, eng.Verify(jobsOf(all), 0))
		must(t, driver.Wait(0))
		for _, p := range all {
			for i, s := range p.statuses(t) {
				if s != 0 {
					t.Fatalf("%s: checksum of chunk %d: status %d", p.name, i, s)
				}
			}
		}
	})
}

func TestInPlace(t *testing.T) {
	onGPU(t, func() {
		for _, s := range samples(t) {
			if s.base == nil {
				continue
			}
			p := place(t, s)
			j := p.job()
			j.Dst = j.Base
			must(t, eng.Reconstruct([]engine.Job{j}, 0, 0, 0))
			must(t, driver.Wait(0))
			p.check(t, p.base)
		}
	})
}

// Base and destination off 16 bytes take other loads and stores.
func TestUnaligned(t *testing.T) {
	onGPU(t, func() {
		for _, id := range codecs {
			for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
				for _, off := range [][2]int{{0, 1}, {1, 0}, {1, 1}} {
					size := dt.WordBytes()
					s := pack(t, options{id: id, dt: dt, words: 10_001, chunkWords: 4096, base: true, density: 0.1})
					p := place(t, s)
					dst := upload(t, make([]byte, len(s.target)+off[0]*size))
					base := upload(t, append(make([]byte, off[1]*size), s.base...))
					j := p.job()
					j.Dst, j.Base = dst.p+uintptr(off[0]*size), base.p+uintptr(off[1]*size)
					must(t, eng.Reconstruct([]engine.Job{j}, 0, 0, 0))
					must(t, driver.Wait(0))
					if got := dst.download(t, s.name); !bytes.Equal(got[off[0]*size:], s.target) || !bytes.Equal(got[:off[0]*size], make([]byte, off[0]*size)) {
						t.Errorf("%s: wrong words, offsets %v", s.name, off)
					}
				}
			}
		}
	})
}

// Several threads, each on its own stream, with tensors in common.
func TestStreamsAndThreads(t *testing.T) {
	all := samples(t)
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			onGPU(t, func() {
				stream, err := driver.NewStream()
				must(t, err)
				defer driver.Destroy(stream)
				for i := worker % 2; i < len(all); i += 2 {
					p := place(t, all[i])
					must(t, driver.Wait(0)) // the stream does not wait for uploads
					must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, uintptr(stream)))
					must(t, driver.Wait(stream))
					p.check(t, p.dst)
				}
			})
		})
	}
	group.Wait()
}

// Damaged blobs: whatever the bytes, every chunk gets a status, only its own
// words are touched, and the checksum finds the damage.
func TestDamagedBlob(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	onGPU(t, func() {
		for _, id := range codecs {
			for _, dt := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
				for _, kind := range []residual.Kind{residual.Bit, residual.Add} {
					if kind == residual.Add && dt == dtype.U8 {
						continue
					}
					s := pack(t, options{id: id, dt: dt, kind: kind, words: 12_000, chunkWords: 3000, base: true, density: 0.1})
					for round := range 40 {
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
						must(t, eng.Reconstruct([]engine.Job{p.job()}, 0, 0, 0))
						must(t, driver.Wait(0))
						got := p.dst.download(t, s.name)
						from := int(rec.OutputWord) * dt.WordBytes()
						to := from + int(rec.UncompressedBytes)
						if !bytes.Equal(got[:from], s.target[:from]) || !bytes.Equal(got[to:], s.target[to:]) {
							t.Fatalf("%s round %d: other chunks were touched", s.name, round)
						}
						st := p.statuses(t)
						if st[0] != 0 || st[2] != 0 || st[3] != 0 || st[1] != 0 && st[1] != uint32(status.Corrupt) {
							t.Fatalf("%s round %d: statuses %v", s.name, round, st)
						}
						must(t, eng.Verify([]engine.Job{p.job()}, 0))
						must(t, driver.Wait(0))
						if got := p.statuses(t); !slices.Equal(got, []uint32{0, uint32(status.Checksum), 0, 0}) {
							t.Fatalf("%s round %d: checksum statuses %v", s.name, round, got)
						}
					}
				}
			}
		}
	})
}

func TestNotDeviceMemory(t *testing.T) {
	onGPU(t, func() {
		p := place(t, pack(t, options{id: codec.Raw, dt: dtype.BF16, words: 100, chunkWords: 100, base: true, density: 0.1}))
		j := p.job()
		j.Dst = 0x1000
		if err := eng.Reconstruct([]engine.Job{j}, 0, 0, 0); !errors.Is(err, status.ErrArgument) {
			t.Errorf("got %v", err)
		}
	})
}

func TestScatterAdd(t *testing.T) {
	onGPU(t, func() {
		for _, dt := range []dtype.Type{dtype.F16, dtype.BF16, dtype.F32, dtype.F64} {
			for _, n := range []int{1, 7, 255, 4096, 8192, 16384, 16385, 100_003} {
				for _, deltas := range []int{0, 1, n / 10, n} {
					scatterOnce(t, dt, n, deltas)
				}
			}
		}
	})
}

func scatterOnce(t *testing.T, dt dtype.Type, n, deltas int) {
	t.Helper()
	size := dt.WordBytes()
	s := pack(t, options{id: codec.Raw, dt: dt, words: n, chunkWords: uint64(min(n, container.MaxChunkBytes/size)), base: true, density: 1})
	r := rand.New(rand.NewPCG(uint64(n), uint64(deltas)))
	numbers := r.Perm(n)[:deltas]
	slices.Sort(numbers)
	indices := make([]int64, deltas)
	var raw []byte
	for i, x := range numbers {
		indices[i] = int64(x)
		raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
	}
	values := s.target[:deltas*size]
	want := bytes.Clone(s.base)
	residual.ScatterAdd(dt, want, indices, values)
	base, dst, bad := upload(t, s.base), upload(t, make([]byte, n*size)), upload(t, make([]byte, 4))
	a := engine.Scatter{Type: dt, Dst: dst.p, Base: base.p, Elements: uint64(n), Indices: upload(t, raw).p, Values: upload(t, values).p, Deltas: uint64(deltas), Bad: bad.p}
	must(t, eng.ScatterAdd(&a, 0))
	must(t, driver.Wait(0))
	if got := dst.download(t, "dst"); !sameSums(dt, got, want) || !bytes.Equal(bad.download(t, "bad"), make([]byte, 4)) {
		t.Fatalf("%v, %d of %d: out of place is wrong", dt, deltas, n)
	}
	for _, a.Naive = range []bool{false, true} {
		live := upload(t, s.base)
		a.Dst, a.Base = live.p, live.p
		must(t, eng.ScatterAdd(&a, 0))
		must(t, driver.Wait(0))
		if got := live.download(t, "live"); !sameSums(dt, got, want) || !bytes.Equal(bad.download(t, "bad"), make([]byte, 4)) {
			t.Fatalf("%v, %d of %d: in place is wrong, naive: %v", dt, deltas, n, a.Naive)
		}
	}
}

// sameSums compares sums bit for bit, except that a NaN may have any payload:
// processors differ there.
func sameSums(dt dtype.Type, got, want []byte) bool {
	w := dt.WordBytes()
	shift, width := dt.Exponent()
	infinity := (uint64(1)<<width - 1) << shift
	magnitude := func(b []byte) uint64 {
		var word [8]byte
		copy(word[:], b[:w])
		return binary.LittleEndian.Uint64(word[:]) &^ (1 << (8*w - 1))
	}
	for i := 0; i < len(want); i += w {
		if !bytes.Equal(got[i:i+w], want[i:i+w]) && (magnitude(got[i:]) <= infinity || magnitude(want[i:]) <= infinity) {
			return false
		}
	}
	return len(got) == len(want)
}

// Indices that are out of range, or not increasing, are told and not followed.
func TestScatterAddRefuses(t *testing.T) {
	onGPU(t, func() {
		const n = 50_000
		base := upload(t, make([]byte, 4*n))
		values := upload(t, bytes.Repeat([]byte{0, 0, 0x80, 0x3f}, 4))
		for _, c := range [][]int64{{1, 2, 3, n}, {-1, 2, 3, 4}, {1, 2, 2, 3}, {40_000, 2, 3, 4}, {1, 2, 3, 1 << 62}, {1, -1 << 63, 3, 4}} {
			for _, inPlace := range []bool{false, true} {
				var raw []byte
				for _, x := range c {
					raw = binary.LittleEndian.AppendUint64(raw, uint64(x))
				}
				dst, bad := upload(t, make([]byte, 4*n)), upload(t, make([]byte, 4))
				a := engine.Scatter{Type: dtype.F32, Dst: dst.p, Base: base.p, Elements: n, Indices: upload(t, raw).p, Values: values.p, Deltas: 4, Bad: bad.p}
				if inPlace {
					a.Base = a.Dst
				}
				must(t, eng.ScatterAdd(&a, 0))
				must(t, driver.Wait(0))
				dst.download(t, "dst") // and its guards
				if got := bad.download(t, "bad"); got[0] != 1 {
					t.Errorf("%v, in place: %v: not told", c, inPlace)
				}
			}
		}
	})
}
