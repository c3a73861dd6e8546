package tensor

import (
	"context"
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// Reader rebuilds a packed tensor, whole or in part. It is safe for concurrent
// use.
type Reader struct {
	index *container.Index
	blob  []byte
	dec   codec.Decoder
}

// Open validates an index and its blob. Chunk data are verified when they are
// read. The reader refers to both slices.
func Open(index, blob []byte) (*Reader, error) {
	x, err := container.Parse(index)
	if err != nil {
		return nil, err
	}
	if uint64(len(blob)) != x.BlobBytes {
		return nil, status.Errorf(status.ErrCorrupt, "blob has %d bytes, expected %d by its index", len(blob), x.BlobBytes)
	}
	c, err := codec.Get(x.Codec)
	if err != nil {
		return nil, err
	}
	dec, err := c.NewDecoder(x.Type, x.Tables)
	if err != nil {
		return nil, err
	}
	return &Reader{index: x, blob: blob, dec: dec}, nil
}

// Desc returns what the tensor is.
func (r *Reader) Desc() Desc { return Desc{Type: r.index.Type, Shape: r.index.Shape} }

// Index returns the parsed index. It must not be changed.
func (r *Reader) Index() *container.Index { return r.index }

// HasBase reports whether the tensor was packed against a base.
func (r *Reader) HasBase() bool { return r.index.HasBase }

// BaseDigest returns the digest of the base; zero if there is none.
func (r *Reader) BaseDigest() digest.Sum { return r.index.BaseDigest }

// TargetDigest returns the digest of the target.
func (r *Reader) TargetDigest() digest.Sum { return r.index.TargetDigest }

// CheckBase returns status.ErrBaseMismatch unless base, hashed on up to
// workers cores, is what the tensor was packed against.
func (r *Reader) CheckBase(base []byte, workers int) error {
	if err := r.checkBaseSize(base); err != nil || !r.index.HasBase {
		return err
	}
	if got := digest.Of(base, workers); got != r.index.BaseDigest {
		return status.Errorf(status.ErrBaseMismatch, "base has digest %v, expected %v", got, r.index.BaseDigest)
	}
	return nil
}

func (r *Reader) checkBaseSize(base []byte) error {
	switch {
	case !r.index.HasBase && base != nil:
		return status.Errorf(status.ErrArgument, "got a base, expected none: the tensor was packed without one")
	case r.index.HasBase && base == nil && r.index.Words > 0:
		return status.Errorf(status.ErrArgument, "got no base, expected the %d bytes that the tensor was packed against", r.index.TargetBytes())
	case r.index.HasBase && uint64(len(base)) != r.index.TargetBytes():
		return status.Errorf(status.ErrBaseMismatch, "base has %d bytes, expected %d", len(base), r.index.TargetBytes())
	}
	return nil
}

// BaseFunc returns n bytes of the base from byte off on. The result is used
// before the next call.
type BaseFunc func(off, n uint64) ([]byte, error)

// ReadAt rebuilds the target bytes [off, off+len(p)) on the calling goroutine.
// Both ends must lie on words. base is asked for whole chunks; it is nil for a
// tensor without a base.
func (r *Reader) ReadAt(p []byte, off uint64, base BaseFunc) error {
	x := r.index
	w := uint64(x.Type.WordBytes())
	if end := off + uint64(len(p)); end < off || end > x.TargetBytes() || off%w != 0 || end%w != 0 {
		return status.Errorf(status.ErrArgument, "bytes %d to %d of a tensor of %d bytes, expected a range of %d-byte words", off, end, x.TargetBytes(), w)
	}
	if (base != nil) != x.HasBase {
		return status.Errorf(status.ErrArgument, "base given: %v, expected %v", base != nil, x.HasBase)
	}
	buf := getScratch()
	defer putScratch(buf)
	for len(p) > 0 {
		i := int(off / w / x.ChunkWords)
		rec := &x.Records[i]
		start, size := rec.OutputWord*w, uint64(rec.UncompressedBytes)
		var b []byte
		if base != nil {
			var err error
			if b, err = base(start, size); err != nil {
				return err
			}
		}
		skip := off - start
		n := min(size-skip, uint64(len(p)))
		dst := p[:n]
		whole := n == size && word.Aligned(dst, int(w))
		if !whole {
			dst = resize(&buf.target, int(size))
		}
		if err := r.decodeChunk(i, dst, b, buf); err != nil {
			return err
		}
		if !whole {
			copy(p[:n], dst[skip:])
		}
		p, off = p[n:], off+n
	}
	return nil
}

// ReconstructOptions control Reconstruct.
type ReconstructOptions struct {
	Workers          int  // at most this many cores; 0 means all
	SkipBaseDigest   bool // the caller knows that the base is right
	SkipTargetDigest bool // chunk checksums are enough
}

// Reconstruct rebuilds the whole tensor into dst, which may be base itself. A
// wrong base or damaged data is refused before dst is touched; if the digest
// of the result is wrong in spite of that, the contents of dst are undefined.
func (r *Reader) Reconstruct(ctx context.Context, dst, base []byte, o ReconstructOptions) error {
	x := r.index
	w := x.Type.WordBytes()
	switch {
	case uint64(len(dst)) != x.TargetBytes():
		return status.Errorf(status.ErrShortBuffer, "destination has %d bytes, expected %d", len(dst), x.TargetBytes())
	case !word.Aligned(dst, w):
		return status.Errorf(status.ErrArgument, "destination is not aligned to %d bytes", w)
	}
	check := r.CheckBase
	if o.SkipBaseDigest {
		check = func(base []byte, _ int) error { return r.checkBaseSize(base) }
	}
	if err := check(base, o.Workers); err != nil {
		return err
	}
	if err := r.CheckBlob(ctx, o.Workers); err != nil {
		return err
	}
	err := plan.Each(ctx, o.Workers, len(x.Records), func(_ context.Context, i int) error {
		rec := &x.Records[i]
		from := rec.OutputWord * uint64(w)
		to := from + uint64(rec.UncompressedBytes)
		var b []byte
		if base != nil {
			b = base[from:to]
		}
		buf := getScratch()
		defer putScratch(buf)
		return r.decodeVerified(i, dst[from:to], b, buf)
	})
	if err != nil || o.SkipTargetDigest {
		return err
	}
	if got := digest.Of(dst, o.Workers); got != x.TargetDigest {
		return status.Errorf(status.ErrTargetMismatch, "rebuilt tensor has digest %v, expected %v", got, x.TargetDigest)
	}
	return nil
}

// CheckBlob verifies the checksum of every chunk. Checksums are fast and chunks
// small, so a task is many chunks.
func (r *Reader) CheckBlob(ctx context.Context, workers int) error {
	const taskBytes = 1 << 20
	records := r.index.Records
	var starts []int
	for i := range records {
		if i == 0 || records[i].DataOffset-records[starts[len(starts)-1]].DataOffset >= taskBytes {
			starts = append(starts, i)
		}
	}
	return plan.Each(ctx, workers, len(starts), func(_ context.Context, task int) error {
		end := len(records)
		if task+1 < len(starts) {
			end = starts[task+1]
		}
		for i := starts[task]; i < end; i++ {
			if _, err := r.chunkData(i); err != nil {
				return err
			}
		}
		return nil
	})
}

// chunkData returns the bytes of chunk i once its checksum is verified.
func (r *Reader) chunkData(i int) ([]byte, error) {
	rec := &r.index.Records[i]
	data := r.rawChunk(i)
	return data, status.InChunk(rec.Check(data), i)
}

func (r *Reader) rawChunk(i int) []byte {
	rec := &r.index.Records[i]
	return r.blob[rec.DataOffset : rec.DataOffset+uint64(rec.CompressedBytes)]
}

// decodeChunk verifies and rebuilds chunk i into dst. base is the base of the
// chunk, nil if there is none; dst and base may be the same.
func (r *Reader) decodeChunk(i int, dst, base []byte, buf *scratch) error {
	if _, err := r.chunkData(i); err != nil {
		return err
	}
	return r.decodeVerified(i, dst, base, buf)
}

func (r *Reader) decodeVerified(i int, dst, base []byte, buf *scratch) error {
	x, data := r.index, r.rawChunk(i)
	w := x.Type.WordBytes()
	var exceptions []uint32
	var values []byte
	if x.Residual == residual.Add {
		var err error
		if exceptions, values, data, err = splitExceptions(data, len(dst)/w, w, &buf.exceptions); err != nil {
			return status.InChunk(err, i)
		}
	}
	b := buf.baseOf(base, 0, uint64(len(dst)), w)
	if rebuilder, ok := r.dec.(codec.Rebuilder); ok && x.Residual == residual.Bit {
		return status.InChunk(rebuilder.Rebuild(dst, b, data, x.Records[i].Deltas), i)
	}
	res := resize(&buf.res, len(dst))
	if err := r.dec.Decode(codec.Block{Type: x.Type, Base: b, Residual: res}, data, x.Records[i].Deltas); err != nil {
		return status.InChunk(err, i)
	}
	residual.Apply(x.Residual, x.Type, dst, b, res)
	for k, e := range exceptions {
		copy(dst[int(e)*w:(int(e)+1)*w], values[k*w:])
	}
	return nil
}

// splitExceptions undoes appendExceptions for a chunk of words words.
func splitExceptions(data []byte, words, wordBytes int, buf *[]uint32) (exceptions []uint32, values, rest []byte, err error) {
	if len(data) < 8 {
		return nil, nil, nil, status.Errorf(status.ErrCorrupt, "chunk has %d bytes, expected at least 8 for its exceptions", len(data))
	}
	n := uint64(binary.LittleEndian.Uint32(data))
	bare := 4 + n*uint64(4+wordBytes)
	size := (bare + 7) &^ 7
	if n > uint64(words) || size > uint64(len(data)) {
		return nil, nil, nil, status.Errorf(status.ErrCorrupt, "%d exceptions in a chunk of %d words and %d bytes", n, words, len(data))
	}
	exceptions = (*buf)[:0]
	next := uint32(0)
	for k := range n {
		e := binary.LittleEndian.Uint32(data[4+4*k:])
		if e < next || uint64(e) >= uint64(words) {
			return nil, nil, nil, status.Errorf(status.ErrCorrupt, "exception %d at word %d, expected %d to %d", k, e, next, words-1)
		}
		exceptions = append(exceptions, e)
		next = e + 1
	}
	*buf = exceptions
	for _, pad := range data[bare:size] {
		if pad != 0 {
			return nil, nil, nil, status.Errorf(status.ErrCorrupt, "padding after the exceptions is not zero")
		}
	}
	return exceptions, data[4+4*n : bare], data[size:], nil
}
