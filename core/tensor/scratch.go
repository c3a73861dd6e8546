package tensor

import (
	"sync"

	"github.com/tpde-project/tpde/core/word"
)

// scratch is the working memory of one chunk. Its buffers grow to the largest
// chunk seen and are aligned to 8 bytes.
type scratch struct {
	base, target, res []uint64
	exceptions        []uint32
}

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

func getScratch() *scratch  { return scratchPool.Get().(*scratch) }
func putScratch(s *scratch) { scratchPool.Put(s) }

// resize makes *buf hold n bytes and returns them. The contents are undefined.
func resize(buf *[]uint64, n int) []byte {
	if need := (n + 7) / 8; cap(*buf) < need {
		*buf = make([]uint64, need)
	}
	return word.Bytes((*buf)[:cap(*buf)])[:n:n]
}

// aligned returns b itself if it is aligned to size bytes, else a copy in buf.
// Tensors of a safetensors file may start at any byte.
func aligned(b []byte, size int, buf *[]uint64) []byte {
	if word.Aligned(b, size) {
		return b
	}
	c := resize(buf, len(b))
	copy(c, b)
	return c
}

// baseOf returns base[from:to], aligned; zeros if there is no base.
func (s *scratch) baseOf(base []byte, from, to uint64, wordBytes int) []byte {
	if base == nil {
		z := resize(&s.base, int(to-from))
		clear(z)
		return z
	}
	return aligned(base[from:to], wordBytes, &s.base)
}
