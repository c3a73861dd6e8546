// Package bitio writes and reads bit strings, most significant bit first, for
// the codecs: Writer appends to a buffer, Window looks at any position of one
// (for decoders of several strings at once), and Reader walks small ones such
// as tables and heads.
//
// Elias-gamma codes with plain bits (exp-Golomb codes) are used for counts and
// gaps: see PutGamma.
package bitio

import (
	"encoding/binary"
	"math/bits"
)

// Writer appends bits, most significant first. The zero value is empty.
type Writer struct {
	buf []byte
	acc uint64 // the low n bits are pending
	n   uint
}

// Reset empties the writer and makes it write to buf[:0].
func (w *Writer) Reset(buf []byte) { *w = Writer{buf: buf[:0]} }

// Put appends the low n bits of v. n is at most 57 and v has no higher bits.
func (w *Writer) Put(v uint64, n uint) {
	if w.n+n > 64 {
		w.flush()
	}
	w.acc = w.acc<<n | v
	w.n += n
}

// PutLong appends the low n bits of v, n at most 64; higher bits are ignored.
func (w *Writer) PutLong(v uint64, n uint) {
	if n > 32 {
		w.Put(v>>32&(1<<(n-32)-1), n-32)
		n = 32
	}
	w.Put(v&(1<<n-1), n)
}

// PutGamma appends the exp-Golomb code of v of order k: v + 2^k, led by as
// many zeros as it has bits beyond k+1: up to 57 bits, 2^28 for order 0.
func (w *Writer) PutGamma(v uint64, k uint) {
	x := v + 1<<k
	zeros := uint(bits.Len64(x)) - 1 - k
	w.Put(x, 2*zeros+1+k)
}

// flush moves whole bytes to the buffer; at most 7 bits stay pending.
func (w *Writer) flush() {
	whole := w.n &^ 7
	w.buf = binary.BigEndian.AppendUint64(w.buf, w.acc<<(64-w.n))
	w.buf = w.buf[:len(w.buf)-8+int(whole/8)]
	w.n -= whole
}

// Pos returns the number of bits written.
func (w *Writer) Pos() int { return 8*len(w.buf) + int(w.n) }

// Finish pads with zero bits to a multiple of align bytes and returns the
// bytes, which are valid until the writer is used again.
func (w *Writer) Finish(align int) []byte {
	if w.n > 0 {
		w.Put(0, -w.n&7)
		w.flush()
	}
	for len(w.buf)%align != 0 {
		w.buf = append(w.buf, 0)
	}
	return w.buf
}

// Slack is how many readable bytes follow the last bit of a buffer given to
// Window, so that a window can always be loaded.
const Slack = 8

// Window returns the bits of buf from pos on, most significant first; the
// first 57 are valid. A pos beyond the data gives the bits at its end: the
// caller finds out when it compares positions, and nothing is read outside buf.
func Window(buf []byte, pos uint) uint64 {
	i := min(pos>>3, uint(len(buf)-Slack))
	return binary.BigEndian.Uint64(buf[i:]) << (pos & 7)
}

// ZeroFrom reports whether the bits of buf from pos on are all zero, as
// padding is.
func ZeroFrom(buf []byte, pos int) bool {
	if pos%8 != 0 && buf[pos/8]<<(pos%8) != 0 {
		return false
	}
	for _, b := range buf[(pos+7)/8:] {
		if b != 0 {
			return false
		}
	}
	return true
}
