package quant

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
)

var types = []dtype.Type{dtype.F32, dtype.F16, dtype.BF16}

// testCase is one tensor of testdata/cases.safetensors.
type testCase struct {
	name   string
	scheme Scheme
	data   Data
	n      uint64
	words  map[dtype.Type][]byte
}

func readCases(t *testing.T) []testCase {
	t.Helper()
	file, err := os.ReadFile("testdata/cases.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string][]byte{}
	for _, x := range h.Tensors {
		parts[x.Name] = file[h.DataStart()+x.Begin : h.DataStart()+x.End]
	}
	var rows []struct {
		Kind, Bits uint8
		Group, N   uint64
		Scale      string
		Zero       bool
	}
	if err := json.Unmarshal([]byte(h.Metadata["cases"]), &rows); err != nil {
		t.Fatal(err)
	}
	var cases []testCase
	for i, r := range rows {
		scale, err := dtype.Parse(r.Scale)
		if err != nil {
			t.Fatal(err)
		}
		c := testCase{
			name:   fmt.Sprintf("case %d: %+v", i, r),
			scheme: Scheme{Kind: Kind(r.Kind), Bits: r.Bits, Group: r.Group, Scale: scale, Zero: r.Zero},
			data:   Data{parts[fmt.Sprintf("%d.packed", i)], parts[fmt.Sprintf("%d.scale", i)], parts[fmt.Sprintf("%d.zero", i)]},
			n:      r.N,
			words:  map[dtype.Type][]byte{},
		}
		if c.scheme.Kind == Codebook {
			c.scheme.Code = NF4
		}
		for _, typ := range types {
			c.words[typ] = parts[fmt.Sprintf("%d.%v", i, typ)]
		}
		cases = append(cases, c)
	}
	return cases
}

// TestDequantizeIsTheReference compares every kind, type and corner of the
// scales with what cases.py computed one element at a time.
func TestDequantizeIsTheReference(t *testing.T) {
	for _, c := range readCases(t) {
		for _, typ := range types {
			want := c.words[typ]
			for _, workers := range []int{1, 4} {
				got := make([]byte, len(want)+1)[1:] // not aligned
				if err := Dequantize(context.Background(), got, typ, &c.scheme, &c.data, workers); err != nil {
					t.Fatalf("%s as %v: %v", c.name, typ, err)
				}
				requireWords(t, fmt.Sprintf("%s as %v", c.name, typ), got, want, typ)
			}
		}
	}
}

func requireWords(t *testing.T, what string, got, want []byte, typ dtype.Type) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	size := typ.WordBytes()
	for i := 0; i < len(want); i += size {
		if !bytes.Equal(got[i:i+size], want[i:i+size]) {
			t.Fatalf("%s: element %d is %x, expected %x (bytes)", what, i/size, got[i:i+size], want[i:i+size])
		}
	}
	t.Fatalf("%s: %d bytes, expected %d", what, len(got), len(want))
}

// TestRangesAreParts starts and ends ranges everywhere around groups, bytes
// and blocks.
func TestRangesAreParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range readCases(t) {
		want := c.words[dtype.BF16]
		for range 40 {
			first := rng.Uint64N(c.n)
			count := min(c.n-first, rng.Uint64N(100))
			got := make([]byte, 2*count)
			if err := DequantizeRange(got, dtype.BF16, &c.scheme, &c.data, c.n, first); err != nil {
				t.Fatal(err)
			}
			requireWords(t, fmt.Sprintf("%s from %d", c.name, first), got, want[2*first:2*(first+count)], dtype.BF16)
		}
		err := DequantizeRange(make([]byte, 4), dtype.BF16, &c.scheme, &c.data, c.n, c.n-1)
		if !errors.Is(err, status.ErrArgument) {
			t.Errorf("%s: a range beyond the end gives %v", c.name, err)
		}
	}
}

