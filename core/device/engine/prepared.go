package engine

import (
	"bytes"

	"github.com/tpde-project/tpde/core/codec"
	_ "github.com/tpde-project/tpde/core/codec/all" // the decoders that validate tables
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/status"
)

// tableAlign is what the tables at the start of an image are padded to, so
// that the records behind them lie as well as torch's allocations do.
const tableAlign = 512

// Prepared is a packed tensor made ready for a GPU. It is immutable and safe
// for concurrent use.
type Prepared struct {
	index      *container.Index
	kernel     kernelID
	image      []byte
	tableBytes uint64  // of the image, padded
	places     []place // zstd: of each chunk, and of what would follow
	largest    uint64  // zstd: bytes of the largest plane
	// Shared memory that the tables take, a chunk, and a warp's queue of base words,
	// if the kernel is staged.
	sharedTables, sharedChunk, sharedQueue int
}

// Prepare validates an index and expands it to what kernels read. It needs no
// GPU. What no kernel decodes is status.ErrUnsupported.
func Prepare(index []byte) (*Prepared, error) {
	x, err := container.Parse(index)
	if err != nil {
		return nil, err
	}
	c, err := codec.Get(x.Codec)
	if err != nil {
		return nil, err
	}
	if _, err := c.NewDecoder(x.Type, x.Tables); err != nil {
		return nil, err
	}
	d, ok := decoders[x.Codec]
	if !ok {
		return nil, status.Errorf(status.ErrUnsupported, "codec %v is not decoded on a GPU by this build: rebuild the tensor on the CPU", x.Codec)
	}
	variant, err := decodeVariant(x.Type, x.Residual)
	if err != nil {
		return nil, err
	}
	p := &Prepared{index: x, kernel: newKernelID(d.entry, variant)}
	switch {
	case x.Codec == codec.Zstd:
		p.places, p.largest = placesOf(x)
		p.image = appendPlaces(nil, p.places)
	case d.tables != nil:
		if p.image, err = d.tables(x.Type, x.Tables); err != nil {
			return nil, err
		}
	}
	if d.sharedTables != nil {
		p.sharedTables, p.sharedQueue = d.sharedTables(p.image), d.sharedQueue(x.Type)
		for i := range x.Records {
			r := &x.Records[i]
			p.sharedChunk = max(p.sharedChunk, d.sharedChunk(x.Type, int(r.UncompressedBytes)/x.Type.WordBytes(), int(r.CompressedBytes)))
		}
	}
	if len(p.image) > 0 {
		p.image = append(p.image, make([]byte, -len(p.image)&(tableAlign-1))...)
		p.tableBytes = uint64(len(p.image))
	}
	for i := range x.Records {
		p.image = x.Records[i].AppendFlat(p.image)
	}
	x.Tables = bytes.Clone(x.Tables) // they lie in the caller's memory
	return p, nil
}

// Image returns what must lie in device memory besides the blob, aligned to 16
// bytes: the expanded codec tables, zero-padded to a multiple of 512 bytes (or
// nothing, for a codec without tables), then the flat chunk records. The
// tables of a zstd tensor are made from its records: 16 bytes a chunk (struct
// Place of kernels/zstd.cuh). It must not be changed.
func (p *Prepared) Image() []byte { return p.image }

// Index returns the parsed index. It must not be changed.
func (p *Prepared) Index() *container.Index { return p.index }

// chunks returns the number of chunks, which is that of the status words.
func (p *Prepared) chunks() uint32 { return uint32(len(p.index.Records)) }

// chunkBytes returns the size of the target of every chunk but the last, which is
// not larger.
func (p *Prepared) chunkBytes() uint64 {
	return min(p.index.ChunkWords, p.index.Words) * uint64(p.index.Type.WordBytes())
}
