package engine

import (
	"sync"
	"unsafe"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/nvcomp"
	"github.com/tpde-project/tpde/core/status"
)

// Tensors of the zstd codec take three steps: zstd_gather makes a batch of all
// their planes, nvCOMP decompresses it, zstd_join adds the result to the base.
// Each wave of chunks goes through all three, in the same scratch memory.

// waveCost bounds the buffers of a wave, and with them scratch memory to about
// four times as much. A frame is decompressed serially, so that a wave of a few
// takes nearly as long as one of thousands.
const waveCost = 512 << 20

// zstdState is what the engine has for zstd. Its zero value is ready.
type zstdState struct {
	open func() (*nvcomp.Library, error) // nil for nvcomp.Open
	temp sync.Map                        // of tempKey to uint64
}

type tempKey struct{ slots, largest, bytes uint64 }

func (z *zstdState) library() (*nvcomp.Library, error) {
	if z.open != nil {
		return z.open()
	}
	return nvcomp.Open()
}

// tempBytes asks nvCOMP for the size of its temporary memory, once for each
// question: ScratchBytes has asked before Reconstruct, which may be captured.
func (z *zstdState) tempBytes(lib *nvcomp.Library, w *wave, stream uintptr) (uint64, error) {
	key := tempKey{w.slots, w.largest, w.bytes}
	if n, ok := z.temp.Load(key); ok {
		return n.(uint64), nil
	}
	n, err := lib.TempBytes(w.slots, w.largest, w.bytes, stream)
	if err == nil {
		z.temp.Store(key, n)
	}
	return n, err
}

// zstdItem, zstdSlots and zstdBatch are ZstdItem, Slots and ZstdBatch of
// kernels/zstd.cuh.
type zstdItem struct {
	item
	buffers        uintptr
	slots, checked uint32
}

type zstdSlots struct {
	frames, frameBytes, buffers, bufferBytes, actualBytes, planes, statuses uintptr
}

const maxZstdItems = (4096 - 8 - unsafe.Sizeof(zstdSlots{})) / unsafe.Sizeof(zstdItem{})

type zstdBatch struct {
	items    uint32
	reserved uint32
	slots    zstdSlots
	item     [maxZstdItems]zstdItem
}

var zstdBatches = sync.Pool{New: func() any { return new(zstdBatch) }}

// run is consecutive chunks of a job, and what comes before them in the wave.
type run struct {
	job        *Job
	first, end int
	before     place
}

// wave is the chunks that are decompressed together.
type wave struct {
	runs           []run
	slots, largest uint64
	bytes          uint64 // of buffers
	cost           uint64
}

// isZstd reports whether the job needs nvCOMP.
func (j *Job) isZstd() bool { return j.P.index.Codec == codec.Zstd }

// waves cuts the zstd jobs into waves of at most `limit` (a chunk that takes
// more has a wave of its own) and hands each to f. It depends on the jobs
// alone. The wave is used again after f returns.
func waves(jobs []Job, limit uint64, f func(*wave) error) error {
	var w wave
	flush := func() error {
		if len(w.runs) == 0 {
			return nil
		}
		err := f(&w)
		w = wave{runs: w.runs[:0]}
		return err
	}
	for i := range jobs {
		j := &jobs[i]
		if j.empty() || !j.isZstd() {
			continue
		}
		for first, chunks := 0, int(j.P.chunks()); first < chunks; {
			end := fit(j.P.places, first, limit-min(w.cost, limit))
			if end == first && len(w.runs) > 0 {
				if err := flush(); err != nil {
					return err
				}
				continue
			}
			end = max(end, first+1)
			from, to := j.P.places[first], j.P.places[end]
			w.runs = append(w.runs, run{j, first, end, place{w.bytes, w.slots}})
			w.slots += to.slot - from.slot
			w.bytes += to.buffer - from.buffer
			w.cost += cost(from, to)
			w.largest = max(w.largest, j.P.largest)
			first = end
		}
	}
	return flush()
}

const scratchAlign = 256

// layout returns where the arrays of a wave lie, where its buffers begin and
// what nvCOMP may use of scratch memory from where on.
func (w *wave) layout(scratch uintptr) (s zstdSlots, buffers, temp uintptr) {
	p := uint64(scratch)
	array := func(entryBytes uint64) uintptr {
		at := p
		p += entryBytes * w.slots
		return uintptr(at)
	}
	s.frames, s.frameBytes = array(8), array(8)
	s.buffers, s.bufferBytes = array(8), array(8)
	s.actualBytes, s.planes, s.statuses = array(8), array(16), array(4)
	p = alignUp(p, scratchAlign)
	buffers = uintptr(p)
	p = alignUp(p+w.bytes, scratchAlign)
	return s, buffers, uintptr(p)
}

