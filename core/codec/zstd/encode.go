package zstd

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// maxPlanes is four of gaps and eight of values.
const maxPlanes = 12

// layout says how a chunk holds its words, where that is open.
type layout uint8

const (
	either layout = iota // try both
	sparse
	dense
)

// Below this share of changed words, one in denseFrom, no chunk is dense: a
// plane of nearly nothing but zeros takes a bit a word in Huffman codes.
const denseFrom = 16

// encoder holds what Plan found out. Nothing of it is needed to decode.
type encoder struct {
	typ        dtype.Type
	level      codec.Level
	chunkWords int
	layout     layout // of chunks between one in denseFrom and all changed
	// Planes 0 to 3 are gaps and 4 on values, so that methods do not depend on
	// how many planes the gaps take.
	sparse, dense [maxPlanes]method
}

func (e *encoder) Tables() []byte  { return nil }
func (e *encoder) ChunkWords() int { return e.chunkWords }

func (e *encoder) Encode(dst []byte, b codec.Block) ([]byte, uint32, error) {
	n := b.Words()
	changed := residual.CountChanged(b.Residual, b.Type.WordBytes())
	if changed == 0 {
		return dst, 0, nil
	}
	w := works.Get().(*work)
	defer works.Put(w)
	l := e.layout
	switch {
	case changed == n:
		l = dense
	case changed*denseFrom < n:
		l = sparse
	}
	start := len(dst)
	if l != dense {
		dst = e.appendSparse(dst, b, w)
	}
	if l == sparse {
		return dst, uint32(changed), nil
	}
	if l == dense {
		return e.appendDense(dst, b, w), uint32(n), nil
	}
	w.other = e.appendDense(w.other[:0], b, w)
	if len(w.other) >= len(dst)-start {
		return dst, uint32(changed), nil
	}
	return append(dst[:start], w.other...), uint32(n), nil
}

func (e *encoder) appendDense(dst []byte, b codec.Block, w *work) []byte {
	return appendChunk(dst, densePlanes(b, w), methodsFrom(&e.dense, 4), e.level, w)
}

func (e *encoder) appendSparse(dst []byte, b codec.Block, w *work) []byte {
	planes := sparsePlanes(b, w)
	return appendChunk(dst, planes, methodsFrom(&e.sparse, 4-gapBytes(b.Words())), e.level, w)
}

// methodsFrom returns m without its first skip entries.
func methodsFrom(m *[maxPlanes]method, skip int) *[maxPlanes]method {
	var out [maxPlanes]method
	copy(out[:], m[skip:])
	return &out
}

// densePlanes returns the value planes of all words.
func densePlanes(b codec.Block, w *work) [][]byte {
	size := b.Type.WordBytes()
	w.planes = planesOf(&w.planeMem, w.planes, size, b.Words())
	switch size {
	case 1:
		splitValues(w.planes, word.View[uint8](b.Residual), &w.wordMem)
	case 2:
		splitValues(w.planes, word.View[uint16](b.Residual), &w.wordMem)
	case 4:
		splitValues(w.planes, word.View[uint32](b.Residual), &w.wordMem)
	case 8:
		splitValues(w.planes, word.View[uint64](b.Residual), &w.wordMem)
	}
	return w.planes
}

// sparsePlanes returns the gap and value planes of the changed words.
func sparsePlanes(b codec.Block, w *work) [][]byte {
	size := b.Type.WordBytes()
	w.numbers = residual.AppendChanged(w.numbers[:0], b.Residual, size)
	gaps := gapBytes(b.Words())
	w.planes = planesOf(&w.planeMem, w.planes, gaps+size, len(w.numbers))
	values := w.planes[gaps:]
	switch size {
	case 1:
		splitChanged(values, word.View[uint8](b.Residual), w.numbers, &w.wordMem)
	case 2:
		splitChanged(values, word.View[uint16](b.Residual), w.numbers, &w.wordMem)
	case 4:
		splitChanged(values, word.View[uint32](b.Residual), w.numbers, &w.wordMem)
	case 8:
		splitChanged(values, word.View[uint64](b.Residual), w.numbers, &w.wordMem)
	}
	next := uint32(0)
	for i, n := range w.numbers {
		w.numbers[i] = n - next
		next = n + 1
	}
	splitWords(w.planes[:gaps], w.numbers)
	return w.planes
}
