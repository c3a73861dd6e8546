package bitio

import "math/bits"

// Reader reads bits off a short byte string, most significant first. Reading
// past the end gives zeros; OK tells.
type Reader struct {
	buf []byte
	pos int
}

// NewReader returns a reader of buf.
func NewReader(buf []byte) *Reader { return &Reader{buf: buf} }

// Pos returns the number of bits read.
func (r *Reader) Pos() int { return r.pos }

// OK reports whether all bits read were there.
func (r *Reader) OK() bool { return r.pos <= 8*len(r.buf) }

// Padded reports whether everything was there and all that is left are less
// than 8*align bits, all zero: what Finish appends.
func (r *Reader) Padded(align int) bool {
	left := 8*len(r.buf) - r.pos
	return left >= 0 && left < 8*align && ZeroFrom(r.buf, r.pos)
}

// Get reads n bits, at most 64.
func (r *Reader) Get(n uint) uint64 {
	var v uint64
	for n > 0 {
		if i := r.pos >> 3; i < len(r.buf) {
			have := uint(8 - r.pos&7)
			take := min(n, have)
			part := uint64(r.buf[i]) >> (have - take) & (1<<take - 1)
			v, n = v<<take|part, n-take
			r.pos += int(take)
			continue
		}
		r.pos += int(n)
		return v << n
	}
	return v
}

// maxZeros is how many zeros a code may start with.
const maxZeros = 28

// Gamma reads an exp-Golomb code of order k, at most 40. What PutGamma does
// not write, because it has more than 28 zeros, or is cut off, is not ok.
func (r *Reader) Gamma(k uint) (v uint64, ok bool) {
	zeros := uint(0)
	for r.Get(1) == 0 {
		if zeros++; zeros > maxZeros || !r.OK() {
			return 0, false
		}
	}
	return 1<<(zeros+k) + r.Get(zeros+k) - 1<<k, r.OK()
}

// GammaBits returns the length of the exp-Golomb code of v of order k.
func GammaBits(v uint64, k uint) int {
	return 2*bits.Len64(v>>k+1) - 1 + int(k)
}
