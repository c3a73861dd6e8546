package zstd

import (
	"encoding/binary"

	"github.com/klauspost/compress/huff0"

	"github.com/tpde-project/tpde/core/status"
)

// What of the zstd format (RFC 8878) is used here.
const (
	frameMagic    = 0xFD2FB528
	singleSegment = 1 << 5 // frame header descriptor: the window is the content
	sizeCodeShift = 6      // frame header descriptor: width of the content size
	blockBytes    = 128 << 10

	blockRaw        = 0
	blockRLE        = 1
	blockCompressed = 2

	literalsCompressed = 2
)

// appendEntropyFrame appends a frame of src without any matches: blocks of
// nothing but Huffman-coded literals.
func appendEntropyFrame(dst, src []byte, s *huff0.Scratch) []byte {
	dst = appendFrameHeader(dst, len(src))
	for {
		n := min(len(src), blockBytes)
		dst = appendEntropyBlock(dst, src[:n], n == len(src), s)
		if src = src[n:]; len(src) == 0 {
			return dst
		}
	}
}

// appendFrameHeader appends the header of a frame of n bytes: content size in
// its shortest form, no window descriptor, no dictionary, no checksum.
func appendFrameHeader(dst []byte, n int) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint32(dst, frameMagic)
	switch {
	case n < 256:
		return append(dst, singleSegment, byte(n))
	case n < 256+1<<16:
		return le.AppendUint16(append(dst, singleSegment|1<<sizeCodeShift), uint16(n-256))
	}
	return le.AppendUint32(append(dst, singleSegment|2<<sizeCodeShift), uint32(n))
}

func appendEntropyBlock(dst, src []byte, last bool, s *huff0.Scratch) []byte {
	compress, streams := huff0.Compress4X, 4
	if len(src) < 256 { // too little for the sizes of four streams
		compress, streams = huff0.Compress1X, 1
	}
	s.Reuse = huff0.ReusePolicyNone // a block depends on no other
	coded, _, err := compress(src, s)
	if err == huff0.ErrUseRLE {
		return append(appendBlockHeader(dst, blockRLE, len(src), last), src[0])
	}
	var header [5]byte
	literals := literalsHeader(header[:], len(src), len(coded), streams)
	size := len(literals) + len(coded) + 1
	if err != nil || size >= len(src) { // the format forbids blocks that grow
		return append(appendBlockHeader(dst, blockRaw, len(src), last), src...)
	}
	dst = appendBlockHeader(dst, blockCompressed, size, last)
	dst = append(dst, literals...)
	dst = append(dst, coded...)
	return append(dst, 0) // no sequences
}

func appendBlockHeader(dst []byte, kind, size int, last bool) []byte {
	h := kind<<1 | size<<3
	if last {
		h |= 1
	}
	return append(dst, byte(h), byte(h>>8), byte(h>>16))
}

// literalsHeader fills buf with the header of Huffman-coded literals.
func literalsHeader(buf []byte, size, coded, streams int) []byte {
	format, sizeBits, n := 3, 18, 5
	switch {
	case streams == 1:
		format, sizeBits, n = 0, 10, 3
	case size < 1<<10:
		format, sizeBits, n = 1, 10, 3
	case size < 1<<14:
		format, sizeBits, n = 2, 14, 4
	}
	h := uint64(literalsCompressed | format<<2 | size<<4 | coded<<(4+sizeBits))
	for i := range n {
		buf[i] = byte(h >> (8 * i))
	}
	return buf[:n]
}

// checkFrame returns status.ErrCorrupt unless src is laid out as exactly one
// frame of n bytes of content with a header as appendFrameHeader writes it.
// What the blocks hold is left to the decoder, which then has no choice of how
// much to allocate.
func checkFrame(src []byte, n int) error {
	var want [16]byte
	header := appendFrameHeader(want[:0], n)
	if len(src) < len(header) || string(src[:len(header)]) != string(header) {
		return status.Errorf(status.ErrCorrupt, "zstd stream starts with %x, expected %x, the header of a frame of %d bytes", src[:min(len(src), len(header))], header, n)
	}
	src = src[len(header):]
	for {
		if len(src) < 3 {
			return status.Errorf(status.ErrCorrupt, "zstd frame is cut short at a block header")
		}
		h := int(src[0]) | int(src[1])<<8 | int(src[2])<<16
		size := h >> 3
		if h>>1&3 == blockRLE {
			size = 1
		}
		if src = src[3:]; size > len(src) {
			return status.Errorf(status.ErrCorrupt, "zstd block has %d bytes, expected %d", len(src), size)
		}
		src = src[size:]
		if h&1 != 0 {
			break
		}
	}
	if len(src) != 0 {
		return status.Errorf(status.ErrCorrupt, "%d bytes after the zstd frame", len(src))
	}
	return nil
}
