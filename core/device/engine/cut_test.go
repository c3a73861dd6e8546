package engine

import (
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// hopper is what an H100 or an H200 has.
var hopper = limits{132, cuda.SharedMemory{Processor: 228 << 10, Block: 227 << 10, Reserved: 1 << 10}}

// largest is what tables of prefix take at most: 64 contexts of 256 entries, and 4096 keys.
const largest = 4*64*257 + 2*4096

func TestCut(t *testing.T) {
	k := newKernelID(prefixDecode, 1)
	for _, c := range []struct {
		what          string
		chunks        uint64
		tables, stage int
		want          cut
	}{
		{"512 MiB of bf16, chunks of 12288 words", 21845, 30 << 10, 11300, cut{544, 0, false, 30<<10 + 17*11300, 132, 132}},
		{"512 MiB of bf16, chunks of 4096 words", 65536, 26 << 10, 4900, cut{640, 0, false, 26<<10 + 20*4900, 132, 132}},
		{"one of 4096x4096", 1365, 30 << 10, 11300, cut{352, 0, false, 30<<10 + 11*11300, 132, 132}},
		{"a norm", 1, 26 << 10, 8400, cut{128, 0, false, 26<<10 + 4*8400, 132, 3 * 132}},
		{"the largest tables", 5000, largest, 8400, cut{576, 0, false, largest + 18*8400, 132, 132}},
		{"chunks too large to be staged", 5000, 26 << 10, 0, cut{640, 0, false, 26 << 10, 132, 132}},
		{"chunks that are too large beside the tables", 5000, 200 << 10, 20 << 10, cut{640, 0, false, 200 << 10, 132, 132}},
	} {
		got, err := hopper.cutOf(k, c.chunks, c.tables, c.stage)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, expected %+v", c.what, got, err, c.want)
		}
	}
	small := limits{40, cuda.SharedMemory{Processor: 64 << 10, Block: 64 << 10}}
	if _, err := small.cutOf(k, 100, largest, 8400); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("tables that do not fit: %v", err)
	}
	if got, err := hopper.cutOf(newKernelID(eliasDecode, 1), 100, 0, 0); err != nil || got.sharedBytes != 0 || got.share != 4 {
		t.Errorf("elias: %+v, %v", got, err)
	}
}

// Raw chunks are cut to tiles, as many in each chunk; those of quantised bases are
// larger.
func TestCutInChunks(t *testing.T) {
	plain, quantised := newKernelID(rawDecode, 1), newKernelID(rawDecode, 9)
	for _, c := range []struct {
		k                 kernelID
		words, chunkWords uint64
		want              uint64
	}{
		{plain, 1 << 24, 1 << 16, 256 * 8}, {plain, 1<<24 + 1, 1 << 16, 257 * 8}, {quantised, 1 << 24, 1 << 16, 256 * 4},
		{plain, 8192, 8192, 1}, {plain, 8193, 8193, 2}, {plain, 1, 1 << 20, 1}, {quantised, 40_000, 20_000, 2 * 2},
	} {
		p := &Prepared{index: &container.Index{Type: dtype.BF16, Words: c.words, ChunkWords: c.chunkWords}}
		p.index.Records = make([]container.Record, container.ChunkCount(c.words, c.chunkWords))
		x, err := hopper.cutOf(c.k, uint64(p.chunks()), 0, 0)
		if got := x.units(p); err != nil || got != c.want || x.grid(uint32(got)) != uint32(got) {
			t.Errorf("%s: %d words in chunks of %d: %d thread blocks, expected %d", c.k.module(), c.words, c.chunkWords, got, c.want)
		}
	}
}

