package residual

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestFloat8SumsAreTorchs compares all pairs of all four types.
func TestFloat8SumsAreTorchs(t *testing.T) {
	for typ, name := range map[dtype.Type]string{
		dtype.F8E4M3: "e4m3fn", dtype.F8E5M2: "e5m2", dtype.F8E4M3FNUZ: "e4m3fnuz", dtype.F8E5M2FNUZ: "e5m2fnuz",
	} {
		z, err := gzip.NewReader(bytes.NewReader(read(t, "torch_f8_"+name+".bin.gz")))
		if err != nil {
			t.Fatal(err)
		}
		want, err := io.ReadAll(z)
		if err != nil || len(want) != 1<<16 {
			t.Fatalf("%v: %d bytes, %v", typ, len(want), err)
		}
		table := arithF8[typ].get()
		for i, w := range want {
			got := table.sums[i]
			bothNaN := table.format.nan(uint32(got)) && table.format.nan(uint32(w))
			if got != w && !bothNaN {
				t.Fatalf("%v: %02x + %02x = %02x, torch says %02x", typ, i>>8, i&255, got, w)
			}
		}
	}
}

// TestFloat8ExceptionsAreMinimal looks at every base and target: a word is an
// exception exactly if no residual other than 0 gives the target.
func TestFloat8ExceptionsAreMinimal(t *testing.T) {
	for typ, table := range arithF8 {
		table.get()
		base, target := make([]byte, 256), make([]byte, 256)
		res, dst := make([]byte, 256), make([]byte, 256)
		for b := range 256 {
			for i := range base {
				base[i], target[i] = byte(b), byte(i)
			}
			exceptions := Compute(Add, typ, res, base, target, nil)
			Apply(Add, typ, dst, base, res)
			for i := range target {
				exists := false
				for v := 1; v < 256; v++ {
					sum := table.format.widen(uint32(b)) + table.format.widen(uint32(v))
					saturated := typ == dtype.F8E4M3 && (sum > 464 || sum < -464)
					exists = exists || table.sums[b<<8|v] == byte(i) && !saturated
				}
				exists = exists && !table.format.nan(uint32(i)) || i == b
				isException := slices.Contains(exceptions, uint32(i))
				if isException == exists {
					t.Fatalf("%v: %02x to %02x: exception %v, but a residual exists: %v", typ, b, i, isException, exists)
				}
				if want := map[bool]byte{true: byte(b), false: byte(i)}[isException]; dst[i] != want || isException && res[i] != 0 {
					t.Fatalf("%v: %02x to %02x by %02x gives %02x", typ, b, i, res[i], dst[i])
				}
			}
		}
	}
}

// rows splits a file of torch_sums.py into words, three to a row.
func rows[T word.Word](t *testing.T, name string) []T {
	t.Helper()
	data := read(t, name)
	out := make([]T, len(data)/word.Size[T]())
	copy(word.Bytes(out), data)
	return out
}

// checkTorch compares sums with torch's, and shows that Compute and Apply take
// the first addend to the sum wherever that is not an exception.
func checkTorch[T word.Word](t *testing.T, typ dtype.Type, f *float[T], name string) {
	data := rows[T](t, name)
	n := len(data) / 3
	base, value, sum := make([]T, n), make([]T, n), make([]T, n)
	indices := make([]int64, n)
	for i := range n {
		base[i], value[i], sum[i] = data[3*i], data[3*i+1], data[3*i+2]
		indices[i] = int64(i)
	}
	got := slices.Clone(base)
	ScatterAdd(typ, word.Bytes(got), indices, word.Bytes(value))
	for i := range got {
		if got[i] != sum[i] && !(f.nan(got[i]) && f.nan(sum[i])) {
			t.Errorf("%v: %x + %x = %x, torch says %x", typ, base[i], value[i], got[i], sum[i])
		}
	}
	exceptions := checkRoundTrip(t, typ, word.Bytes(base), word.Bytes(sum))
	for _, e := range exceptions {
		zero := sum[e]<<1 == 0 // -0 to +0 by +0, which would mean "unchanged"
		if !f.nan(sum[e]) && !(zero && value[e]<<1 == 0) {
			t.Errorf("%v: %x to %x is an exception, but torch adds %x", typ, base[e], sum[e], value[e])
		}
	}
}

// checkRoundTrip shows that the target is rebuilt but for exceptions, which it
// returns, and that exceptions keep the base.
func checkRoundTrip(t *testing.T, typ dtype.Type, base, target []byte) []uint32 {
	t.Helper()
	w := typ.WordBytes()
	res := word.Bytes(make([]uint64, (len(base)+7)/8))[:len(base)]
	exceptions := Compute(Add, typ, res, base, target, nil)
	if !slices.IsSorted(exceptions) {
		t.Fatalf("%v: exceptions are not in order", typ)
	}
	dst := slices.Clone(res)
	Apply(Add, typ, dst, base, dst)
	for i := 0; i < len(base)/w; i++ {
		at := func(b []byte) []byte { return b[i*w : (i+1)*w] }
		_, exception := slices.BinarySearch(exceptions, uint32(i))
		want := at(target)
		if exception {
			want = at(base)
		}
		unchanged := bytes.Equal(at(base), at(target))
		if !bytes.Equal(at(dst), want) || (le(at(res)) == 0) != (unchanged || exception) || unchanged && exception {
			t.Fatalf("%v word %d: %x to %x by %x gives %x, exception %v", typ, i, at(base), at(target), at(res), at(dst), exception)
		}
	}
	return exceptions
}

