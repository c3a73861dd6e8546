package container_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/container"
)

// TestKernel compares the checksums of kernels/crc32c.cuh with those of this
// package, for data of every length up to a little more than two blocks of
// rows, and of some that take many.
func TestKernel(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	lengths := []int{4095, 4096, 4097, 5111, 5112, 5113, 16_384, 30_000}
	for n := range 2200 {
		lengths = append(lengths, n)
	}
	var requests []byte
	var want []uint32
	for _, n := range lengths {
		data := make([]byte, 4*n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		rec := container.Record{
			DataOffset: r.Uint64(), CompressedBytes: uint32(len(data)), UncompressedBytes: r.Uint32(),
			Deltas: r.Uint32(), Checksum: r.Uint32(), OutputWord: r.Uint64(),
		}
		requests = append(rec.AppendFlat(requests), data...)
		want = append(want, rec.Sum(data))
	}
	got := codectest.RunKernel(t, requests)
	if len(got) != 4*len(want) {
		t.Fatalf("%d bytes, expected %d", len(got), 4*len(want))
	}
	for i, w := range want {
		if sum := binary.LittleEndian.Uint32(got[4*i:]); sum != w {
			t.Fatalf("%d words: %08x, expected %08x", lengths[i], sum, w)
		}
	}
}
