package residual

import "encoding/binary"

// The bit residual works on eight bytes at a time, whatever the word size:
// with the top bit of every word set aside, no carry or borrow can leave a
// word, and the top bits themselves add without carry (exclusive or).
// That is several times faster than a loop over 8 or 16-bit words, needs no
// alignment, and is one loop for all four sizes. Where there is AVX2, residuals
// are computed by vectors_amd64.s but for what is left of a vector.

// topBits returns the mask of the top bits of the words in eight bytes.
func topBits(wordBytes int) uint64 {
	switch wordBytes {
	case 1:
		return 0x8080808080808080
	case 2:
		return 0x8000800080008000
	case 4:
		return 0x8000000080000000
	}
	return 0x8000000000000000
}

func sub8(a, b, top uint64) uint64 { return ((a | top) - (b &^ top)) ^ ((a ^ ^b) & top) }

func add8(a, b, top uint64) uint64 { return ((a &^ top) + (b &^ top)) ^ ((a ^ b) & top) }

// stride is how many bytes the loops below take per round: enough to spread
// the cost of the length checks.
const stride = 32

// subWords sets dst to a - b, word by word.
func subWords(dst, a, b []byte, top uint64) {
	le := binary.LittleEndian
	for len(dst) >= stride && len(a) >= stride && len(b) >= stride {
		d, x, y := (*[stride]byte)(dst), (*[stride]byte)(a), (*[stride]byte)(b)
		r0 := sub8(le.Uint64(x[0:8]), le.Uint64(y[0:8]), top)
		r1 := sub8(le.Uint64(x[8:16]), le.Uint64(y[8:16]), top)
		r2 := sub8(le.Uint64(x[16:24]), le.Uint64(y[16:24]), top)
		r3 := sub8(le.Uint64(x[24:32]), le.Uint64(y[24:32]), top)
		le.PutUint64(d[0:8], r0)
		le.PutUint64(d[8:16], r1)
		le.PutUint64(d[16:24], r2)
		le.PutUint64(d[24:32], r3)
		dst, a, b = dst[stride:], a[stride:], b[stride:]
	}
	for len(dst) > 0 {
		n := putPart(dst, sub8(part(a), part(b), top))
		dst, a, b = dst[n:], a[n:], b[n:]
	}
}

// addWords sets dst to a + b, word by word.
func addWords(dst, a, b []byte, top uint64) {
	le := binary.LittleEndian
	for len(dst) >= stride && len(a) >= stride && len(b) >= stride {
		d, x, y := (*[stride]byte)(dst), (*[stride]byte)(a), (*[stride]byte)(b)
		r0 := add8(le.Uint64(x[0:8]), le.Uint64(y[0:8]), top)
		r1 := add8(le.Uint64(x[8:16]), le.Uint64(y[8:16]), top)
		r2 := add8(le.Uint64(x[16:24]), le.Uint64(y[16:24]), top)
		r3 := add8(le.Uint64(x[24:32]), le.Uint64(y[24:32]), top)
		le.PutUint64(d[0:8], r0)
		le.PutUint64(d[8:16], r1)
		le.PutUint64(d[16:24], r2)
		le.PutUint64(d[24:32], r3)
		dst, a, b = dst[stride:], a[stride:], b[stride:]
	}
	for len(dst) > 0 {
		n := putPart(dst, add8(part(a), part(b), top))
		dst, a, b = dst[n:], a[n:], b[n:]
	}
}

// part returns the first eight bytes of b, zeros where b is shorter.
func part(b []byte) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b)
	}
	var buf [8]byte
	copy(buf[:], b)
	return binary.LittleEndian.Uint64(buf[:])
}

// putPart stores as much of v as dst has room for and returns how much it was.
func putPart(dst []byte, v uint64) int {
	var buf [8]byte
	binary.LittleEndian.PutUint64(buf[:], v)
	return copy(dst, buf[:])
}
