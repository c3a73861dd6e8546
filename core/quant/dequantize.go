package quant

import (
	"context"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

const (
	pieceElements = 1 << 17 // unit of work of one goroutine
	blockElements = 256     // values computed at once
	// From this size of a group on, a table of all 256 values pays.
	tableGroup = 1024
)

// over127 is float32(1/127), what bitsandbytes multiplies by.
const over127 float32 = 7.874015718698502e-3

// Dequantize writes the n elements that d holds to dst as words of type t
// (F32, F16 or BF16), n = len(dst) / word size, on up to workers goroutines.
func Dequantize(ctx context.Context, dst []byte, t dtype.Type, s *Scheme, d *Data, workers int) error {
	if !t.Valid() {
		return status.Errorf(status.ErrUnsupported, "dtype code %d is unknown", uint8(t))
	}
	size := t.WordBytes()
	if len(dst)%size != 0 {
		return status.Errorf(status.ErrArgument, "output of %d bytes is not a whole number of %v elements", len(dst), t)
	}
	n := len(dst) / size
	if err := s.check(d, uint64(n), t); err != nil {
		return err
	}
	pieces := (n + pieceElements - 1) / pieceElements
	return plan.Each(ctx, workers, pieces, func(_ context.Context, i int) error {
		from, to := i*pieceElements, min((i+1)*pieceElements, n)
		dequantizeRange(dst[from*size:to*size], t, s, d, uint64(from))
		return nil
	})
}

// DequantizeRange writes elements first to first+len(dst)/size of a tensor of
// n elements: what a chunk needs of its base.
func DequantizeRange(dst []byte, t dtype.Type, s *Scheme, d *Data, n, first uint64) error {
	if err := s.check(d, n, t); err != nil {
		return err
	}
	size := uint64(t.WordBytes())
	count := uint64(len(dst)) / size
	if uint64(len(dst))%size != 0 || first > n || count > n-first {
		return status.Errorf(status.ErrArgument, "%d bytes of %v from element %d on are not part of a tensor of %d elements", len(dst), t, first, n)
	}
	dequantizeRange(dst, t, s, d, first)
	return nil
}

// dequantizeRange is DequantizeRange without checks.
func dequantizeRange(dst []byte, t dtype.Type, s *Scheme, d *Data, first uint64) {
	if size := t.WordBytes(); !word.Aligned(dst, size) {
		aligned := word.Bytes(make([]uint32, (len(dst)+3)/4))[:len(dst)]
		dequantizeRange(aligned, t, s, d, first)
		copy(dst, aligned)
		return
	}
	switch t {
	case dtype.F32:
		dequantize(word.View[uint32](dst), narrowF32, s, d, first)
	case dtype.F16:
		dequantize(word.View[uint16](dst), narrowF16, s, d, first)
	default:
		dequantize(word.View[uint16](dst), narrowBF16, s, d, first)
	}
}

// dequantize goes through the groups. narrow rounds a block of values.
func dequantize[T uint16 | uint32](dst []T, narrow func([]T, []float32), s *Scheme, d *Data, first uint64) {
	var values [blockElements]float32
	var table [256]T
	codes := 1 << s.Bits
	for len(dst) > 0 {
		group := first / s.Group
		n := min(s.Group-first%s.Group, uint64(len(dst)))
		scale, zero := scaleAt(d.Scale, s.Scale, group), s.midpoint()
		if s.Zero {
			zero = int32(d.Zero[group])
		}
		if s.Bits == 8 && n < tableGroup {
			packed := d.Packed[first : first+n]
			for i := 0; i < len(packed); i += blockElements {
				part := packed[i:min(i+blockElements, len(packed))]
				valuesOf(values[:len(part)], part, s, scale, zero)
				narrow(dst[i:i+len(part)], values[:len(part)])
			}
		} else {
			valuesOf(values[:codes], allCodes[:codes], s, scale, zero)
			narrow(table[:codes], values[:codes])
			lookUp(dst[:n], &table, s, d.Packed, first)
		}
		dst = dst[n:]
		first += n
	}
}

var allCodes = func() (c [256]byte) {
	for i := range c {
		c[i] = byte(i)
	}
	return c
}()

// valuesOf computes the value of each code in float32: THE definition, beside
// the narrowing. Every product is converted to float32 explicitly, which keeps
// Go from fusing it with anything (it does fuse on arm64 and others).
func valuesOf(dst []float32, codes []byte, s *Scheme, scale float32, zero int32) {
	dst = dst[:len(codes)]
	switch s.Kind {
	case Linear:
		for i, c := range codes {
			dst[i] = float32(float32(int32(c)-zero) * scale)
		}
	case Codebook:
		for i, c := range codes {
			dst[i] = float32(s.Code[c&15] * scale)
		}
	case Int8Rows:
		for i, c := range codes {
			dst[i] = float32(float32(float32(int8(c))*scale) * over127)
		}
	}
}

// lookUp writes the values of the codes of elements first, first+1, ...
func lookUp[T uint16 | uint32](dst []T, table *[256]T, s *Scheme, packed []byte, first uint64) {
	if s.Bits == 8 {
		for i, c := range packed[first : first+uint64(len(dst))] {
			dst[i] = table[c]
		}
		return
	}
	// Eight codes fill whole bytes; what is before and behind goes one by one.
	for len(dst) > 0 && first%8 != 0 {
		dst[0] = table[s.codeAt(packed, first)]
		dst = dst[1:]
		first++
	}
	body := len(dst) &^ 7
	bytes := packed[first/8*uint64(s.Bits):][:body/8*int(s.Bits)]
	switch {
	case s.Kind == Codebook:
		for out := dst[:body]; len(out) >= 8 && len(bytes) >= 4; out, bytes = out[8:], bytes[4:] {
			a, b, c, d := bytes[0], bytes[1], bytes[2], bytes[3]
			out[0], out[1], out[2], out[3] = table[a>>4], table[a&15], table[b>>4], table[b&15]
			out[4], out[5], out[6], out[7] = table[c>>4], table[c&15], table[d>>4], table[d&15]
		}
	case s.Bits == 4:
		for out := dst[:body]; len(out) >= 8 && len(bytes) >= 4; out, bytes = out[8:], bytes[4:] {
			a, b, c, d := bytes[0], bytes[1], bytes[2], bytes[3]
			out[0], out[1], out[2], out[3] = table[a&15], table[a>>4], table[b&15], table[b>>4]
			out[4], out[5], out[6], out[7] = table[c&15], table[c>>4], table[d&15], table[d>>4]
		}
	case s.Bits == 3:
		for out := dst[:body]; len(out) >= 8 && len(bytes) >= 3; out, bytes = out[8:], bytes[3:] {
			w := uint32(bytes[0]) | uint32(bytes[1])<<8 | uint32(bytes[2])<<16
			out[0], out[1], out[2], out[3] = table[w&7], table[w>>3&7], table[w>>6&7], table[w>>9&7]
			out[4], out[5], out[6], out[7] = table[w>>12&7], table[w>>15&7], table[w>>18&7], table[w>>21&7]
		}
	default:
		for out := dst[:body]; len(out) >= 8 && len(bytes) >= 2; out, bytes = out[8:], bytes[2:] {
			a, b := bytes[0], bytes[1]
			out[0], out[1], out[2], out[3] = table[a&3], table[a>>2&3], table[a>>4&3], table[a>>6]
			out[4], out[5], out[6], out[7] = table[b&3], table[b>>2&3], table[b>>4&3], table[b>>6]
		}
	}
	for i := body; i < len(dst); i++ {
		dst[i] = table[s.codeAt(packed, first+uint64(i))]
	}
}

// codeAt returns the code of one element, of fewer than 8 bits.
func (s *Scheme) codeAt(packed []byte, i uint64) byte {
	if s.Kind == Codebook {
		return packed[i/2] >> (4 * (^i & 1)) & 15
	}
	bit := uint(i%8) * uint(s.Bits) // 8 codes fill whole bytes
	at := i/8*uint64(s.Bits) + uint64(bit/8)
	w := uint(packed[at])
	if bit%8+uint(s.Bits) > 8 {
		w |= uint(packed[at+1]) << 8
	}
	return byte(w >> (bit % 8) & (1<<s.Bits - 1))
}

func narrowF32(dst []uint32, src []float32) {
	dst = dst[:len(src)]
	for i, v := range src {
		dst[i] = toF32(v)
	}
}

func narrowF16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	for i, v := range src {
		dst[i] = toF16(v)
	}
}

func narrowBF16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	for i, v := range src {
		dst[i] = toBF16(v)
	}
}
