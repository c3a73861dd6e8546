package engine

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/status"
)

func goodMatvec() Matvec {
	return Matvec{
		Type: dtype.BF16,
		Weight: Quantised{
			Scheme: quant.Scheme{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16},
			At:     quant.Pointers{Packed: uint64(gpu0), Scale: uint64(gpu0) + 1<<30},
		},
		X: gpu0 + 2<<30, XStride: 4096, Y: gpu0 + 3<<30, Rows: 1, Outs: 1000, Ins: 4096,
	}
}

func TestMatvecCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Matvec)
		want error
	}{
		{"good", func(m *Matvec) {}, nil},
		{"no rows", func(m *Matvec) { m.Rows, m.X = 0, 0 }, nil},
		{"no outs", func(m *Matvec) { m.Outs = 0 }, nil},
		{"no ins", func(m *Matvec) { m.Ins = 0 }, status.ErrArgument},
		{"integers", func(m *Matvec) { m.Type = dtype.I32 }, status.ErrUnsupported},
		{"null x", func(m *Matvec) { m.X = 0 }, status.ErrArgument},
		{"null y", func(m *Matvec) { m.Y = 0 }, status.ErrArgument},
		{"x off word", func(m *Matvec) { m.X++ }, status.ErrArgument},
		{"bias off word", func(m *Matvec) { m.Bias = gpu0 + 1 }, status.ErrArgument},
		{"too large", func(m *Matvec) { m.Ins = 1 << 39 }, status.ErrLimit},
		{"too many rows", func(m *Matvec) { m.Rows = 1 << 24 }, status.ErrLimit},
		{"code book of none", func(m *Matvec) { m.Weight.Code = gpu0 }, status.ErrArgument},
		{"no code book", func(m *Matvec) { m.Weight.Scheme.Kind = quant.Codebook }, status.ErrArgument},
	} {
		m := goodMatvec()
		c.edit(&m)
		if err := m.check(); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v, expected %v", c.name, err, c.want)
		}
	}
}

// TestMatvecTiles: what the kernel for tensor cores takes.
func TestMatvecTiles(t *testing.T) {
	for _, c := range []struct {
		name                   string
		edit                   func(*Matvec)
		ok                     bool
		variant, groups, shift int
	}{
		{"good", func(m *Matvec) {}, true, 6 + 2, 64, 6},
		{"float16", func(m *Matvec) { m.Type = dtype.F16 }, true, 2, 64, 6},
		{"a group a row", func(m *Matvec) { m.Ins, m.Weight.Scheme.Group = 96, 96 }, true, 6 + 2, 1, 31},
		{"3 bits", func(m *Matvec) { m.Weight.Scheme.Bits = 3 }, true, 6 + 1, 64, 6},
		{"int8 rows", func(m *Matvec) {
			m.Weight.Scheme = quant.Scheme{Kind: quant.Int8Rows, Bits: 8, Group: 48, Scale: dtype.F32}
			m.Ins = 48
		}, true, 6 + 5, 1, 31},
		{"float32", func(m *Matvec) { m.Type = dtype.F32 }, false, 0, 0, 0},
		{"group of 100", func(m *Matvec) { m.Weight.Scheme.Group = 100 }, false, 0, 0, 0},
		{"group of 16", func(m *Matvec) { m.Weight.Scheme.Group = 16 }, false, 0, 0, 0},
		{"group of two rows", func(m *Matvec) { m.Weight.Scheme.Group = 8192 }, false, 0, 0, 0},
		{"half a unit", func(m *Matvec) { m.Ins, m.Weight.Scheme.Group = 80, 80 }, false, 0, 0, 0},
		{"3 bits, half a unit", func(m *Matvec) { m.Ins, m.Weight.Scheme.Bits = 192, 3 }, false, 0, 0, 0},
		{"packed off 16", func(m *Matvec) { m.Weight.At.Packed += 4 }, false, 0, 0, 0},
		{"x off 16", func(m *Matvec) { m.X += 2 }, false, 0, 0, 0},
		{"rows off 16", func(m *Matvec) { m.XStride++ }, false, 0, 0, 0},
		{"huge", func(m *Matvec) { m.Outs = 1 << 30 }, false, 0, 0, 0},
	} {
		m := goodMatvec()
		c.edit(&m)
		var a matvecArguments
		variant, ok := m.tiles(&a)
		if ok != c.ok || ok && (variant != c.variant || int(a.rowGroups) != c.groups || int(a.shift) != c.shift) {
			t.Errorf("%s: %v, variant %d, %d groups, shift %d; expected %+v", c.name, ok, variant, a.rowGroups, a.shift, c)
		}
	}
	for variant, macros := range matvecVariants {
		m := goodMatvec()
		s := &m.Weight.Scheme
		for kind, name := range map[quant.Kind]string{quant.Linear: "kLinear", quant.Codebook: "kCodebook", quant.Int8Rows: "kInt8Rows"} {
			if strings.Contains(macros, name) {
				s.Kind = kind
			}
		}
		s.Bits = macros[len(macros)-1] - '0'
		if strings.Contains(macros, "kF16") {
			m.Type = dtype.F16
		}
		if got, ok := m.tiles(new(matvecArguments)); !ok || got != variant {
			t.Errorf("%s is variant %d, expected %d", macros, got, variant)
		}
	}
}