// TestNarrowingRoundsOnce checks all neighbourhoods of 16-bit values against
// the nearest value found in float64.
func TestNarrowingRoundsOnce(t *testing.T) {
	for _, f := range []struct {
		name   string
		narrow func(float32) uint16
		widen  func(uint16) float32
		inf    uint16
	}{{"F16", toF16, fromF16, 0x7C00}, {"BF16", toBF16, fromBF16, 0x7F80}} {
		for w := uint16(0); w < f.inf; w++ {
			low, high := f.widen(w), float64(f.widen(w+1))
			if w+1 == f.inf { // what would come next if there were no infinity
				high = 2*float64(low) - float64(f.widen(w-1))
			}
			half := float32((float64(low) + high) / 2)
			even := w + w&1
			for _, c := range []struct {
				value float32
				want  uint16
			}{
				{low, w}, {half, even},
				{math.Nextafter32(half, 0), w}, {math.Nextafter32(half, float32(math.Inf(1))), w + 1},
			} {
				if got := f.narrow(c.value); got != c.want {
					t.Fatalf("%s: %g gives %04x, expected %04x", f.name, c.value, got, c.want)
				}
				if got := f.narrow(-c.value); got != c.want|0x8000 {
					t.Fatalf("%s: %g gives %04x, expected %04x", f.name, -c.value, got, c.want|0x8000)
				}
			}
		}
		for _, v := range []uint32{0x7F800001, 0xFFC00000, 0xFFFFFFFF} {
			if got := f.narrow(math.Float32frombits(v)); got != 0x7FFF {
				t.Errorf("%s: NaN %08x gives %04x", f.name, v, got)
			}
		}
		if got := f.narrow(float32(math.Inf(-1))); got != f.inf|0x8000 {
			t.Errorf("%s: -Inf gives %04x", f.name, got)
		}
	}
}

// TestLinearValueIsTheNearest checks FORMAT.md's claim that with 16-bit scales
// there is one rounding only: every code, against exact products in float64.
func TestLinearValueIsTheNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		s := Scheme{Kind: Linear, Bits: 8, Group: 256, Scale: dtype.BF16, Zero: true}
		d := Data{Packed: allCodes[:], Scale: []byte{byte(rng.Uint32()), byte(0x3A + rng.IntN(6))}, Zero: []byte{byte(rng.Uint32())}}
		got := make([]byte, 1024)
		if err := Dequantize(context.Background(), got, dtype.F32, &s, &d, 1); err != nil {
			t.Fatal(err)
		}
		scale := float64(scaleAt(d.Scale, dtype.BF16, 0))
		for q := range 256 {
			want := float64(q-int(d.Zero[0])) * scale
			if v := math.Float32frombits(binary.LittleEndian.Uint32(got[4*q:])); float64(v) != want {
				t.Fatalf("(%d - %d) * %g gives %g, expected %g", q, d.Zero[0], scale, v, want)
			}
		}
	}
}

func allocate(s *Scheme, n uint64) *Data {
	d := &Data{Packed: make([]byte, s.PackedBytes(n)), Scale: make([]byte, s.ScaleBytes(n))}
	if s.Zero {
		d.Zero = make([]byte, s.ZeroBytes(n))
	}
	return d
}

