// Package tensor packs one tensor into an index and a blob and rebuilds it:
// it joins the residual, the codecs and the container, spreads chunks over
// cores and keeps memory flat whatever the size of the tensor.
//
// All functions are safe for concurrent use. Results do not depend on the
// number of workers.
package tensor

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
)

// Desc describes a tensor.
type Desc struct {
	Type  dtype.Type
	Shape []uint64 // in elements
}

// Options control packing. The zero value is what a careful user would want.
type Options struct {
	Codec    codec.ID      // codec.Auto chooses by trial
	Residual residual.Kind // residual.Bit or residual.Add
	Level    codec.Level
	// NumChunks fixes the number of chunks (each has the words divided by it,
	// rounded up), ChunkWords their size; 0 and 0 let the codec decide.
	NumChunks, ChunkWords uint64
	Workers               int // at most this many cores; 0 means all
	// BaseAt, if not nil, is the base, which is then nil: it writes the bytes
	// from off on to dst. It is called for parts of the tensor by several
	// goroutines at a time. BaseDigest must be given with it.
	BaseAt func(dst []byte, off uint64) error
	// Digests of base and target, where the caller has computed them already.
	BaseDigest, TargetDigest *digest.Sum
	// Progress, if not nil, is told the bytes of target of each chunk that has
	// been written, one call at a time.
	Progress func(bytes uint64)
}
