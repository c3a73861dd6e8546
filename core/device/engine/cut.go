package engine

import (
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/status"
)

// limits are what a GPU has for the thread blocks that it runs at once.
type limits struct {
	processors int
	shared     cuda.SharedMemory
}

// cut says how the chunks of one call are dealt to thread blocks.
type cut struct {
	threads     uint32 // of a thread block
	share       uint32 // chunks of a thread block; 0 if thread blocks share units evenly
	inChunk     bool   // share is bytes of one chunk's target
	sharedBytes uint32 // dynamic shared memory of a thread block
	least, most uint32 // thread blocks that one multiprocessor each runs, and all that run at once
}

// What a staged kernel does with shared memory. A thread block loads the tables
// of its tensor once, for all its warps, and each warp brings its chunk there, and
// rows of base words: so many warps run at once as have room, but not more than the
// largest thread block has, for which there are registers; and the fewer thread
// blocks they come in, the fewer tables.
const (
	leastWarps = 4        // of a thread block, which together load the tables
	mostStage  = 24 << 10 // bytes; larger chunks are decoded from global memory
	spareBytes = 256      // that a kernel may declare besides
	tableUnits = 3        // chunks that a warp decodes while a thread block loads tables
)

// cutOf returns the cut of what a call gives to a kernel. chunks are those of
// all its tensors; tables and stage are the most bytes of shared memory that
// the tables of one of them take, and a chunk.
func (l *limits) cutOf(k kernelID, chunks uint64, tables, stage int) (cut, error) {
	s := k.launch()
	if !s.staged {
		return cut{threads: s.threads, share: s.share, inChunk: s.inChunk}, nil
	}
	room := l.shared.Block - spareBytes - tables
	if room < 0 {
		return cut{}, status.Errorf(status.ErrUnsupported, "the tables of %s take %d bytes of shared memory, of which a thread block of this GPU has %d: rebuild the tensor on the CPU", k.name(), tables, l.shared.Block)
	}
	if leastWarps*stage > room {
		stage = 0
	}
	// The number of warps of which most are at work at once; of those the
	// largest. But if a thread block for each multiprocessor has warps for all
	// chunks, no more than that: the tables are loaded once, and none has less to do.
	most, best, resident := int(s.share), leastWarps, leastWarps
	for warps := leastWarps; warps <= most; warps++ {
		need := tables + warps*stage
		if need > l.shared.Block-spareBytes {
			break
		}
		n := min(l.shared.Processor/(need+spareBytes+l.shared.Reserved), most/warps) * warps
		all := uint64(warps)*uint64(l.processors) >= chunks
		if n >= resident || all {
			best, resident = warps, n
		}
		if all {
			break
		}
	}
	return cut{
		threads: uint32(32 * best), sharedBytes: uint32(tables + best*stage),
		least: uint32(l.processors), most: uint32(max(resident/best, 1) * l.processors),
	}, nil
}

// cutJobs returns the cut of the jobs that a kernel works on.
func (l *limits) cutJobs(jobs []Job, k kernelID, kernel func(*Job) kernelID) (cut, error) {
	var chunks uint64
	tables, stage := 0, 0
	if k.launch().staged {
		for i := range jobs {
			j := &jobs[i]
			if j.empty() || kernel(j) != k {
				continue
			}
			chunks += uint64(j.P.chunks())
			tables = max(tables, j.P.sharedTables)
			if j.P.sharedChunk > mostStage {
				continue
			}
			room := j.P.sharedChunk
			if !j.Quantised {
				room += j.P.sharedQueue
			}
			stage = max(stage, room)
		}
	}
	return l.cutOf(k, chunks, tables, stage)
}

// units returns what the chunks of a tensor count for: thread blocks, or the units
// that these share.
func (c *cut) units(p *Prepared) uint64 {
	n, share := uint64(p.chunks()), uint64(c.share)
	switch {
	case share == 0:
		return n + tableUnits
	case c.inChunk:
		return n * ((p.chunkBytes() + share - 1) / share)
	}
	return (n + share - 1) / share
}

// grid returns the number of thread blocks for the units of a batch: as many as
// give every warp one, but not more than run at once.
func (c *cut) grid(units uint32) uint32 {
	if c.share != 0 {
		return units
	}
	warps := c.threads / 32
	return min(units, c.most, max(units/warps+min(units%warps, 1), c.least))
}
