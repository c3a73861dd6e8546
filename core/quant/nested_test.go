package quant

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/status"
)

// nestedCase returns nested scales of groups groups with arbitrary contents.
func nestedCase(groups, block uint64) *Nested {
	r := rand.New(rand.NewPCG(groups, block))
	x := &Nested{Codes: make([]byte, groups), Block: block, Offset: float32(r.NormFloat64())}
	for i := range x.Codes {
		x.Codes[i] = byte(r.Uint32())
	}
	for range (groups + block - 1) / block {
		x.Scale = binary.LittleEndian.AppendUint32(x.Scale, math.Float32bits(float32(r.NormFloat64())))
	}
	for i := range x.Code {
		x.Code[i] = float32(r.NormFloat64())
	}
	return x
}

func TestNestedRoundsTwice(t *testing.T) {
	const groups, block = 1000, 256
	x := nestedCase(groups, block)
	if err := x.Validate(groups); err != nil {
		t.Fatal(err)
	}
	whole := make([]byte, 4*groups)
	x.Expand(whole, 0)
	fused := 0
	for i := range uint64(groups) {
		scale := math.Float32frombits(binary.LittleEndian.Uint32(x.Scale[4*(i/block):]))
		// A product of two float32 numbers is exact in float64, and so is its
		// rounding to float32; the sum of two float32 numbers rounded from
		// float64 is their float32 sum.
		product := float32(float64(x.Code[x.Codes[i]]) * float64(scale))
		want := float32(float64(product) + float64(x.Offset))
		got := math.Float32frombits(binary.LittleEndian.Uint32(whole[4*i:]))
		if math.Float32bits(got) != math.Float32bits(want) {
			t.Fatalf("group %d: got %v, want %v", i, got, want)
		}
		if float32(math.FMA(float64(x.Code[x.Codes[i]]), float64(scale), float64(x.Offset))) != want {
			fused++
		}
	}
	if fused == 0 {
		t.Error("no case would tell a fused multiply-add apart")
	}
	part := make([]byte, 4*300)
	x.Expand(part, 200)
	if string(part) != string(whole[4*200:4*500]) {
		t.Error("a part differs from the whole")
	}
}

func TestNestedRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Nested){
		"no block":     func(x *Nested) { x.Block = 0 },
		"codes short":  func(x *Nested) { x.Codes = x.Codes[1:] },
		"scales short": func(x *Nested) { x.Scale = x.Scale[4:] },
		"code NaN":     func(x *Nested) { x.Code[7] = float32(math.NaN()) },
		"code inf":     func(x *Nested) { x.Code[255] = float32(math.Inf(1)) },
	} {
		x := nestedCase(513, 256)
		spoil(x)
		if err := x.Validate(513); !errors.Is(err, status.ErrArgument) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestDescription(t *testing.T) {
	for _, want := range []Scheme{{Kind: Linear, Bits: 3, Group: 64}, {Kind: Codebook, Bits: 4, Group: 128}, {Kind: Int8Rows, Bits: 8, Group: 1 << 40}} {
		d := want.Describe([]uint64{2, 3}, 5)
		got, typ, err := d.Scheme()
		if err != nil || got != want || typ != 5 {
			t.Errorf("%+v became %+v, %v, %v", want, got, typ, err)
		}
	}
	if _, _, err := (&Description{Kind: "other", Dtype: "F32"}).Scheme(); !errors.Is(err, status.ErrUnsupported) {
		t.Error(err)
	}
	if _, _, err := (&Description{Kind: "linear", Dtype: "F33"}).Scheme(); !errors.Is(err, status.ErrUnsupported) {
		t.Error(err)
	}
}