// scratch returns what a wave takes of scratch memory, and nvCOMP of that.
func (z *zstdState) scratch(lib *nvcomp.Library, w *wave, stream uintptr) (total, temp uint64, err error) {
	if w.slots == 0 {
		return 0, 0, nil
	}
	if temp, err = z.tempBytes(lib, w, stream); err != nil {
		return 0, 0, err
	}
	_, _, start := w.layout(0)
	return uint64(start) + temp, temp, nil
}

// zstdScratch returns the scratch memory that the zstd jobs take.
func (e *Engine) zstdScratch(jobs []Job) (most uint64, err error) {
	var lib *nvcomp.Library
	err = waves(jobs, waveCost, func(w *wave) error {
		if w.slots > 0 && lib == nil {
			if lib, err = e.zstd.library(); err != nil {
				return err
			}
		}
		n, _, err := e.zstd.scratch(lib, w, 0)
		most = max(most, n)
		return err
	})
	return most, err
}

// zstdJobs launches all that zstd jobs take. The context of d is current.
func (e *Engine) zstdJobs(d *device, jobs []Job, scratch uintptr, scratchBytes uint64, stream uintptr) error {
	unchecked := func(j *Job) kernelID {
		if !j.isZstd() || j.Verified {
			return noKernel
		}
		return newKernelID(crc32cCheck, 0)
	}
	checked := false
	return waves(jobs, waveCost, func(w *wave) error {
		var lib *nvcomp.Library
		if w.slots > 0 {
			var err error
			if lib, err = e.zstd.library(); err != nil {
				return err
			}
		}
		need, temp, err := e.zstd.scratch(lib, w, stream)
		if err != nil {
			return err
		}
		if need > scratchBytes || need > 0 && (scratch == 0 || scratch%scratchAlign != 0) {
			return status.Errorf(status.ErrArgument, "scratch memory of %d bytes at %#x, expected %d bytes at a multiple of %d", scratchBytes, scratch, need, scratchAlign)
		}
		if !checked {
			checked = true
			if err := e.launchAll(d, jobs, unchecked, stream); err != nil {
				return err
			}
		}
		return e.launchWave(d, w, lib, scratch, temp, stream)
	})
}

// launchWave launches the three steps for a wave.
func (e *Engine) launchWave(d *device, w *wave, lib *nvcomp.Library, scratch uintptr, temp uint64, stream uintptr) error {
	slots, buffers, tempAt := w.layout(scratch)
	if w.slots > 0 {
		if err := e.launchRuns(d, w, zstdGather, slots, buffers, stream); err != nil {
			return err
		}
		err := lib.Decompress(&nvcomp.Batch{
			Count: w.slots, Frames: slots.frames, FrameBytes: slots.frameBytes, Buffers: slots.buffers, BufferBytes: slots.bufferBytes,
			ActualBytes: slots.actualBytes, Statuses: slots.statuses, Temp: tempAt, TempBytes: temp,
		}, stream)
		if err != nil {
			return err
		}
	}
	return e.launchRuns(d, w, zstdJoin, slots, buffers, stream)
}

// launchRuns launches an entry point for all runs of a wave, as many at a time
// as have the same variant and fit into the arguments.
func (e *Engine) launchRuns(d *device, w *wave, entry int, slots zstdSlots, buffers, stream uintptr) error {
	b := zstdBatches.Get().(*zstdBatch)
	defer zstdBatches.Put(b)
	for variant := range entries[entry].variants {
		k := newKernelID(entry, variant)
		b.items, b.slots = 0, slots
		var blocks uint32
		flush := func() error {
			if b.items == 0 {
				return nil
			}
			f, err := e.function(d, k)
			if err == nil {
				err = e.driver.Launch(f, blocks, k.launch().threads, 0, cuda.Stream(stream), unsafe.Pointer(b), unsafe.Sizeof(*b), d.early)
			}
			b.items, blocks = 0, 0
			return err
		}
		for i := range w.runs {
			r := &w.runs[i]
			if r.job.kernel().variant() != variant {
				continue
			}
			need := uint32(k.blocks(uint64(r.end-r.first), 0))
			if int(b.items) == len(b.item) || blocks > maxBlocks-need {
				if err := flush(); err != nil {
					return err
				}
			}
			b.item[b.items] = r.item(blocks, buffers)
			b.items++
			blocks += need
		}
		if err := flush(); err != nil {
			return err
		}
	}
	return nil
}

// item describes the run to a kernel.
func (r *run) item(firstBlock uint32, buffers uintptr) zstdItem {
	from := r.job.P.places[r.first]
	it := zstdItem{
		item:    r.job.item(firstBlock),
		buffers: buffers + uintptr(r.before.buffer) - uintptr(from.buffer),
		slots:   uint32(r.before.slot - from.slot),
	}
	it.records += uintptr(r.first) * container.RecordBytes
	it.tables += uintptr(r.first) * placeBytes
	it.status += uintptr(r.first) * 4
	it.chunks = uint32(r.end - r.first)
	if !r.job.Verified {
		it.checked = 1
	}
	return it
}
