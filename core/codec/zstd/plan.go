package zstd

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
)

const (
	// Planes of 64 KiB are what nvCOMP decodes fastest; beyond that a chunk
	// gains nothing but loses parallelism.
	planeBytes = 64 << 10

	// Where few words change, a chunk has more of them, so that Huffman tables
	// and the chunk record are paid less often; up to these limits.
	maxChunkWords = 1 << 18
	maxChunkBytes = 1 << 20
)

// tally counts what the planes of the samples take, in bytes, by compressor.
type tally [maxPlanes]struct{ entropy, matches int }

func newEncoder(t dtype.Type, samples []codec.Block, level codec.Level) *encoder {
	e := &encoder{typ: t, level: level}
	words, changed := 0, 0
	for _, b := range samples {
		words += b.Words()
		changed += residual.CountChanged(b.Residual, t.WordBytes())
	}
	e.chunkWords = chunkWords(t, words, changed)
	if level == codec.LevelSmall {
		return e // tries everything on every chunk
	}
	e.learn(samples)
	return e
}

// chunkWords returns the largest power of two for which planes are expected to
// stay within planeBytes. Without samples it assumes that all words change.
func chunkWords(t dtype.Type, words, changed int) int {
	n := planeBytes
	limit := min(maxChunkWords, maxChunkBytes/t.WordBytes())
	for n < limit && words > 0 && 2*n*changed <= planeBytes*words {
		n *= 2
	}
	return n
}

// learn codes the samples in every way and keeps to what was best.
func (e *encoder) learn(samples []codec.Block) {
	w := works.Get().(*work)
	defer works.Put(w)
	var gapped, plain tally
	sparseSize, denseSize := 0, 0
	for _, b := range samples {
		n := b.Words()
		changed := residual.CountChanged(b.Residual, e.typ.WordBytes())
		if changed == 0 {
			continue
		}
		mayBeDense := changed*denseFrom >= n
		if changed < n {
			size := gapped.add(sparsePlanes(b, w), 4-gapBytes(n), e.level, w)
			if mayBeDense {
				sparseSize += size
			}
		}
		if mayBeDense {
			size := plain.add(densePlanes(b, w), 4, e.level, w)
			if changed < n {
				denseSize += size
			}
		}
	}
	e.sparse, e.dense = gapped.methods(e.level), plain.methods(e.level)
	switch { // a clear winner saves the other's trial in every chunk
	case denseSize*50 < sparseSize*49:
		e.layout = dense
	case sparseSize*50 < denseSize*49:
		e.layout = sparse
	}
}

// add counts planes, the first of which is number skip, and returns the size
// that the better compressor of each would reach.
func (t *tally) add(planes [][]byte, skip int, level codec.Level, w *work) (size int) {
	for k, p := range planes {
		if constant(p) {
			continue // takes no stream
		}
		entropySize, matchesSize := len(p), len(p)
		if len(p) >= minFrame {
			f := w.frames(p, both, level)
			entropySize, matchesSize = min(entropySize, len(f[0])), min(matchesSize, len(f[1]))
		}
		t[skip+k].entropy += entropySize
		t[skip+k].matches += matchesSize
		size += min(entropySize, matchesSize)
	}
	return size
}

// methods chooses a compressor for each plane. Matching is several times slower
// than entropy coding, so it must save some of the whole chunk; planes without
// samples leave it open.
func (t *tally) methods(level codec.Level) (out [maxPlanes]method) {
	leastShare := 200
	if level == codec.LevelFast {
		leastShare = 50
	}
	total := 0
	for _, c := range t {
		total += min(c.entropy, c.matches)
	}
	for k, c := range t {
		switch {
		case c.entropy == 0:
			out[k] = both
		case (c.entropy-c.matches)*leastShare > total:
			out[k] = matches
		default:
			out[k] = entropy
		}
	}
	return out
}
