package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"
	"unsafe"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// deltaList is the uncompressed form of a delta: element numbers, what to add
// there, and where each chunk begins in the two.
type deltaList struct {
	dtype   dtype.Type
	indices []int64
	values  []byte
	starts  []int64 // one more than there are chunks
}

//export goScatterAdd
func goScatterAdd(dst unsafe.Pointer, dstCap C.uint64_t, base unsafe.Pointer, baseBytes C.uint64_t, dtype C.uint32_t, indices *C.int64_t, values unsafe.Pointer, deltas C.uint64_t, chunkStarts *C.int64_t, numChunks C.uint64_t, workers C.uint32_t) C.int32_t {
	return call(func() error {
		b, err := view("base", base, baseBytes)
		if err != nil {
			return err
		}
		d, err := destination(dst, dstCap, uint64(baseBytes), b)
		if err != nil {
			return err
		}
		l, err := newDeltaList(dtype, indices, values, uint64(deltas), chunkStarts, uint64(numChunks))
		if err != nil {
			return err
		}
		return l.addTo(d, b, int(workers))
	})
}

func newDeltaList(number C.uint32_t, indices *C.int64_t, values unsafe.Pointer, deltas uint64, starts *C.int64_t, chunks uint64) (*deltaList, error) {
	var l deltaList
	var err error
	if l.dtype, err = dtypeOf(number); err != nil {
		return nil, err
	}
	if l.dtype.Bits()%8 != 0 {
		return nil, argument("dtype %v has elements smaller than a byte, which cannot be added one by one", l.dtype)
	}
	if deltas > 1<<56 || chunks > 1<<56 {
		return nil, argument("%d deltas in %d chunks, more than memory can hold", deltas, chunks)
	}
	if l.indices, err = array("indices", (*int64)(indices), deltas); err != nil {
		return nil, err
	}
	if l.values, err = view("values", values, C.uint64_t(deltas*uint64(l.elementBytes()))); err != nil {
		return nil, err
	}
	if l.starts, err = array("chunk_starts", (*int64)(starts), chunks+1); err != nil {
		return nil, err
	}
	return &l, l.checkStarts()
}

func (l *deltaList) elementBytes() int { return l.dtype.Bits() / 8 }

func (l *deltaList) checkStarts() error {
	last := len(l.starts) - 1
	if l.starts[0] != 0 || l.starts[last] != int64(len(l.indices)) {
		return argument("chunk_starts go from %d to %d, expected 0 to %d (the number of deltas)", l.starts[0], l.starts[last], len(l.indices))
	}
	for c := range last {
		if l.starts[c+1] < l.starts[c] {
			return argument("chunk %d starts at delta %d and ends at %d, expected it not to end before it starts", c, l.starts[c], l.starts[c+1])
		}
	}
	return nil
}

// checkIndices checks that chunk c lies in a tensor of elements elements and
// that its indices increase, also over the end of the chunk before.
func (l *deltaList) checkIndices(c int, elements int64) error {
	from, to := l.starts[c], l.starts[c+1]
	before := int64(-1)
	if from > 0 {
		before = l.indices[from-1]
	}
	for i, at := range l.indices[from:to] {
		if at <= before || at >= elements {
			return argument("index %d of chunk %d is %d, expected above %d and below %d (strictly increasing, within the tensor)", i, c, at, before, elements)
		}
		before = at
	}
	return nil
}

// addTo sets dst to base with the deltas added. Everything is checked before
// anything is written.
func (l *deltaList) addTo(dst, base []byte, workers int) error {
	size := l.elementBytes()
	w := l.dtype.WordBytes()
	switch {
	case len(base)%size != 0:
		return argument("base has %d bytes, expected a multiple of %d for %v", len(base), size, l.dtype)
	case !word.Aligned(dst, w) || !word.Aligned(l.values, w):
		return argument("dst or values is not aligned to the %d bytes of a word of %v", w, l.dtype)
	}
	ctx, chunks := context.Background(), len(l.starts)-1
	err := plan.Each(ctx, workers, chunks, func(_ context.Context, c int) error {
		return l.checkIndices(c, int64(len(base)/size))
	})
	if err != nil {
		return err
	}
	if err := copyParallel(dst, base, workers); err != nil {
		return err
	}
	return plan.Each(ctx, workers, chunks, func(_ context.Context, c int) error {
		from, to := int(l.starts[c]), int(l.starts[c+1])
		residual.ScatterAdd(l.dtype, dst, l.wordIndices(from, to), l.values[from*size:to*size])
		return nil
	})
}

// wordIndices returns the numbers of the words of elements indices[from:to].
func (l *deltaList) wordIndices(from, to int) []int64 {
	if l.elementBytes() == l.dtype.WordBytes() {
		return l.indices[from:to]
	}
	words := make([]int64, 0, 2*(to-from)) // C64: real and imaginary part
	for _, at := range l.indices[from:to] {
		words = append(words, 2*at, 2*at+1)
	}
	return words
}

// copyParallel copies base to dst, unless they are the same memory.
func copyParallel(dst, base []byte, workers int) error {
	if len(base) == 0 || &dst[0] == &base[0] {
		return nil
	}
	const block = 8 << 20
	n := (len(base) + block - 1) / block
	return plan.Each(context.Background(), workers, n, func(_ context.Context, i int) error {
		from, to := i*block, min((i+1)*block, len(base))
		copy(dst[from:to], base[from:to])
		return nil
	})
}
