//go:build gpu

package gputest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
)

// product is a quantised weight and rows of x on the GPU, and y in float64.
type product struct {
	engine.Matvec
	y        *buffer
	expected []float64
	values   []byte // of the weight, in its type
}

// words are bf16 or float32, as type t has it.
func words(t dtype.Type, values []float32) []byte {
	out := make([]byte, 0, len(values)*t.WordBytes())
	for _, v := range values {
		if t == dtype.F32 {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		} else {
			out = binary.LittleEndian.AppendUint16(out, uint16(math.Float32bits(v)>>16))
		}
	}
	return out
}

func number(t dtype.Type, data []byte, i int) float64 {
	if t == dtype.F32 {
		return float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
	}
	return float64(math.Float32frombits(uint32(binary.LittleEndian.Uint16(data[2*i:])) << 16))
}

func placeProduct(t testing.TB, s quant.Scheme, dt dtype.Type, rows, outs, ins int) *product {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(outs), uint64(ins)))
	normal := func(n int) []byte {
		values := make([]float32, n)
		for i := range values {
			values[i] = float32(r.NormFloat64())
		}
		return words(dt, values)
	}
	n := uint64(outs * ins)
	d := &quant.Data{Packed: make([]byte, s.PackedBytes(n)), Scale: make([]byte, s.ScaleBytes(n)), Zero: make([]byte, s.ZeroBytes(n))}
	must(t, quant.Quantize(context.Background(), d, &s, normal(int(n)), dt, 0))
	p := &product{values: make([]byte, int(n)*dt.WordBytes())}
	must(t, quant.Dequantize(context.Background(), p.values, dt, &s, d, 0))
	x := normal(rows * ins)
	p.y = upload(t, make([]byte, rows*outs*dt.WordBytes()))
	p.Matvec = engine.Matvec{
		Type: dt, X: upload(t, x).p, XStride: uint64(ins), Y: p.y.p, Rows: uint64(rows), Outs: uint64(outs), Ins: uint64(ins),
		Weight: engine.Quantised{Scheme: s, At: quant.Pointers{Packed: uint64(upload(t, d.Packed).p), Scale: uint64(upload(t, d.Scale).p)}},
	}
	if s.Zero {
		p.Weight.At.Zero = uint64(upload(t, d.Zero).p)
	}
	for row := range rows {
		for out := range outs {
			sum := 0.0
			for i := range ins {
				sum += number(dt, x, row*ins+i) * number(dt, p.values, out*ins+i)
			}
			p.expected = append(p.expected, sum)
		}
	}
	return p
}

func TestMatvec(t *testing.T) {
	schemes := []quant.Scheme{
		{Kind: quant.Linear, Bits: 2, Group: 64, Scale: dtype.BF16},
		{Kind: quant.Linear, Bits: 3, Group: 64, Scale: dtype.F32, Zero: true},
		{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16},
		{Kind: quant.Linear, Bits: 4, Group: 32, Scale: dtype.BF16, Zero: true},
		{Kind: quant.Linear, Bits: 8, Group: 128, Scale: dtype.BF16},
	}
	onGPU(t, func() {
		for _, s := range schemes {
			for _, dt := range []dtype.Type{dtype.BF16, dtype.F32} {
				for _, shape := range [][3]int{{1, 16, 128}, {3, 17, 640}, {8, 40, 1152}, {9, 5, 100}, {1, 1, 9}} {
					p := placeProduct(t, s, dt, shape[0], shape[1], shape[2])
					name := fmt.Sprintf("%+v %v %v", s, dt, shape)
					must(t, eng.Matvec(&p.Matvec, 0))
					must(t, driver.Wait(0))
					got := p.y.download(t, name)
					off, all := 0.0, 0.0
					for i, want := range p.expected {
						off += math.Pow(number(dt, got, i)-want, 2)
						all += want * want
					}
					if limit := map[dtype.Type]float64{dtype.BF16: 1.0 / 250, dtype.F32: 1e-5}[dt]; math.Sqrt(off/all) > limit {
						t.Errorf("%s: off by %g", name, math.Sqrt(off/all))
					}

					n := uint64(len(p.values) / dt.WordBytes())
					dst := upload(t, make([]byte, len(p.values)))
					must(t, eng.Dequantise(&engine.Dequantise{Type: dt, Weight: p.Weight, Elements: n, Dst: dst.p, Count: n}, 0))
					must(t, driver.Wait(0))
					if string(dst.download(t, name)) != string(p.values) {
						t.Errorf("%s: dequantised to other bits", name)
					}
				}
			}
		}
	})
}

// BenchmarkMatvec reports bytes of codes and scales per second, one row by
// int4 weights that together are larger than an L2 cache.
func BenchmarkMatvec(b *testing.B) {
	for _, shape := range [][2]uint64{{4096, 4096}, {14336, 4096}, {4096, 14336}} {
		b.Run(fmt.Sprintf("%dx%d", shape[0], shape[1]), func(b *testing.B) {
			onGPU(b, func() {
				s := quant.Scheme{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16}
				n := shape[0] * shape[1]
				bytes := s.PackedBytes(n) + s.ScaleBytes(n)
				x, y := upload(b, make([]byte, 2*shape[1])), upload(b, make([]byte, 2*shape[0]))
				all := make([]engine.Matvec, 512<<20/bytes)
				for i := range all {
					at := quant.Pointers{Packed: uint64(upload(b, make([]byte, s.PackedBytes(n))).p), Scale: uint64(upload(b, make([]byte, s.ScaleBytes(n))).p)}
					all[i] = engine.Matvec{
						Type: dtype.BF16, X: x.p, XStride: shape[1], Y: y.p, Rows: 1, Outs: shape[0], Ins: shape[1],
						Weight: engine.Quantised{Scheme: s, At: at},
					}
				}
				must(b, eng.Matvec(&all[0], 0))
				must(b, driver.Wait(0))
				b.SetBytes(int64(bytes))
				b.ResetTimer()
				for i := range b.N {
					must(b, eng.Matvec(&all[i%len(all)], 0))
				}
				must(b, driver.Wait(0))
			})
		})
	}
}
