package engine

import (
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// hopper is what an H100 or an H200 has.
var hopper = limits{132, cuda.SharedMemory{Processor: 228 << 10, Block: 227 << 10, Reserved: 1 << 10}}

func TestCut(t *testing.T) {
	k := newKernelID(prefixDecode, 1)
	for _, c := range []struct {
		what          string
		chunks        uint64
		tables, stage int
		want          cut
	}{
		{"512 MiB of bf16, chunks of 12288 words", 21845, 22 << 10, 8400, cut{352, 11, 22<<10 + 11*8400}},
		{"512 MiB of bf16, chunks of 4096 words", 65536, 22 << 10, 2900, cut{384, 24, 22<<10 + 12*2900}},
		{"one of 4096x4096", 1365, 22 << 10, 8400, cut{352, 11, 22<<10 + 11*8400}},
		{"a norm", 1, 22 << 10, 8400, cut{128, 4, 22<<10 + 4*8400}},
		{"the largest tables", 5000, 72 << 10, 8400, cut{384, 12, 72<<10 + 12*8400}},
		{"chunks too large to be staged", 5000, 22 << 10, 0, cut{384, 12, 22 << 10}},
		{"chunks that are too large beside the tables", 5000, 200 << 10, 20 << 10, cut{384, 12, 200 << 10}},
	} {
		got, err := hopper.cutOf(k, c.chunks, c.tables, c.stage)
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, expected %+v", c.what, got, err, c.want)
		}
	}
	small := limits{40, cuda.SharedMemory{Processor: 64 << 10, Block: 64 << 10}}
	if _, err := small.cutOf(k, 100, 72<<10, 8400); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("tables that do not fit: %v", err)
	}
	if got, err := hopper.cutOf(newKernelID(eliasDecode, 1), 100, 0, 0); err != nil || got.sharedBytes != 0 || got.share != 4 {
		t.Errorf("elias: %+v, %v", got, err)
	}
}

// A cut is within what a GPU has, whatever the tensors are.
func TestCutFits(t *testing.T) {
	k := newKernelID(prefixDecode, 1)
	for _, l := range []limits{hopper, {108, cuda.SharedMemory{Processor: 164 << 10, Block: 163 << 10, Reserved: 1 << 10}}, {170, cuda.SharedMemory{Processor: 100 << 10, Block: 99 << 10, Reserved: 1 << 10}}} {
		for tables := 16; tables <= 72<<10; tables += 3000 {
			for stage := 16; stage <= mostStage; stage += 400 {
				for _, chunks := range []uint64{1, 100, 1365, 100_000, 1 << 31} {
					c, err := l.cutOf(k, chunks, tables, stage)
					if err != nil || c.threads < 32 || c.threads > k.launch().threads || c.threads%32 != 0 || c.share < c.threads/32 || int(c.sharedBytes) > l.shared.Block-spareBytes || int(c.sharedBytes) < tables {
						t.Fatalf("%+v, %d chunks, tables of %d, stage of %d: %+v, %v", l, chunks, tables, stage, c, err)
					}
				}
			}
		}
	}
}

// The launch of a call takes the most that any of its tensors needs.
func TestCutJobs(t *testing.T) {
	a := prepare(t, codec.Prefix, dtype.BF16, residual.Bit, 5500)
	b := prepare(t, codec.Prefix, dtype.F16, residual.Bit, 2500)
	if a.kernel != b.kernel || a.sharedTables == 0 || a.sharedChunk == 0 {
		t.Fatalf("prepared: %+v, %+v", a, b)
	}
	l := hopper
	err := group(&l, []Job{job(a, 1<<30), job(b, 2<<30)}, decodeKernel, func(k kernelID, x *batch, blocks uint32, c cut) error {
		if x.chunksPerBlock != c.share || blocks != c.blocks(a.chunks())+c.blocks(b.chunks()) || x.item[1].firstBlock != c.blocks(a.chunks()) {
			t.Errorf("%d blocks, %d chunks each, item 1 from %d, cut %+v", blocks, x.chunksPerBlock, x.item[1].firstBlock, c)
		}
		if int(c.sharedBytes) != max(a.sharedTables, b.sharedTables)+int(c.threads/32)*max(a.sharedChunk, b.sharedChunk) {
			t.Errorf("cut %+v, tables %d and %d, chunks %d and %d", c, a.sharedTables, b.sharedTables, a.sharedChunk, b.sharedChunk)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
