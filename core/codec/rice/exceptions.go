package rice

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// positionBytes is the size of a position in a chunk.
func positionBytes(words int) int {
	if words <= shortWords {
		return 2
	}
	return 4
}

// alignUp rounds a size up to a multiple of codec.Align.
func alignUp(n int) int { return (n + codec.Align - 1) / codec.Align * codec.Align }

// exceptionSize returns the bytes that n exceptions of a chunk take.
func exceptionSize(n, words, wordBytes int) int {
	return alignUp(n*positionBytes(words)) + alignUp(n*wordBytes)
}

// appendExceptions appends the words at the given positions.
func appendExceptions[T word.Word](dst []byte, res []T, positions []uint32) []byte {
	size := positionBytes(len(res))
	for _, p := range positions {
		if size == 2 {
			dst = binary.LittleEndian.AppendUint16(dst, uint16(p))
		} else {
			dst = binary.LittleEndian.AppendUint32(dst, p)
		}
	}
	for n := len(positions) * size; n%codec.Align != 0; n++ {
		dst = append(dst, 0)
	}
	for _, p := range positions {
		dst = append(dst, word.Bytes(res[p:p+1])...)
	}
	for n := len(positions) * word.Size[T](); n%codec.Align != 0; n++ {
		dst = append(dst, 0)
	}
	return dst
}

// exceptions are the words that a chunk lists.
type exceptions[T word.Word] struct {
	positions []uint32
	words     []T
}

// read reads n exceptions of a chunk, which are all of data.
func (x *exceptions[T]) read(data []byte, n, words int) error {
	size := positionBytes(words)
	split := alignUp(n * size)
	x.positions, x.words = x.positions[:0], x.words[:0]
	next := uint32(0)
	for i := range n {
		var p uint32
		if size == 2 {
			p = uint32(binary.LittleEndian.Uint16(data[2*i:]))
		} else {
			p = binary.LittleEndian.Uint32(data[4*i:])
		}
		if p < next || uint64(p) >= uint64(words) {
			return status.Errorf(status.ErrCorrupt, "rice exception %d is at word %d, expected %d to %d", i, p, next, words-1)
		}
		next = p + 1
		var w [1]T
		copy(word.Bytes(w[:]), data[split+i*word.Size[T]():])
		x.positions, x.words = append(x.positions, p), append(x.words, w[0])
	}
	for _, pad := range [][]byte{data[n*size : split], data[split+n*word.Size[T]():]} {
		for _, b := range pad {
			if b != 0 {
				return status.Errorf(status.ErrCorrupt, "rice exceptions are not padded with zeros")
			}
		}
	}
	return nil
}

// merge checks that every exception is one, and puts those of the dense class
// in the place of what stands for them. The others stay in x.
func (d *decoder[T]) merge(x *exceptions[T], at *slots, base []T, positions []uint32, values []T) error {
	next := at.start
	kept := 0
	for i, p := range x.positions {
		v := x.words[i]
		k := key(d.class, base[p])
		c := classOf(d.class.steps[k])
		slot := next[c]
		for slot < at.end[c] && positions[slot] < p {
			slot++
		}
		next[c] = slot
		coded := slot < at.end[c] && positions[slot] == p
		context := d.class.context[k]
		switch {
		case c == dense:
			// Every dense word has a slot.
			if values[slot] != d.placeholder[context] || d.codes[context].Find(uint64(v)) >= 0 {
				return errNoException
			}
			values[slot] = v
			continue
		case coded || v == 0:
			return errNoException
		case d.tables.gaps[c].coded:
			if d.codes[context].Find(uint64(v)) >= 0 {
				return errNoException
			}
		case v == 1 || v == ^T(0):
			return errNoException
		}
		x.positions[kept], x.words[kept] = p, v
		kept++
	}
	x.positions, x.words = x.positions[:kept], x.words[:kept]
	return nil
}

var errNoException = status.Errorf(status.ErrCorrupt, "a rice exception is at a word that has a value, or has a value that needs none")
