package engine

import (
	"math/bits"
	"sync"

	"github.com/tpde-project/tpde/core/status"
)

// maxItems is the number of tensors that one launch takes: what fits into 4
// KiB of kernel arguments.
const maxItems = 56

// maxBlocks is the most thread blocks that a grid may have.
const maxBlocks = 1<<31 - 1

// item and batch are struct Item and struct Batch of kernels/batch.cuh.
type item struct {
	base, dst, blob, records, tables, status uintptr
	chunks, firstBlock                       uint32
}

type batch struct {
	items uint32
	units uint32
	item  [maxItems]item
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// launcher launches a kernel on a batch, which is used again after it returns.
type launcher func(k kernelID, b *batch, blocks uint32, c cut) error

// group fills batches of jobs that the same kernel works on, in an order that
// depends on the jobs alone (those of noKernel are left out), and hands each to
// launch with the number of its thread blocks.
func group(l *limits, jobs []Job, kernel func(*Job) kernelID, launch launcher) error {
	var present [(kernelIDs + 63) / 64]uint64
	for i := range jobs {
		if !jobs[i].empty() {
			if k := kernel(&jobs[i]); k != noKernel {
				present[k/64] |= 1 << (k % 64)
			}
		}
	}
	b := batches.Get().(*batch)
	defer batches.Put(b)
	for n := range present {
		for ; present[n] != 0; present[n] &= present[n] - 1 {
			k := kernelID(64*n + bits.TrailingZeros64(present[n]))
			if err := groupOne(l, jobs, k, kernel, b, launch); err != nil {
				return err
			}
		}
	}
	return nil
}

func groupOne(l *limits, jobs []Job, k kernelID, kernel func(*Job) kernelID, b *batch, launch launcher) error {
	c, err := l.cutJobs(jobs, k, kernel)
	if err != nil {
		return err
	}
	b.items, b.units = 0, 0
	for i := range jobs {
		j := &jobs[i]
		if j.empty() || kernel(j) != k {
			continue
		}
		units := c.units(j.P)
		if units > maxBlocks {
			return status.Errorf(status.ErrLimit, "item %d takes %d thread blocks for %d chunks, expected at most %d", i, units, j.P.chunks(), maxBlocks)
		}
		need := uint32(units)
		if b.items == maxItems || b.units > maxBlocks-need {
			if err := launch(k, b, c.grid(b.units), c); err != nil {
				return err
			}
			b.items, b.units = 0, 0
		}
		b.item[b.items] = j.item(b.units)
		b.items++
		b.units += need
	}
	return launch(k, b, c.grid(b.units), c)
}

// item describes the job to a kernel.
func (j *Job) item(firstBlock uint32) item {
	it := item{
		base: j.Base, dst: j.Dst, blob: j.Blob, records: j.Image + uintptr(j.P.tableBytes), status: j.Status,
		chunks: j.P.chunks(), firstBlock: firstBlock,
	}
	if j.P.tableBytes > 0 {
		it.tables = j.Image
	}
	return it
}