func floats(values []float32) []byte {
	b := make([]byte, 4*len(values))
	for i, v := range values {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
	return b
}

// TestQuantizeIsClose holds the error of every element below half a step, or
// a whole one at the end that a signed range without its mirror cuts off.
func TestQuantizeIsClose(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	values := make([]float32, 5003)
	for i := range values {
		values[i] = float32(rng.NormFloat64() * math.Exp(rng.NormFloat64()))
	}
	src := floats(values)
	for _, bits := range []uint8{2, 3, 4, 8} {
		for _, zero := range []bool{false, true} {
			for _, group := range []uint64{8, 32, 37, 256, 5003, 1 << 40} {
				for _, scale := range types {
					s := Scheme{Kind: Linear, Bits: bits, Group: group, Scale: scale, Zero: zero}
					n := uint64(len(values))
					d, again := allocate(&s, n), allocate(&s, n)
					if err := Quantize(context.Background(), d, &s, src, dtype.F32, 1); err != nil {
						t.Fatal(err)
					}
					for i := range again.Packed {
						again.Packed[i] = 0xAA // left from an earlier use
					}
					if err := Quantize(context.Background(), again, &s, src, dtype.F32, 4); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(d.Packed, again.Packed) || !bytes.Equal(d.Scale, again.Scale) || !bytes.Equal(d.Zero, again.Zero) {
						t.Fatalf("%+v: 1 and 4 workers differ", s)
					}
					out := make([]byte, 4*len(values))
					if err := Dequantize(context.Background(), out, dtype.F32, &s, d, 1); err != nil {
						t.Fatal(err)
					}
					for i, v := range values {
						got := math.Float32frombits(binary.LittleEndian.Uint32(out[4*i:]))
						step := math.Abs(float64(scaleAt(d.Scale, scale, uint64(i)/group)))
						limit := 0.5 // steps
						if zero {
							limit = 1 // the zero point is rounded as well
						} else if (v > 0) == (scaleAt(d.Scale, scale, uint64(i)/group) > 0) {
							limit = 1.02
						}
						limit += math.Exp2(float64(bits)) / 250 // the scale is rounded to 8 bits
						if math.Abs(float64(got-v)) > limit*step {
							t.Fatalf("%+v: element %d is %g, came back as %g, step %g", s, i, v, got, step)
						}
					}
				}
			}
		}
	}
}

// TestQuantizeSurvivesAnything: NaN, infinity and the extremes of each type.
func TestQuantizeSurvivesAnything(t *testing.T) {
	inf := float32(math.Inf(1))
	nan := float32(math.NaN())
	for _, values := range [][]float32{
		{nan, inf, -inf, 1, -2, 0}, {nan, nan}, {inf, inf, inf}, {}, {0, 0, 0}, {math.MaxFloat32, -math.MaxFloat32},
		{1e-45, -1e-45, 0}, {1e-40, 3e-41}, {float32(math.Copysign(0, -1))},
	} {
		for _, bits := range []uint8{2, 3, 4, 8} {
			for _, zero := range []bool{false, true} {
				for _, scale := range []dtype.Type{dtype.F32, dtype.BF16} {
					s := Scheme{Kind: Linear, Bits: bits, Group: 32, Scale: scale, Zero: zero}
					d := allocate(&s, uint64(len(values)))
					if err := Quantize(context.Background(), d, &s, floats(values), dtype.F32, 1); err != nil {
						t.Fatalf("%+v of %v: %v", s, values, err)
					}
					out := make([]byte, 4*len(values))
					if err := Dequantize(context.Background(), out, dtype.F32, &s, d, 1); err != nil {
						t.Fatal(err)
					}
					for i, v := range values {
						got := math.Float32frombits(binary.LittleEndian.Uint32(out[4*i:]))
						// Rounding the scale up can take the greatest float32 beyond itself.
						if got != got || (math.IsInf(float64(got), 0) && math.Abs(float64(v)) < 3e38) {
							t.Fatalf("%+v of %v: element %d came back as %g", s, values, i, got)
						}
						if v-v != 0 && got != 0 {
							t.Fatalf("%+v of %v: element %d came back as %g, expected 0", s, values, i, got)
						}
					}
				}
			}
		}
	}
	s := Scheme{Kind: Linear, Bits: 2, Group: 32, Scale: dtype.F16}
	err := Quantize(context.Background(), allocate(&s, 2), &s, floats([]float32{1e9, 0}), dtype.F32, 1)
	if !errors.Is(err, status.ErrArgument) {
		t.Errorf("a scale beyond F16 gives %v", err)
	}
}

// TestTypesQuantizeAlike: the same numbers in each type give the same codes.
func TestTypesQuantizeAlike(t *testing.T) {
	words16 := map[dtype.Type][]byte{}
	var values []float32
	for i := range 700 {
		v := fromBF16(uint16(0x3C00 + i)) // 0.0078 up to 4: exact in F16 too
		if i%3 == 0 {
			v = -v
		}
		values = append(values, v)
		words16[dtype.BF16] = binary.LittleEndian.AppendUint16(words16[dtype.BF16], toBF16(v))
		words16[dtype.F16] = binary.LittleEndian.AppendUint16(words16[dtype.F16], toF16(v))
	}
	s := Scheme{Kind: Linear, Bits: 3, Group: 64, Scale: dtype.F16, Zero: true}
	want := allocate(&s, 700)
	if err := Quantize(context.Background(), want, &s, floats(values), dtype.F32, 1); err != nil {
		t.Fatal(err)
	}
	for typ, src := range words16 {
		d := allocate(&s, 700)
		if err := Quantize(context.Background(), d, &s, src, typ, 1); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(d.Packed, want.Packed) || !bytes.Equal(d.Scale, want.Scale) || !bytes.Equal(d.Zero, want.Zero) {
			t.Errorf("%v differs from F32", typ)
		}
	}
}

func TestRefusals(t *testing.T) {
	good := Scheme{Kind: Linear, Bits: 4, Group: 64, Scale: dtype.BF16}
	with := func(change func(*Scheme)) *Scheme { s := good; change(&s); return &s }
	for name, s := range map[string]*Scheme{
		"bits":           with(func(s *Scheme) { s.Bits = 5 }),
		"group":          with(func(s *Scheme) { s.Group = 7 }),
		"scale":          with(func(s *Scheme) { s.Scale = dtype.F64 }),
		"NF4 scale":      with(func(s *Scheme) { s.Kind = Codebook }),
		"int8 bits":      with(func(s *Scheme) { s.Kind, s.Scale = Int8Rows, dtype.F32 }),
		"NF4 zero":       with(func(s *Scheme) { s.Kind, s.Scale, s.Zero = Codebook, dtype.F32, true }),
		"code book":      with(func(s *Scheme) { s.Kind, s.Scale, s.Code[3] = Codebook, dtype.F32, float32(math.NaN()) }),
		"code book, inf": with(func(s *Scheme) { s.Kind, s.Scale, s.Code[3] = Codebook, dtype.F32, float32(math.Inf(1)) }),
	} {
		if err := s.Validate(); !errors.Is(err, status.ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := with(func(s *Scheme) { s.Kind = 9 }).Validate(); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("kind: %v", err)
	}
	ctx := context.Background()
	for name, change := range map[string]func(*Data){
		"packed": func(d *Data) { d.Packed = d.Packed[1:] },
		"scale":  func(d *Data) { d.Scale = append(d.Scale, 0) },
		"zero":   func(d *Data) { d.Zero = make([]byte, 2) },
	} {
		d := allocate(&good, 100)
		change(d)
		if err := Dequantize(ctx, make([]byte, 200), dtype.BF16, &good, d, 1); !errors.Is(err, status.ErrArgument) {
			t.Errorf("dequantise, %s: %v", name, err)
		}
		if err := Quantize(ctx, d, &good, make([]byte, 200), dtype.BF16, 1); !errors.Is(err, status.ErrArgument) {
			t.Errorf("quantise, %s: %v", name, err)
		}
	}
	if err := Dequantize(ctx, make([]byte, 200), dtype.I16, &good, allocate(&good, 100), 1); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("I16: %v", err)
	}
	if err := Dequantize(ctx, nil, dtype.Type(99), &good, allocate(&good, 0), 1); !errors.Is(err, status.ErrUnsupported) {
		t.Errorf("dtype 99: %v", err)
	}
	if err := Dequantize(ctx, make([]byte, 3), dtype.BF16, &good, allocate(&good, 1), 1); !errors.Is(err, status.ErrArgument) {
		t.Errorf("3 bytes: %v", err)
	}
}

// TestDescriptor pins the bytes that kernels read.
func TestDescriptor(t *testing.T) {
	s := Scheme{Kind: Codebook, Bits: 4, Group: 48, Scale: dtype.F32, Code: NF4}
	b, err := s.Descriptor(Pointers{Packed: 0x1000, Scale: 0x2000}, 101)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	for at, want := range map[int]uint64{
		0: 0x1000, 8: 0x2000, 16: 0, 24: 101, 32: 51, 40: 48, 48: 0x0555555555555556, 56: 0xFF0C0402,
		64: 0xBF32_39B1_BF80_0000,
	} {
		if got := le.Uint64(b[at:]); got != want {
			t.Errorf("offset %d: %#x, expected %#x", at, got, want)
		}
	}
	for _, p := range []Pointers{{2, 4, 0}, {4, 2, 0}, {4, 4, 4}, {0, 4, 0}} {
		if _, err := s.Descriptor(p, 101); !errors.Is(err, status.ErrArgument) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

func BenchmarkDequantize(b *testing.B) {
	const n = 1 << 20
	for _, s := range []Scheme{
		{Kind: Linear, Bits: 2, Group: 64, Scale: dtype.BF16}, {Kind: Linear, Bits: 3, Group: 64, Scale: dtype.BF16},
		{Kind: Linear, Bits: 4, Group: 64, Scale: dtype.BF16}, {Kind: Linear, Bits: 8, Group: 64, Scale: dtype.BF16},
		{Kind: Linear, Bits: 8, Group: 4096, Scale: dtype.BF16},
		{Kind: Codebook, Bits: 4, Group: 64, Scale: dtype.F32, Code: NF4}, {Kind: Int8Rows, Bits: 8, Group: 4096, Scale: dtype.F32},
	} {
		d := allocate(&s, n)
		rng := rand.New(rand.NewPCG(7, 8))
		for i := range d.Packed {
			d.Packed[i] = byte(rng.Uint32())
		}
		for _, t := range types {
			b.Run(fmt.Sprintf("kind%d-%dbit-%d-%v", s.Kind, s.Bits, s.Group, t), func(b *testing.B) {
				dst := make([]byte, n*t.WordBytes())
				b.SetBytes(int64(len(dst)))
				for b.Loop() {
					if err := Dequantize(context.Background(), dst, t, &s, d, 1); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkQuantize(b *testing.B) {
	const n = 1 << 20
	src := make([]byte, 2*n)
	rng := rand.New(rand.NewPCG(9, 10))
	for i := range n {
		binary.LittleEndian.PutUint16(src[2*i:], toBF16(float32(rng.NormFloat64())))
	}
	for _, bits := range []uint8{2, 3, 4, 8} {
		s := Scheme{Kind: Linear, Bits: bits, Group: 64, Scale: dtype.BF16}
		d := allocate(&s, n)
		b.Run(fmt.Sprintf("%dbit", bits), func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if err := Quantize(context.Background(), d, &s, src, dtype.BF16, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
