package quant

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
)

// Quantize fills d, whose slices have the sizes that s asks for, from src,
// elements of type t (F32, F16 or BF16), on up to workers goroutines. s must
// be Linear: with Zero from the least to the greatest element of each group
// (and 0), without from the element of largest magnitude.
//
// Elements that are not finite take no part and are coded as zero: the
// residual restores them. A scale that its type cannot hold is refused.
func Quantize(ctx context.Context, d *Data, s *Scheme, src []byte, t dtype.Type, workers int) error {
	if !t.Valid() {
		return status.Errorf(status.ErrUnsupported, "dtype code %d is unknown", uint8(t))
	}
	size := t.WordBytes()
	if len(src)%size != 0 {
		return status.Errorf(status.ErrArgument, "%d bytes are not a whole number of %v elements", len(src), t)
	}
	n := uint64(len(src) / size)
	if err := s.check(d, n, t); err != nil {
		return err
	}
	if s.Kind != Linear {
		return status.Errorf(status.ErrUnsupported, "only linear codes can be made; the others come from bitsandbytes")
	}
	clear(d.Packed) // the last word is padded with zeros
	// Eight groups fill whole bytes, so that no two goroutines share one.
	piece := 8 * s.Group
	if s.Group >= n {
		piece = max(n, 1)
	} else if piece < pieceElements {
		piece = pieceElements / piece * piece
	}
	pieces := int((n + piece - 1) / piece)
	return plan.Each(ctx, workers, pieces, func(_ context.Context, i int) error {
		to := min(uint64(i+1)*piece, n)
		var block quantizeBlock
		for from := uint64(i) * piece; from < to; from += s.Group {
			if err := block.group(d, s, src, t, from, min(from+s.Group, to)); err != nil {
				return err
			}
		}
		return nil
	})
}

// quantizeBlock is the working memory of a goroutine.
type quantizeBlock struct {
	values [blockElements]float32
	codes  [blockElements]byte
}

// group quantises elements from to to-1, a group.
func (b *quantizeBlock) group(d *Data, s *Scheme, src []byte, t dtype.Type, from, to uint64) error {
	least, greatest := float32(0), float32(0)
	for at := from; at < to; at += blockElements {
		values := b.values[:min(to-at, blockElements)]
		widen(values, src, t, at)
		for _, v := range values {
			if v < least && v >= -math.MaxFloat32 {
				least = v
			} else if v > greatest && v <= math.MaxFloat32 {
				greatest = v
			}
		}
	}
	group := from / s.Group
	top := int32(1)<<s.Bits - 1
	exact := scaleOf(s, least, greatest, top)
	stored, scale := roundScale(s.Scale, exact)
	if math.Abs(float64(scale)) > math.MaxFloat32 {
		return status.Errorf(status.ErrArgument, "group %d needs a scale of %g, which %v cannot hold; use F32 scales", group, exact, s.Scale)
	}
	if s.Scale == dtype.F32 {
		binary.LittleEndian.PutUint32(d.Scale[4*group:], stored)
	} else {
		binary.LittleEndian.PutUint16(d.Scale[2*group:], uint16(stored))
	}
	zero := s.midpoint()
	if s.Zero {
		zero = 0
		if scale != 0 {
			zero = nearest(-least/scale, 0, float32(top))
		}
		d.Zero[group] = byte(zero)
	}
	lo, hi := float32(-zero), float32(top-zero)
	for at := from; at < to; at += blockElements {
		values := b.values[:min(to-at, blockElements)]
		if to-from > blockElements { // else they are there
			widen(values, src, t, at)
		}
		for i, v := range values {
			steps := int32(0)
			if scale != 0 && v-v == 0 { // finite
				steps = nearest(v/scale, lo, hi)
			}
			b.codes[i] = byte(zero + steps)
		}
		s.pack(d.Packed, b.codes[:len(values)], at)
	}
	return nil
}

// scaleOf returns the scale of a group before it is rounded to its type.
func scaleOf(s *Scheme, least, greatest float32, top int32) float32 {
	if s.Zero {
		// Two quotients: the difference of the extremes could overflow.
		return float32(greatest/float32(top)) - float32(least/float32(top))
	}
	// The element of largest magnitude gets the lowest code, the only one that
	// reaches 2^(bits-1) steps from zero: with 2 bits the step is half of what
	// a range symmetric about zero would need.
	if greatest >= -least {
		return greatest / float32(-s.midpoint())
	}
	return least / float32(-s.midpoint())
}

// nearest rounds to the nearest integer, ties to even, within lo and hi, which
// are integers below 256.
func nearest(v, lo, hi float32) int32 {
	const units = 3 << 22 // numbers of this magnitude have no fraction
	if v < lo {           // not min and max: NaN and -0 need no care here
		v = lo
	}
	if v > hi {
		v = hi
	}
	return int32(float32(v+units) - units)
}

// widen reads elements first, first+1, ... of src.
func widen(dst []float32, src []byte, t dtype.Type, first uint64) {
	switch t {
	case dtype.F32:
		src = src[4*first:]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case dtype.F16:
		src = src[2*first:]
		for i := range dst {
			dst[i] = fromF16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	default:
		src = src[2*first:]
		for i := range dst {
			dst[i] = fromBF16(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}

// pack writes the codes of elements first, first+1, ..., whose bits are zero.
func (s *Scheme) pack(packed, codes []byte, first uint64) {
	width := uint(s.Bits)
	for len(codes) > 0 {
		// Eight codes fill whole bytes.
		n := min(8-int(first%8), len(codes))
		var w uint64
		for i, c := range codes[:n] {
			w |= uint64(c) << (uint(i) * width)
		}
		w <<= uint(first%8) * width
		for at := first / 8 * uint64(width); w != 0; at++ {
			packed[at] |= byte(w)
			w >>= 8
		}
		codes = codes[n:]
		first += uint64(n)
	}
}
