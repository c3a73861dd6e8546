//go:build gpu

package gputest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// TestVerify flips a bit in every third chunk, of sizes around those at which
// the folding of kernels/crc32c.cuh takes another way.
func TestVerify(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	onGPU(t, func() {
		// Two words of BF16 are one of the message, which begins with the 8 of
		// the record; a block has 1,024.
		for _, chunkWords := range []int{4, 60, 1000, 2012, 2016, 2020, 2028, 2032, 2036, 4064, 4080, 4084, 6128, 60_000} {
			s := pack(t, options{id: codec.Raw, dt: dtype.BF16, words: 10*chunkWords + 3, chunkWords: uint64(chunkWords), density: 1})
			blob := bytes.Clone(s.blob)
			damaged := map[int]bool{}
			for i, rec := range s.prepared.Index().Records {
				if i%3 == 1 && rec.CompressedBytes > 0 {
					part := blob[rec.DataOffset:][:rec.CompressedBytes]
					part[r.IntN(len(part))] ^= 1 << r.IntN(8)
					damaged[i] = true
				}
			}
			p := placeBlob(t, s, blob)
			must(t, eng.Verify([]engine.Job{p.job()}, 0))
			must(t, driver.Wait(0))
			for i, got := range p.statuses(t) {
				want := uint32(0)
				if damaged[i] {
					want = uint32(status.Of(status.ErrChecksum))
				}
				if got != want {
					t.Errorf("chunks of %d words: chunk %d has status %d, expected %d", chunkWords, i, got, want)
				}
			}
			if len(damaged) == 0 {
				t.Errorf("chunks of %d words: none was damaged", chunkWords)
			}
		}
	})
}