func TestSumsAreTorchs(t *testing.T) {
	checkTorch(t, dtype.F16, &arithF16, "torch_f16.bin")
	checkTorch(t, dtype.BF16, &arithBF16, "torch_bf16.bin")
	checkTorch(t, dtype.F32, &arithF32, "torch_f32.bin")
	checkTorch(t, dtype.C64, &arithF32, "torch_f32.bin")
	checkTorch(t, dtype.F64, &arithF64, "torch_f64.bin")
}

func TestCastsAreTorchs(t *testing.T) {
	data := read(t, "torch_narrow.bin")
	for i := 0; i < len(data); i += 8 {
		f := math.Float32frombits(binary.LittleEndian.Uint32(data[i:]))
		half, brain := binary.LittleEndian.Uint16(data[i+4:]), binary.LittleEndian.Uint16(data[i+6:])
		if got := uint16(float16.narrow(f)); got != half && !(arithF16.nan(got) && arithF16.nan(half)) {
			t.Errorf("float16(%x) = %04x, torch says %04x", math.Float32bits(f), got, half)
		}
		if got := float32ToBfloat16(f); got != brain && !(arithBF16.nan(got) && arithBF16.nan(brain)) {
			t.Errorf("bfloat16(%x) = %04x, torch says %04x", math.Float32bits(f), got, brain)
		}
	}
	for c := range uint32(1 << 16) {
		if got := float16.narrow(float16.widen(c)); got != c && !float16.nan(c) {
			t.Errorf("float16 %04x widens and narrows to %04x", c, got)
		}
	}
}

func TestAddRoundTripsAnything(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	for _, typ := range allTypes {
		if !typ.HasAdd() {
			continue
		}
		for _, n := range sizes {
			base, target := randomPair(rng, n, typ.WordBytes())
			checkRoundTrip(t, typ, base, target)
		}
	}
}

// TestHalfExceptionsAreMinimal tries every residual for a sample of pairs.
func TestHalfExceptionsAreMinimal(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	for _, f := range []*float[uint16]{&arithF16, &arithBF16} {
		for range 60 {
			base := uint16(rng.Uint32())
			reachable := make([]bool, 1<<16)
			for v := range 1 << 16 {
				if sum := f.add(base, uint16(v)); v != 0 && !f.nan(sum) {
					reachable[sum] = true
				}
			}
			for target := range 1 << 16 {
				if target == int(base) {
					continue
				}
				if found := f.solve(base, uint16(target)) != 0; found != reachable[target] {
					t.Fatalf("%04x to %04x: found %v, reachable %v", base, target, found, reachable[target])
				}
			}
		}
	}
}

func TestExceptions(t *testing.T) {
	for _, c := range []struct {
		what         string
		base, target uint16 // BF16
		exception    bool
	}{
		{"one to two", 0x3F80, 0x4000, false},
		{"to infinity", 0x3F80, 0x7F80, false},
		{"infinity to one", 0x7F80, 0x3F80, true},
		{"infinity to minus infinity", 0x7F80, 0xFF80, true},
		{"to NaN", 0x3F80, 0x7FC0, true},
		{"NaN to one", 0x7FC1, 0x3F80, true},
		{"NaN unchanged", 0xFFC1, 0xFFC1, false},
		{"signalling NaN unchanged", 0x7F81, 0x7F81, false},
		{"minus zero unchanged", 0x8000, 0x8000, false},
		{"to minus zero", 0x3F80, 0x8000, true},
		{"plus to minus zero", 0, 0x8000, true},
		{"minus to plus zero", 0x8000, 0, true},
		{"one to zero", 0x3F80, 0, false},
		{"zero to the smallest subnormal", 0, 1, false},
		{"large to tiny", 0x4B00, 0x0001, true},
		{"tiny to large", 0x0001, 0x4B00, false},
		{"largest to minus largest", 0x7F7F, 0xFF7F, true},
	} {
		base, target, res := []uint16{c.base}, []uint16{c.target}, []uint16{7}
		e := Compute(Add, dtype.BF16, word.Bytes(res), word.Bytes(base), word.Bytes(target), nil)
		if (len(e) == 1) != c.exception {
			t.Errorf("%s: exceptions %v, residual %04x", c.what, e, res[0])
		}
	}
}

func TestScatterAdd(t *testing.T) {
	zero := []uint16{0x8000}
	ScatterAdd(dtype.BF16, word.Bytes(zero), []int64{0}, word.Bytes([]uint16{0}))
	if zero[0] != 0 {
		t.Errorf("-0 + 0 = %04x, expected +0 as torch has it", zero[0])
	}
	for _, c := range []struct {
		typ                 dtype.Type
		dst, values, expect []byte
	}{
		{dtype.I8, []byte{1, 250}, []byte{5, 9, 1}, []byte{2, 8}},
		{dtype.Bool, []byte{0, 1}, []byte{0, 1, 1}, []byte{1, 1}},
		{dtype.F8E4M3, []byte{0x38, 0x38}, []byte{0x38, 0xB8, 0x38}, []byte{0x40, 0x38}},
	} {
		ScatterAdd(c.typ, c.dst, []int64{1, 1, 0}, c.values)
		if !bytes.Equal(c.dst, c.expect) {
			t.Errorf("%v: %v, expected %v", c.typ, c.dst, c.expect)
		}
	}
	words := []uint64{1, ^uint64(0)}
	ScatterAdd(dtype.I64, word.Bytes(words), []int64{1}, word.Bytes([]uint64{3}))
	ScatterAdd(dtype.U16, word.Bytes(words[:1]), []int64{3}, word.Bytes([]uint16{9}))
	ScatterAdd(dtype.I32, word.Bytes(words[:1]), []int64{0}, word.Bytes([]uint32{^uint32(0)}))
	if words[1] != 2 || words[0] != 9<<48 {
		t.Errorf("integers add to %x", words)
	}
}
