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
	share       uint32 // chunks of a thread block
	sharedBytes uint32 // dynamic shared memory of a thread block
}

// What a staged kernel does with shared memory, for a GPU session to tune. A
// thread block loads the tables of its tensor once, for all its warps, and each
// warp brings the bit strings of its chunk there: so many warps run at once as
// have room, and the fewer thread blocks they come in, the fewer tables.
const (
	leastWarps = 4        // of a thread block, which together load the tables
	mostWarps  = 36       // of a multiprocessor, by the registers that they take
	mostStage  = 24 << 10 // bytes; larger chunks are decoded from global memory
	spareBytes = 256      // that a kernel may declare besides
	fullWaves  = 6        // rounds of thread blocks below which a warp gets one chunk
	mostChunks = 4        // of a warp, one after the other
)

// cutOf returns the cut of what a call gives to a kernel. chunks are those of
// all its tensors; tables and stage are the most bytes of shared memory that
// the tables of one of them take, and a chunk.
func (l *limits) cutOf(k kernelID, chunks uint64, tables, stage int) (cut, error) {
	s := k.launch()
	if !s.staged {
		return cut{s.threads, s.share, 0}, nil
	}
	room := l.shared.Block - spareBytes - tables
	if room < 0 {
		return cut{}, status.Errorf(status.ErrUnsupported, "the tables of %s take %d bytes of shared memory, of which a thread block of this GPU has %d: rebuild the tensor on the CPU", k.name(), tables, l.shared.Block)
	}
	if leastWarps*stage > room {
		stage = 0
	}
	// The number of warps of which most are at work at once; of those the
	// largest, unless there are too few chunks for all multiprocessors.
	best, resident := leastWarps, 0
	for warps := leastWarps; warps <= int(s.share); warps++ {
		need := tables + warps*stage
		if need > l.shared.Block-spareBytes {
			break
		}
		n := min(l.shared.Processor/(need+spareBytes+l.shared.Reserved), mostWarps/warps) * warps
		if n >= resident {
			best, resident = warps, n
		}
		if uint64(warps)*uint64(l.processors) >= chunks {
			break
		}
	}
	each := min(max(chunks/uint64(max(fullWaves*resident*l.processors, 1)), 1), mostChunks)
	return cut{uint32(32 * best), uint32(best) * uint32(each), uint32(tables + best*stage)}, nil
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
			if j.P.sharedChunk <= mostStage {
				stage = max(stage, j.P.sharedChunk)
			}
		}
	}
	return l.cutOf(k, chunks, tables, stage)
}

// blocks returns the number of thread blocks for n chunks.
func (c *cut) blocks(n uint32) uint32 { return n/c.share + min(n%c.share, 1) }
