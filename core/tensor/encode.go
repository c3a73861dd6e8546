package tensor

import (
	"context"
	"encoding/binary"
	"io"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// Encode packs target against base, or against nothing where base is nil. It
// writes the blob to w chunk by chunk and returns the index. Both slices have
// the size that d says. Memory use is bounded by workers and chunk size.
func Encode(ctx context.Context, w io.Writer, d Desc, base, target []byte, o Options) ([]byte, error) {
	if err := d.check(base, target, o); err != nil {
		return nil, err
	}
	s := source{desc: d, kind: o.Residual, base: base, baseAt: o.BaseAt, target: target}
	s.targetTree, s.baseTree = treeOf(target, o.TargetDigest), treeOf(base, o.BaseDigest)
	enc, id, err := chooseEncoder(ctx, s, o)
	if err != nil {
		return nil, err
	}
	words := uint64(len(target) / d.Type.WordBytes())
	chunkWords, err := chunkWords(d, words, enc, o)
	if err != nil {
		return nil, err
	}
	x := &container.Index{
		Type: d.Type, Codec: id, Residual: o.Residual, HasBase: base != nil || o.BaseAt != nil, Shape: d.Shape,
		Words: words, ChunkWords: chunkWords, Tables: enc.Tables(),
		Records: make([]container.Record, container.ChunkCount(words, max(chunkWords, 1))),
	}
	err = plan.Ordered(ctx, o.Workers, len(x.Records),
		func(_ context.Context, i int) (*encodedChunk, error) {
			c, err := s.encodeChunk(enc, uint64(i)*chunkWords, chunkWords)
			return c, status.InChunk(err, i)
		},
		func(i int, c *encodedChunk) error {
			r := &x.Records[i]
			r.DataOffset = x.BlobBytes
			r.CompressedBytes = uint32(len(c.data))
			r.UncompressedBytes = c.uncompressedBytes
			r.Deltas = c.deltas
			r.OutputWord = uint64(i) * chunkWords
			r.Checksum = r.Sum(c.data)
			x.BlobBytes += uint64(len(c.data))
			_, err := w.Write(c.data)
			chunkPool.Put(c)
			if err == nil && o.Progress != nil {
				o.Progress(uint64(r.UncompressedBytes))
			}
			return err
		})
	if err != nil {
		return nil, err
	}
	x.TargetDigest = digestOf(s.targetTree, o.TargetDigest)
	if x.HasBase {
		x.BaseDigest = digestOf(s.baseTree, o.BaseDigest)
	}
	return x.Append(nil), nil
}

// treeOf starts the digest of data, if it is not known.
func treeOf(data []byte, known *digest.Sum) *digest.Tree {
	if known != nil {
		return nil
	}
	return digest.NewTree(uint64(len(data)))
}

func digestOf(t *digest.Tree, known *digest.Sum) digest.Sum {
	if known != nil {
		return *known
	}
	return t.Sum()
}

// addPages adds the pages of data that start in [from, to) to its digest.
func addPages(t *digest.Tree, data []byte, from, to uint64) {
	if t == nil {
		return
	}
	from, to = pageAt(from), min(pageAt(to), uint64(len(data)))
	if from < to {
		t.Add(from, data[from:to])
	}
}

// pageAt returns where the first page starts from off on.
func pageAt(off uint64) uint64 {
	return (off + digest.PageBytes - 1) / digest.PageBytes * digest.PageBytes
}

func (d Desc) check(base, target []byte, o Options) error {
	size, err := d.Type.Bytes(d.Shape)
	if err != nil {
		return err
	}
	switch {
	case len(d.Shape) > container.MaxDims:
		return status.Errorf(status.ErrLimit, "%d dimensions, expected at most %d", len(d.Shape), container.MaxDims)
	case uint64(len(target)) != size:
		return status.Errorf(status.ErrArgument, "target has %d bytes, expected %d for shape %v of %v", len(target), size, d.Shape, d.Type)
	case base != nil && len(base) != len(target):
		return status.Errorf(status.ErrArgument, "base has %d bytes, expected the target's %d", len(base), len(target))
	case o.BaseAt != nil && (base != nil || o.BaseDigest == nil):
		return status.Errorf(status.ErrArgument, "a base that is read in parts goes with its digest and without the base in one piece")
	case o.Residual > residual.Add:
		return status.Errorf(status.ErrArgument, "residual kind %d is unknown", o.Residual)
	case o.Residual == residual.Add && !d.Type.HasAdd():
		return status.Errorf(status.ErrArgument, "the add residual needs a float dtype, got %v", d.Type)
	case o.NumChunks != 0 && o.ChunkWords != 0:
		return status.Errorf(status.ErrArgument, "number of chunks (%d) and words per chunk (%d) are both fixed, expected one", o.NumChunks, o.ChunkWords)
	}
	return nil
}

// chunkWords decides the size of the chunks: the user's wish, else the codec's.
func chunkWords(d Desc, words uint64, enc codec.Encoder, o Options) (uint64, error) {
	if words == 0 {
		return 0, nil
	}
	limit := uint64(container.MaxChunkBytes / d.Type.WordBytes())
	n := uint64(enc.ChunkWords())
	switch {
	case o.ChunkWords != 0:
		n = min(o.ChunkWords, words)
	case o.NumChunks != 0:
		n = (words-1)/o.NumChunks + 1
	default:
		n = min(n, words, limit)
	}
	if n > limit {
		return 0, status.Errorf(status.ErrLimit, "chunks of %d words, expected at most %d for %v (%d bytes)", n, limit, d.Type, container.MaxChunkBytes)
	}
	return n, nil
}

// source is what is being packed.
type source struct {
	desc   Desc
	kind   residual.Kind
	base   []byte // nil if there is none, or baseAt gives it
	baseAt func(dst []byte, off uint64) error
	target []byte
	// Digests of what is packed, nil where they are known: each chunk adds the
	// pages that start in it, while its data are in a cache.
	targetTree, baseTree *digest.Tree
}

// words returns the number of words.
func (s *source) words() uint64 { return uint64(len(s.target) / s.desc.Type.WordBytes()) }

// encodedChunk is one chunk on its way to the writer.
type encodedChunk struct {
	data              []byte
	deltas            uint32
	uncompressedBytes uint32
}

var chunkPool = sync.Pool{New: func() any { return new(encodedChunk) }}

// encodeChunk encodes up to n words from word first on.
func (s *source) encodeChunk(enc codec.Encoder, first, n uint64) (*encodedChunk, error) {
	w := uint64(s.desc.Type.WordBytes())
	from, to := first*w, min((first+n)*w, uint64(len(s.target)))
	buf := getScratch()
	defer putScratch(buf)
	addPages(s.targetTree, s.target, from, to)
	addPages(s.baseTree, s.base, from, to)
	block, exceptions, err := s.block(buf, from, to)
	if err != nil {
		return nil, err
	}

	c := chunkPool.Get().(*encodedChunk)
	c.data = c.data[:0]
	c.uncompressedBytes = uint32(to - from)
	if s.kind == residual.Add {
		c.data = appendExceptions(c.data, exceptions, s.target[from:to], int(w))
	}
	c.data, c.deltas, err = enc.Encode(c.data, block)
	return c, err
}

// block computes the residual of target bytes [from, to) in buf.
func (s *source) block(buf *scratch, from, to uint64) (codec.Block, []uint32, error) {
	t := s.desc.Type
	var base []byte
	if s.baseAt != nil {
		base = resize(&buf.base, int(to-from))
		if err := s.baseAt(base, from); err != nil {
			return codec.Block{}, nil, err
		}
	} else {
		base = buf.baseOf(s.base, from, to, t.WordBytes())
	}
	target := aligned(s.target[from:to], t.WordBytes(), &buf.target)
	res := resize(&buf.res, int(to-from))
	buf.exceptions = residual.Compute(s.kind, t, res, base, target, buf.exceptions[:0])
	return codec.Block{Type: t, Base: base, Residual: res}, buf.exceptions, nil
}

// appendExceptions appends the exceptions of a chunk: count, word numbers in
// the chunk, target words, zero padding to 8 bytes.
func appendExceptions(dst []byte, exceptions []uint32, target []byte, wordBytes int) []byte {
	start := len(dst)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(exceptions)))
	dst = append(dst, word.Bytes(exceptions)...)
	for _, e := range exceptions {
		dst = append(dst, target[int(e)*wordBytes:(int(e)+1)*wordBytes]...)
	}
	for (len(dst)-start)%8 != 0 {
		dst = append(dst, 0)
	}
	return dst
}
