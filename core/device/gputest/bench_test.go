//go:build gpu

package gputest

import (
	"fmt"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
)

// BenchmarkReconstruct reports bytes of output per second. Launches follow each
// other without waiting, so that what they cost the host does not show.
func BenchmarkReconstruct(b *testing.B) {
	for _, id := range codecs {
		for _, density := range []float64{0.005, 0.1} {
			b.Run(fmt.Sprintf("%v/%v", id, density), func(b *testing.B) {
				onGPU(b, func() {
					p := place(b, pack(b, options{id: id, dt: dtype.BF16, words: 64 << 20, base: true, density: density}))
					benchmarkPlaced(b, []*placed{p})
				})
			})
		}
	}
}

// BenchmarkRaw does so for sparse chunks, out of place and in place.
func BenchmarkRaw(b *testing.B) { benchmarkSteps(b, codec.Raw) }

// BenchmarkRawDense does so for a fine-tune, whose every word has a residual: 512
// MiB, and a single matrix.
func BenchmarkRawDense(b *testing.B) {
	for _, words := range []int{256 << 20, 4096 * 4096} {
		b.Run(fmt.Sprintf("MiB=%d", words>>19), func(b *testing.B) {
			onGPU(b, func() {
				p := place(b, pack(b, options{id: codec.Raw, dt: dtype.BF16, words: words, base: true, density: 1}))
				benchmarkPlaced(b, []*placed{p})
			})
		})
	}
}

// BenchmarkVerify reports bytes of blobs per second, in chunks as the codecs
// make them, from hundreds of bytes to tens of thousands.
func BenchmarkVerify(b *testing.B) {
	for _, density := range []float64{0.005, 0.1, 1} {
		for _, id := range []codec.ID{codec.Elias, codec.Raw} {
			b.Run(fmt.Sprintf("%v/%v", id, density), func(b *testing.B) {
				onGPU(b, func() {
					p := place(b, pack(b, options{id: id, dt: dtype.BF16, words: 64 << 20, base: true, density: density}))
					jobs := []engine.Job{p.job()}
					must(b, eng.Verify(jobs, 0))
					must(b, driver.Wait(0))
					for i, s := range p.statuses(b) {
						if s != 0 {
							b.Fatalf("chunk %d has status %d", i, s)
						}
					}
					b.SetBytes(int64(len(p.sample.blob)))
					b.ResetTimer()
					for range b.N {
						must(b, eng.Verify(jobs, 0))
					}
					must(b, driver.Wait(0))
				})
			})
		}
	}
}

// BenchmarkLaunch is what a call costs the host: one tiny tensor, a list of
// 200.
func BenchmarkLaunch(b *testing.B) {
	for _, n := range []int{1, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			onGPU(b, func() {
				p := place(b, pack(b, options{id: codec.Elias, dt: dtype.BF16, words: 1000, base: true, density: 0.1}))
				var jobs []engine.Job
				for range n {
					jobs = append(jobs, p.job())
				}
				must(b, eng.Reconstruct(jobs, 0, 0, 0))
				must(b, driver.Wait(0))
				b.ResetTimer()
				for range b.N {
					must(b, eng.Reconstruct(jobs, 0, 0, 0))
				}
				must(b, driver.Wait(0))
			})
		})
	}
}
