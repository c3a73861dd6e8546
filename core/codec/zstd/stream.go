package zstd

import (
	"bytes"
	"encoding/binary"

	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/codec"
)

// method says which compressors are worth trying on a plane.
type method uint8

const (
	both    method = iota
	entropy        // Huffman codes only
	matches        // klauspost's zstd only
)

// minFrame is the least plane that is worth a frame: header, block header and
// Huffman table take as much.
const minFrame = 24

// appendChunk appends the directory and streams of planes.
func appendChunk(dst []byte, planes [][]byte, methods *[maxPlanes]method, level codec.Level, w *work) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, pad(entryBytes*len(planes)))...)
	for k, p := range planes {
		var entry uint32
		dst, entry = appendStream(dst, p, methods[k], level, w)
		binary.LittleEndian.PutUint32(dst[start+entryBytes*k:], entry)
	}
	return dst
}

// appendStream appends one plane in its smallest form, padded, and returns its
// directory entry.
func appendStream(dst, plane []byte, m method, level codec.Level, w *work) ([]byte, uint32) {
	if constant(plane) {
		return dst, kindFill<<kindShift | uint32(plane[0])
	}
	kind, best := uint32(kindStored), plane
	if len(plane) >= minFrame {
		for _, frame := range w.frames(plane, m, level) {
			if pad(len(frame)) < pad(len(best)) {
				kind, best = kindZstd, frame
			}
		}
	}
	dst = append(dst, best...)
	return append(dst, zeros[:pad(len(best))-len(best)]...), kind<<kindShift | uint32(len(best))
}

var zeros [8]byte

// constant reports whether all bytes of a plane are the same: whether it is
// itself, moved by one byte.
func constant(plane []byte) bool { return bytes.Equal(plane[1:], plane[:len(plane)-1]) }

// frames returns the frames that m wants tried. They are valid until the next
// call.
func (w *work) frames(plane []byte, m method, level codec.Level) [][]byte {
	buf := w.candidate[:0]
	if m != matches {
		buf = appendEntropyFrame(buf, plane, &w.huff)
	}
	cut := len(buf)
	if m != entropy {
		e := matchers[level].Get().(*zstd.Encoder)
		buf = e.EncodeAll(plane, buf)
		matchers[level].Put(e)
	}
	w.candidate = buf
	switch m {
	case entropy:
		return [][]byte{buf}
	case matches:
		return [][]byte{buf}
	}
	return [][]byte{buf[:cut], buf[cut:]}
}
