package residual

import "math"

// Conversions between float32 and the 16 and 8-bit floats, in integers, with
// round to nearest even: what torch's casts do on a CPU.

// smallFloat describes a float format with fewer exponent bits than float32.
type smallFloat struct {
	mantissa uint   // bits
	exponent uint   // bits
	bias     int    // of the exponent
	limit    uint32 // the first magnitude, as a code, that is not finite
	over     uint32 // what torch's cast makes of limit and beyond
	// signedZero is false for formats whose pattern of minus zero is their
	// only NaN (the "uz" in fnuz).
	signedZero bool
}

var (
	float16 = smallFloat{10, 5, 15, 0x7C00, 0x7C00, true} // infinity
	e5m2    = smallFloat{2, 5, 15, 0x7C, 0x7C, true}      // infinity
	e4m3fn  = smallFloat{3, 4, 7, 0x7F, 0x7E, true}       // the largest finite value
	e4m3uz  = smallFloat{3, 4, 8, 0x80, 0x80, false}      // NaN
	e5m2uz  = smallFloat{2, 5, 16, 0x80, 0x80, false}     // NaN
)

// nan reports whether code is a NaN.
func (s *smallFloat) nan(code uint32) bool {
	magnitude := code &^ (1 << (s.mantissa + s.exponent))
	switch {
	case !s.signedZero:
		return code == s.limit
	case s.limit == s.over: // there is an infinity before the NaNs
		return magnitude > s.limit
	}
	return magnitude == s.limit
}

// widen returns the value of code; every one is a float32.
func (s *smallFloat) widen(code uint32) float32 {
	width := s.mantissa + s.exponent
	sign := code >> width << 31
	if s.nan(code) {
		return math.Float32frombits(sign | 0x7FC00000)
	}
	magnitude := code & (1<<width - 1)
	if s.limit == magnitude {
		return math.Float32frombits(sign | 0x7F800000)
	}
	e, m := int(magnitude>>s.mantissa), magnitude&(1<<s.mantissa-1)
	if e == 0 {
		// A subnormal: m units, and both factors and the product are exact.
		unit := math.Float32frombits(uint32(128-s.bias-int(s.mantissa)) << 23)
		return math.Float32frombits(sign | math.Float32bits(float32(m)*unit))
	}
	return math.Float32frombits(sign | uint32(e+127-s.bias)<<23 | m<<(23-s.mantissa))
}

// narrow rounds f to the nearest value of the format, ties to even; beyond the
// finite values it gives over.
func (s *smallFloat) narrow(f float32) uint32 {
	width := s.mantissa + s.exponent
	sign := math.Float32bits(f) >> 31 << width
	magnitude := math.Float32bits(f) & 0x7FFFFFFF
	code := s.round(magnitude)
	switch {
	case magnitude > 0x7F800000:
		code = s.quietNaN()
	case code >= s.limit:
		code = s.over
	}
	if !s.signedZero && (code == 0 || code == s.over) {
		return code
	}
	return sign | code
}

// overflows reports whether f rounds to something beyond the finite values.
func (s *smallFloat) overflows(f float32) bool {
	return s.round(math.Float32bits(f)&0x7FFFFFFF) >= s.limit
}

// round returns the code of the nearest value as if the exponent had no upper
// limit. magnitude is a float32 without its sign.
func (s *smallFloat) round(magnitude uint32) uint32 {
	drop := 23 - s.mantissa
	e := int(magnitude>>23) - 127 + s.bias
	if e >= 1 {
		return roundShift(magnitude-uint32(127-s.bias)<<23, drop)
	}
	if drop += uint(1 - e); drop > 24 {
		return 0 // less than half of the smallest subnormal
	}
	return roundShift(magnitude&0x7FFFFF|0x800000, drop)
}

func (s *smallFloat) quietNaN() uint32 {
	switch {
	case !s.signedZero:
		return s.over
	case s.mantissa == 10:
		return 0x7E00
	}
	return 0x7F
}

// roundShift returns m >> drop, rounded to nearest, ties to even. drop > 0.
func roundShift(m uint32, drop uint) uint32 {
	odd := m >> drop & 1
	return (m + 1<<(drop-1) - 1 + odd) >> drop
}

func bfloat16ToFloat32(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

func float32ToBfloat16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7FFFFFFF > 0x7F800000 {
		return 0x7FC0
	}
	return uint16(roundShift(b, 16))
}
