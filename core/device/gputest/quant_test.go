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
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/tensor"
)

// quantised is a packed tensor whose base is quantised.
type quantised struct {
	*placed
	descriptor *buffer
}

// placeQuantised quantises the base of a sample and packs the target against
// what the codes stand for.
func placeQuantised(t testing.TB, s quant.Scheme, o options) *quantised {
	t.Helper()
	plain := pack(t, o)
	return quantise(t, s, o, plain.base, func(base []byte) []byte {
		target := bytes.Clone(base)
		for i := range target { // the changes of the sample, made to the new base
			target[i] += plain.target[i] - plain.base[i]
		}
		return target
	})
}

// quantise makes a base of weights, and packs what targetOf makes of its values
// against it.
func quantise(t testing.TB, s quant.Scheme, o options, weights []byte, targetOf func(base []byte) []byte) *quantised {
	t.Helper()
	n := uint64(o.words)
	d := &quant.Data{Packed: make([]byte, s.PackedBytes(n)), Scale: make([]byte, s.ScaleBytes(n)), Zero: make([]byte, s.ZeroBytes(n))}
	if s.Kind == quant.Linear {
		must(t, quant.Quantize(context.Background(), d, &s, weights, o.dt, 0))
	} else { // codes and scales as they may come from elsewhere
		r := rand.New(rand.NewPCG(n, 7))
		for i := range d.Packed {
			d.Packed[i] = byte(r.Uint32())
		}
		for i := range d.Scale {
			d.Scale[i] = [4]byte{byte(r.Uint32()), byte(r.Uint32()), 0x80, 0x3c}[i%4]
		}
	}
	base := make([]byte, len(weights))
	must(t, quant.Dequantize(context.Background(), base, o.dt, &s, d, 0))
	target := targetOf(base)
	packed := &sample{name: fmt.Sprintf("%+v on %+v", o, s), base: base, target: target}
	packed.encode(t, o.dt, tensor.Options{Codec: o.id, ChunkWords: o.chunkWords})

	p := place(t, packed)
	p.base = nil // the GPU gets the codes alone
	at := quant.Pointers{Packed: uint64(upload(t, d.Packed).p), Scale: uint64(upload(t, d.Scale).p)}
	if len(d.Zero) > 0 {
		at.Zero = uint64(upload(t, d.Zero).p)
	}
	descriptor, err := s.Descriptor(at, n)
	must(t, err)
	return &quantised{p, upload(t, descriptor[:])}
}

func (q *quantised) job() engine.Job {
	j := q.placed.job()
	j.Base, j.Quantised = q.descriptor.p, true
	return j
}

func TestQuantisedBases(t *testing.T) {
	onGPU(t, func() {
		for _, s := range codectest.Schemes {
			for _, dt := range []dtype.Type{dtype.BF16, dtype.F16, dtype.F32} {
				var all []*quantised
				var jobs []engine.Job
				for _, id := range codecs {
					for _, words := range []int{1, 9, 4096, 20_003} {
						for _, density := range []float64{0.02, 1} {
							q := placeQuantised(t, s, options{id: id, dt: dt, words: words, chunkWords: uint64(min(words, 8192)), base: true, density: density})
							all, jobs = append(all, q), append(jobs, q.job())
						}
					}
				}
				must(t, eng.Reconstruct(jobs, 0, 0, 0))
				must(t, driver.Wait(0))
				for _, q := range all {
					q.check(t, q.dst)
				}
			}
		}
	})
}

// BenchmarkQuantised rebuilds 128 MiB of BF16 from int4 codes and a raw
// residual of 2%.
func BenchmarkQuantised(b *testing.B) {
	onGPU(b, func() {
		s := quant.Scheme{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16}
		q := placeQuantised(b, s, options{id: codec.Raw, dt: dtype.BF16, words: 64 << 20, chunkWords: 1 << 16, base: true, density: 0.02})
		jobs := []engine.Job{q.job()}
		must(b, eng.Reconstruct(jobs, 0, 0, 0))
		must(b, driver.Wait(0))
		q.check(b, q.dst)
		measure(b, jobs, len(q.target), len(q.sample.blob))
	})
}
