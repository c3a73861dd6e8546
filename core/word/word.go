// Package word views byte slices as slices of little-endian unsigned words.
// It is the only place in the core that uses unsafe for that.
package word

import "unsafe"

// Word is one of the unsigned integer types that tensor elements are seen as.
type Word interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64
}

// The views assume a little-endian machine, as the file format does.
var _ = func() struct{} {
	x := uint16(1)
	if *(*byte)(unsafe.Pointer(&x)) != 1 {
		panic("tpde: big-endian machines are not supported")
	}
	return struct{}{}
}()

// Size returns the size of T in bytes.
func Size[T Word]() int {
	var x T
	return int(unsafe.Sizeof(x))
}

// View returns b as words, sharing its memory. len(b) must be a multiple of
// the word size and b aligned to it (Aligned says whether it is).
func View[T Word](b []byte) []T {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/Size[T]())
}

// Bytes returns w as bytes, sharing its memory.
func Bytes[T Word](w []T) []byte {
	if len(w) == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(w))), len(w)*Size[T]())
}

// Aligned reports whether b starts at a multiple of size bytes.
func Aligned(b []byte, size int) bool {
	return len(b) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%uintptr(size) == 0
}

// Zigzag maps a two's complement word to an unsigned one that is small when
// its magnitude is: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
func Zigzag[T Word](v T) T {
	top := v >> (Size[T]()*8 - 1)
	return v<<1 ^ -top
}

// Unzigzag undoes Zigzag.
func Unzigzag[T Word](z T) T { return z>>1 ^ -(z & 1) }
