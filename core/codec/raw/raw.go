// Package raw is the codec that does not compress: word numbers and residual
// words as they are, or all residual words where that is smaller. It serves
// debugging, hardware that has nothing better, and as the reference that other
// codecs are compared with. FORMAT.md gives the bytes of a chunk.
package raw

import (
	"encoding/binary"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// Codec is the codec. It has no tables, and levels make no difference.
var Codec codec.Codec = rawCodec{}

func init() { codec.Register(Codec) }

const (
	// chunkWords makes word numbers fit 16 bits in a GPU's registers and the
	// 32-byte chunk record negligible: 0.02% of a dense bf16 chunk.
	chunkWords = 1 << 16

	numberBytes = 4 // of a word number
)

type rawCodec struct{}

func (rawCodec) ID() codec.ID { return codec.Raw }

func (rawCodec) Plan(dtype.Type, []codec.Block, uint64, codec.Level) codec.Encoder { return encoder{} }

func (rawCodec) NewDecoder(t dtype.Type, tables []byte) (codec.Decoder, error) {
	if len(tables) != 0 {
		return nil, status.Errorf(status.ErrCorrupt, "raw codec with %d bytes of tables, expected none", len(tables))
	}
	return decoder{}, nil
}

// pad rounds n up to the alignment of a section.
func pad(n int) int { return (n + 7) &^ 7 }

type encoder struct{}

var numbersPool = sync.Pool{New: func() any { return new([]uint32) }}

func (encoder) Tables() []byte  { return nil }
func (encoder) ChunkWords() int { return chunkWords }

func (encoder) Encode(dst []byte, b codec.Block) ([]byte, uint32, error) {
	w := b.Type.WordBytes()
	changed := residual.CountChanged(b.Residual, w)
	if pad(numberBytes*changed)+pad(w*changed) >= pad(len(b.Residual)) {
		dst = append(dst, b.Residual...)
		return zeros(dst, pad(len(b.Residual))-len(b.Residual)), uint32(b.Words()), nil
	}
	buf := numbersPool.Get().(*[]uint32)
	defer numbersPool.Put(buf)
	numbers := residual.AppendChanged((*buf)[:0], b.Residual, w)
	*buf = numbers
	for _, n := range numbers {
		dst = binary.LittleEndian.AppendUint32(dst, n)
	}
	dst = zeros(dst, pad(numberBytes*changed)-numberBytes*changed)
	for _, n := range numbers {
		dst = append(dst, b.Residual[int(n)*w:(int(n)+1)*w]...)
	}
	return zeros(dst, pad(w*changed)-w*changed), uint32(changed), nil
}

// zeros appends n < 8 zero bytes.
func zeros(dst []byte, n int) []byte { return append(dst, make([]byte, 8)[:n]...) }

type decoder struct{}

func (decoder) Decode(b codec.Block, data []byte, deltas uint32) error {
	w, words := b.Type.WordBytes(), b.Words()
	if uint64(deltas) > uint64(words) {
		return status.Errorf(status.ErrCorrupt, "%d deltas in a chunk of %d words", deltas, words)
	}
	n := int(deltas)
	numberSize, valueSize := numberBytes*n, w*n
	if n == words {
		numberSize = 0
	}
	if want := pad(numberSize) + pad(valueSize); len(data) != want {
		return status.Errorf(status.ErrCorrupt, "chunk of %d deltas in %d words has %d bytes, expected %d", n, words, len(data), want)
	}
	numbers, values := data[:pad(numberSize)], data[pad(numberSize):]
	if !allZero(numbers[numberSize:]) || !allZero(values[valueSize:]) {
		return status.Errorf(status.ErrCorrupt, "padding of the chunk is not zero")
	}
	if n == words {
		copy(b.Residual, values)
		return nil
	}
	clear(b.Residual)
	return scatter(b.Residual, numbers[:numberSize], values, w)
}

// scatter stores values at the words that numbers says.
func scatter(res, numbers, values []byte, w int) error {
	le := binary.LittleEndian
	next, words := uint32(0), uint32(len(res)/w)
	for i := 0; len(numbers) > 0; i++ {
		n := le.Uint32(numbers)
		numbers = numbers[numberBytes:]
		if n < next || n >= words {
			return status.Errorf(status.ErrCorrupt, "delta %d is at word %d, expected %d to %d", i, n, next, words-1)
		}
		next = n + 1
		word := res[int(n)*w : (int(n)+1)*w]
		if copy(word, values[i*w:]); allZero(word) {
			return status.Errorf(status.ErrCorrupt, "delta %d, at word %d, changes nothing", i, n)
		}
	}
	return nil
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}