// A cut is within what a GPU has, whatever the tensors are.
func TestCutFits(t *testing.T) {
	k := newKernelID(prefixDecode, 1)
	for _, l := range []limits{hopper, {108, cuda.SharedMemory{Processor: 164 << 10, Block: 163 << 10, Reserved: 1 << 10}}, {170, cuda.SharedMemory{Processor: 100 << 10, Block: 99 << 10, Reserved: 1 << 10}}} {
		for tables := 16; tables <= largest; tables += 3000 {
			for stage := 16; stage <= mostStage; stage += 400 {
				for _, chunks := range []uint64{1, 100, 1365, 100_000, 1 << 31} {
					c, err := l.cutOf(k, chunks, tables, stage)
					if err != nil || c.threads < 32 || c.threads > k.launch().threads || c.threads%32 != 0 || c.share != 0 || c.most < c.least || int(c.sharedBytes) > l.shared.Block-spareBytes || int(c.sharedBytes) < tables {
						t.Fatalf("%+v, %d chunks, tables of %d, stage of %d: %+v, %v", l, chunks, tables, stage, c, err)
					}
				}
			}
		}
	}
}

// No more thread blocks than units or than run at once, and one for each
// multiprocessor if there are so many units.
func TestCutGrid(t *testing.T) {
	c := cut{threads: 768, least: 132, most: 264}
	for units, want := range map[uint32]uint32{1: 1, 100: 100, 132: 132, 1000: 132, 24 * 200: 200, 24*200 + 1: 201, 1 << 30: 264} {
		if got := c.grid(units); got != want {
			t.Errorf("%d units: %d thread blocks, expected %d", units, got, want)
		}
	}
}

// The launch of a call takes the most that any of its tensors needs.
func TestCutJobs(t *testing.T) {
	for _, types := range [][2]dtype.Type{{dtype.BF16, dtype.F16}, {dtype.F32, dtype.F32}} {
		t.Run(types[0].String(), func(t *testing.T) { testCutJobs(t, types[0], types[1]) })
	}
	// Of words of 16 bits nothing lies in a queue, least of all without a base.
	index, _ := pack(t, codec.Prefix, dtype.BF16, residual.Bit, 5500, false)
	if p, err := Prepare(index); err != nil || p.sharedQueue != 0 {
		t.Errorf("no base: %+v, %v", p, err)
	}
	if p := prepare(t, codec.Prefix, dtype.BF16, residual.Bit, 5500); p.sharedQueue != 0 {
		t.Errorf("BF16: %+v", p)
	}
	// Nor on a quantised base.
	a := prepare(t, codec.Prefix, dtype.F32, residual.Bit, 5500)
	q := job(a, 1<<30)
	q.Quantised = true
	l := hopper
	c, err := l.cutJobs([]Job{q}, q.kernel(), (*Job).kernel)
	if err != nil || a.sharedQueue == 0 || int(c.sharedBytes) != a.sharedTables+int(c.threads/32)*a.sharedChunk {
		t.Errorf("quantised: cut %+v, %v", c, err)
	}
}

func testCutJobs(t *testing.T, first, second dtype.Type) {
	a := prepare(t, codec.Prefix, first, residual.Bit, 5500)
	b := prepare(t, codec.Prefix, second, residual.Bit, 2500)
	if a.kernel != b.kernel || a.sharedTables == 0 || a.sharedChunk == 0 {
		t.Fatalf("prepared: %+v, %+v", a, b)
	}
	l := hopper
	err := group(&l, []Job{job(a, 1<<30), job(b, 2<<30)}, decodeKernel, func(k kernelID, x *batch, blocks uint32, c cut) error {
		units := a.chunks() + b.chunks() + 2*tableUnits
		if x.units != units || blocks != c.grid(units) || x.item[1].firstBlock != a.chunks()+tableUnits {
			t.Errorf("%d blocks, %d units, item 1 from %d, cut %+v", blocks, x.units, x.item[1].firstBlock, c)
		}
		if int(c.sharedBytes) != max(a.sharedTables, b.sharedTables)+int(c.threads/32)*(max(a.sharedChunk, b.sharedChunk)+a.sharedQueue) {
			t.Errorf("cut %+v, tables %d and %d, chunks %d and %d", c, a.sharedTables, b.sharedTables, a.sharedChunk, b.sharedChunk)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
