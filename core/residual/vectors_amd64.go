//go:build !purego

package residual

import (
	"unsafe"

	"golang.org/x/sys/cpu"
)

// vectorBytes is how much the assembly does at once.
const vectorBytes = 64

// These set size bytes at dst, a multiple of vectorBytes, to a - b, for words
// of so many bits. dst may be a or b.

//go:noescape
func vectors8(dst, a, b unsafe.Pointer, size int)

//go:noescape
func vectors16(dst, a, b unsafe.Pointer, size int)

//go:noescape
func vectors32(dst, a, b unsafe.Pointer, size int)

//go:noescape
func vectors64(dst, a, b unsafe.Pointer, size int)

// subVectors does as much of subWords as vectors can, from the first byte on,
// and returns how many bytes that is.
func subVectors(dst, a, b []byte, wordBytes int) int {
	size := min(len(dst), len(a), len(b)) / vectorBytes * vectorBytes
	if size == 0 || !cpu.X86.HasAVX2 {
		return 0
	}
	d, x, y := unsafe.Pointer(&dst[0]), unsafe.Pointer(&a[0]), unsafe.Pointer(&b[0])
	switch wordBytes {
	case 1:
		vectors8(d, x, y, size)
	case 2:
		vectors16(d, x, y, size)
	case 4:
		vectors32(d, x, y, size)
	default:
		vectors64(d, x, y, size)
	}
	return size
}