func TestMatvecLaunch(t *testing.T) {
	e, calls := openFake(t)
	launched := func(name string, blocks uint64) string {
		return fmt.Sprintf("launch %s context c0 grid %d 1 1 block 256 1 1 shared 0 stream 7 early 1 arguments ", name, blocks)
	}
	expect := func(name string, blocks uint64) []byte {
		t.Helper()
		got := calls()
		got = slices.DeleteFunc(got, func(s string) bool { return !strings.HasPrefix(s, "launch") })
		if len(got) != 1 || !strings.HasPrefix(got[0], launched(name, blocks)) {
			t.Fatalf("got %.300q, expected %s", got, launched(name, blocks))
		}
		data, err := hex.DecodeString(got[0][len(launched(name, blocks)):])
		if err != nil {
			t.Fatal(err)
		}
		return data[quant.DescriptorBytes:]
	}
	m := goodMatvec()
	m.Rows, m.Bias = 17, gpu0+4<<30
	if err := e.Matvec(&m, 7); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, v := range []uint64{0, uint64(m.X), uint64(m.Bias), uint64(m.Y), 4096, 1000, 4096} {
		want = binary.LittleEndian.AppendUint64(want, v)
	}
	for _, v := range []uint32{17, 3, 64, 6} {
		want = binary.LittleEndian.AppendUint32(want, v)
	}
	if got := expect("matvec_tiles", 63*3); !slices.Equal(got, want) {
		t.Errorf("arguments %x, expected %x", got, want)
	}
	m.Type, m.XStride = dtype.F32, 5000
	if err := e.Matvec(&m, 7); err != nil {
		t.Fatal(err)
	}
	expect("matvec_any", 125*3)
	m.Rows = 0
	if err := e.Matvec(&m, 7); err != nil || len(calls()) != 0 {
		t.Errorf("no rows: %v, or a call", err)
	}

	d := Dequantise{Type: dtype.F32, Weight: m.Weight, Elements: 5000, Dst: gpu0, First: 8, Count: 1025}
	if err := e.Dequantise(&d, 7); err != nil {
		t.Fatal(err)
	}
	expect("dequantise", 2)
	for _, edit := range []func(*Dequantise){
		func(d *Dequantise) { d.Dst += 8 }, func(d *Dequantise) { d.Count = 4993 }, func(d *Dequantise) { d.First = 5001 },
	} {
		bad := d
		edit(&bad)
		if err := e.Dequantise(&bad, 7); !errors.Is(err, status.ErrArgument) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
