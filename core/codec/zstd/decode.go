package zstd

import (
	"encoding/binary"

	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

type decoder struct{}

func (decoder) Decode(b codec.Block, data []byte, deltas uint32) error {
	words, size := b.Words(), b.Type.WordBytes()
	if uint64(deltas) > uint64(words) {
		return status.Errorf(status.ErrCorrupt, "%d deltas in a chunk of %d words", deltas, words)
	}
	if deltas == 0 {
		if len(data) != 0 {
			return status.Errorf(status.ErrCorrupt, "chunk without deltas has %d bytes, expected none", len(data))
		}
		clear(b.Residual)
		return nil
	}
	w := works.Get().(*work)
	defer works.Put(w)
	n, gaps := int(deltas), gapBytes(words)
	if n == words {
		gaps = 0
	}
	planes, err := w.readChunk(data, gaps+size, n)
	if err != nil {
		return err
	}
	switch size {
	case 1:
		return decodeWords(word.View[uint8](b.Residual), planes, gaps, n, w)
	case 2:
		return decodeWords(word.View[uint16](b.Residual), planes, gaps, n, w)
	case 4:
		return decodeWords(word.View[uint32](b.Residual), planes, gaps, n, w)
	}
	return decodeWords(word.View[uint64](b.Residual), planes, gaps, n, w)
}

// readChunk returns the planes of a chunk, count of n bytes each.
func (w *work) readChunk(data []byte, count, n int) ([][]byte, error) {
	directory := pad(entryBytes * count)
	if len(data) < directory {
		return nil, status.Errorf(status.ErrCorrupt, "chunk has %d bytes, expected at least %d for its directory", len(data), directory)
	}
	if !allZero(data[entryBytes*count : directory]) {
		return nil, status.Errorf(status.ErrCorrupt, "padding of the directory is not zero")
	}
	w.planes = planesOf(&w.planeMem, w.planes, count, n)
	rest := data[directory:]
	for k := range w.planes {
		entry := binary.LittleEndian.Uint32(data[entryBytes*k:])
		kind, size := entry>>kindShift, int(entry&valueMask)
		if kind == kindFill {
			if size > 255 {
				return nil, status.Errorf(status.ErrCorrupt, "plane %d is filled with %d, expected a byte", k, size)
			}
			fill(w.planes[k], byte(size))
			continue
		}
		if size > len(rest) || pad(size) > len(rest) {
			return nil, status.Errorf(status.ErrCorrupt, "plane %d has %d bytes and padding, expected at most %d", k, size, len(rest))
		}
		if !allZero(rest[size:pad(size)]) {
			return nil, status.Errorf(status.ErrCorrupt, "padding of plane %d is not zero", k)
		}
		var err error
		if w.planes[k], err = readStream(w.planes[k], kind, rest[:size:size]); err != nil {
			return nil, err
		}
		rest = rest[pad(size):]
	}
	if len(rest) != 0 {
		return nil, status.Errorf(status.ErrCorrupt, "%d bytes after the last plane", len(rest))
	}
	return w.planes, nil
}

// readStream reads a stored or compressed stream into plane.
func readStream(plane []byte, kind uint32, src []byte) ([]byte, error) {
	switch kind {
	case kindStored:
		if len(src) != len(plane) {
			return nil, status.Errorf(status.ErrCorrupt, "stored plane has %d bytes, expected %d", len(src), len(plane))
		}
		copy(plane, src)
		return plane, nil
	case kindZstd:
		if err := checkFrame(src, len(plane)); err != nil {
			return nil, err
		}
		d := decompressors.Get().(*zstd.Decoder)
		defer decompressors.Put(d)
		out, err := d.DecodeAll(src, plane[:0])
		if err != nil {
			return nil, status.Errorf(status.ErrCorrupt, "zstd: %v", err)
		}
		if len(out) != len(plane) {
			return nil, status.Errorf(status.ErrCorrupt, "zstd frame gave %d bytes, expected %d", len(out), len(plane))
		}
		return out, nil
	}
	return nil, status.Errorf(status.ErrCorrupt, "plane is of kind %d, expected %d to %d", kind, kindStored, kindFill)
}

// decodeWords fills res from planes of n bytes, the first gaps of which are
// gaps; dense if there are none.
func decodeWords[T word.Word](res []T, planes [][]byte, gaps, n int, w *work) error {
	if gaps == 0 {
		joinWords(res, planes)
		for i, z := range res {
			res[i] = word.Unzigzag(z)
		}
		return nil
	}
	clear(res)
	if cap(w.numbers) < n {
		w.numbers = make([]uint32, n)
	}
	w.numbers = w.numbers[:n]
	joinWords(w.numbers, planes[:gaps])
	values := word.View[T](grow(&w.wordMem, n*word.Size[T]()))
	joinWords(values, planes[gaps:])
	at := uint64(0)
	for i, gap := range w.numbers {
		at += uint64(gap)
		if at >= uint64(len(res)) {
			return status.Errorf(status.ErrCorrupt, "delta %d is at word %d, expected at most %d", i, at, len(res)-1)
		}
		if values[i] == 0 {
			return status.Errorf(status.ErrCorrupt, "delta %d, at word %d, changes nothing", i, at)
		}
		res[at] = word.Unzigzag(values[i])
		at++
	}
	return nil
}

func fill(b []byte, v byte) {
	for i := range b {
		b[i] = v
	}
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
