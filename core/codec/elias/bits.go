package elias

import (
	"encoding/binary"
	"math/bits"
)

// writer appends bits, most significant first.
type writer struct {
	buf []byte
	acc uint64 // the low n bits are pending
	n   uint
}

// put appends the low n bits of v. n is at most 57 and v has no higher bits.
func (w *writer) put(v uint64, n uint) {
	if w.n+n > 64 {
		w.flush()
	}
	w.acc = w.acc<<n | v
	w.n += n
}

// flush moves whole bytes to the buffer; at most 7 bits stay pending.
func (w *writer) flush() {
	whole := w.n &^ 7
	w.buf = binary.BigEndian.AppendUint64(w.buf, w.acc<<(64-w.n))
	w.buf = w.buf[:len(w.buf)-8+int(whole/8)]
	w.n -= whole
}

// pos returns the number of bits written.
func (w *writer) pos() int { return 8*len(w.buf) + int(w.n) }

// finish pads with zero bits to a multiple of 4 bytes and returns the bytes.
func (w *writer) finish() []byte {
	if w.n > 0 {
		w.put(0, -w.n&7)
		w.flush()
	}
	for len(w.buf)%4 != 0 {
		w.buf = append(w.buf, 0)
	}
	return w.buf
}

// putGamma appends the code of v with k plain bits: v + 2^k, led by as many
// zeros as it has bits beyond k+1. v + 2^k is below 2^(k+16).
func (w *writer) putGamma(v uint64, k uint) {
	x := v + 1<<k
	zeros := uint(bits.Len64(x)) - 1 - k
	w.put(x, 2*zeros+1+k)
}

// slack is how many readable bytes follow the last bit of a reader's buffer,
// so that a window can always be loaded.
const slack = 8

// window returns the bits from pos on, most significant first; the first 57
// are valid. A pos beyond the data gives the bits at its end: the caller finds
// out when it compares positions, and nothing is read outside buf.
func window(buf []byte, pos uint) uint64 {
	i := min(pos>>3, uint(len(buf)-slack))
	return binary.BigEndian.Uint64(buf[i:]) << (pos & 7)
}
