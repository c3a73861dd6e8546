package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/status"
)

func floats(values ...float32) (data []byte) {
	for _, v := range values {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	return data
}

// valuesOf returns a BF16 tensor as numbers.
func valuesOf(w tens) (list []float32) {
	for i := 0; i < len(w.data); i += 2 {
		list = append(list, math.Float32frombits(uint32(binary.LittleEndian.Uint16(w.data[i:]))<<16))
	}
	return list
}

// bnb4bit returns a BF16 weight as bitsandbytes stores it: codes by the nearest
// entry, absmax per block of 64, double-quantised or not. The last tensor
// holds the expanded absmax, for the test.
func bnb4bit(w tens, kind string, double bool, storage dtype.Type) (parts []tens, absmax []float32) {
	code := quant.NF4
	if kind == "fp4" {
		code = [16]float32{0, 0.0625 / 12, 8. / 12, 1, 4. / 12, 6. / 12, 2. / 12, 3. / 12, 0, -0.0625 / 12, -8. / 12, -1, -4. / 12, -6. / 12, -2. / 12, -3. / 12}
	}
	v := valuesOf(w)
	nearest := func(x float32, code []float32) (best byte) {
		for i, c := range code {
			if math.Abs(float64(x-c)) < math.Abs(float64(x-code[best])) {
				best = byte(i)
			}
		}
		return best
	}
	for i := 0; i < len(v); i += 64 {
		most := float32(0)
		for _, x := range v[i:min(i+64, len(v))] {
			most = max(most, float32(math.Abs(float64(x))))
		}
		absmax = append(absmax, most)
	}
	packed := make([]byte, (len(v)+1)/2)
	for i, x := range v {
		packed[i/2] |= nearest(x/absmax[i/64], code[:]) << (4 * (1 - i%2))
	}
	for len(packed)%storage.WordBytes() != 0 {
		packed = append(packed, 0)
	}
	state := fmt.Sprintf(`{"quant_type": %q, "blocksize": 64, "dtype": "bfloat16", "shape": [%d, %d]`, kind, w.shape[0], w.shape[1])
	add := func(suffix string, typ dtype.Type, data []byte) {
		parts = append(parts, tens{w.name + suffix, typ, []uint64{uint64(len(data) / typ.WordBytes())}, data})
	}
	parts = []tens{{w.name, storage, []uint64{uint64(len(packed) / storage.WordBytes()), 1}, packed}}
	add(".quant_map", dtype.F32, floats(code[:]...))
	if double {
		var map2 [256]float32
		for i := range map2 {
			map2[i] = float32(i-128) / 128
		}
		offset := float32(0)
		for _, a := range absmax {
			offset += a / float32(len(absmax))
		}
		var codes []byte
		var nested []float32
		for i := 0; i < len(absmax); i += 256 {
			most := float32(0)
			for _, a := range absmax[i:min(i+256, len(absmax))] {
				most = max(most, float32(math.Abs(float64(a-offset))))
			}
			nested = append(nested, most)
		}
		for i, a := range absmax {
			c := nearest((a-offset)/nested[i/256], map2[:])
			codes = append(codes, c)
			absmax[i] = float32(map2[c]*nested[i/256]) + offset
		}
		state += fmt.Sprintf(`, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": %v`, float64(offset))
		add(".absmax", dtype.U8, codes)
		add(".nested_absmax", dtype.F32, floats(nested...))
		add(".nested_quant_map", dtype.F32, floats(map2[:]...))
	} else {
		add(".absmax", dtype.F32, floats(absmax...))
	}
	add(bnbState+kind, dtype.U8, []byte(state+"}"))
	return parts, absmax
}

// bnbInt8 returns a BF16 weight as LLM.int8() stores it.
func bnbInt8(w tens, module string) []tens {
	v, columns := valuesOf(w), int(w.shape[1])
	var scales []float32
	codes := make([]byte, len(v))
	for i := 0; i < len(v); i += columns {
		most := float32(0)
		for _, x := range v[i : i+columns] {
			most = max(most, float32(math.Abs(float64(x))))
		}
		scales = append(scales, most)
		for j, x := range v[i : i+columns] {
			codes[i+j] = byte(int8(math.RoundToEven(float64(x / most * 127))))
		}
	}
	return []tens{
		{module + ".weight", dtype.I8, w.shape, codes},
		{module + ".SCB", dtype.F32, []uint64{w.shape[0]}, floats(scales...)},
		{module + ".weight_format", dtype.U8, nil, []byte{0}},
	}
}

// bnbModel returns a model and what bitsandbytes makes of it.
func bnbModel() (full, bnb []tens) {
	norm := normal("norm.weight", dtype.BF16, 1, 4096)
	embed := normal("embed_tokens.weight", dtype.BF16, 2, 100, 64)
	full, bnb = append(full, norm, embed), append(bnb, norm, embed)
	for i, c := range []struct {
		kind    string
		double  bool
		storage dtype.Type
	}{{"nf4", false, dtype.U8}, {"nf4", true, dtype.U8}, {"fp4", false, dtype.BF16}, {"fp4", true, dtype.F32}} {
		w := normal(fmt.Sprintf("layers.%d.up_proj.weight", i), dtype.BF16, uint64(10+i), 333, 131)
		parts, _ := bnb4bit(w, c.kind, c.double, c.storage)
		full, bnb = append(full, w), append(bnb, parts...)
	}
	w := normal("layers.4.up_proj.weight", dtype.BF16, 20, 200, 96)
	return append(full, w), append(bnb, bnbInt8(w, "layers.4.up_proj")...)
}

func TestCompressAgainstBitsandbytes(t *testing.T) {
	dir := t.TempDir()
	full, bnb := bnbModel()
	hub(t, dir+"/model", full, "{}")
	hub(t, dir+"/bnb", bnb, `{"quantization_config":{}}`) // parts of a weight in both shards
	os.RemoveAll(dir + "/bnb/unet")
	for _, link := range []bool{false, true} {
		out := fmt.Sprint(dir, "/out-", link)
		r := compressTo(t, open(t, dir+"/model"), out, func(o *CompressOptions) { o.BasePath, o.LinkBase = dir+"/bnb", link })
		restore(t, out, out+"-restored")
		sameTree(t, out+"-restored", dir+"/model")
		if !link {
			sameTree(t, out+"/base", dir+"/bnb")
		}
		quantisedParts(t, out, 5)
		for _, row := range r.Tensors {
			layout := map[string]string{
				"layers.0.up_proj.weight": "nf4", "layers.1.up_proj.weight": "nf4 double", "layers.2.up_proj.weight": "fp4",
				"layers.3.up_proj.weight": "fp4 double", "layers.4.up_proj.weight": "int8 rows", "norm.weight": "BF16", "embed_tokens.weight": "BF16",
			}[row.Name]
			if row.BaseLayout != layout || layout == "BF16" && row.Kind != kindUnchanged {
				t.Errorf("%s has a base of %q and is %s", row.Name, row.BaseLayout, row.Kind)
			}
			if layout == "nf4" && (row.Codec == nil || 8*float64(row.StoredBytes)/(333*131) > 8) {
				t.Errorf("%s takes %d bytes", row.Name, row.StoredBytes)
			}
		}
	}
	noLitter(t, dir)
}

// quantisedParts compares what the parts of the quantised bases in the
// compressed model out stand for with what the core reads of them.
func quantisedParts(t *testing.T, out string, want int) {
	t.Helper()
	base, err := OpenCompressedBase(out)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	target, err := Apply(base, []string{ResidualPath(out)})
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p, list := partsOf(t, target)
	for _, row := range list.Tensors {
		q := row.Quantised
		if q == nil {
			continue
		}
		want--
		d := quant.Description{Kind: q.Kind, Bits: q.Bits, GroupSize: q.GroupSize, Dtype: row.Dtype}
		scheme, typ, err := d.Scheme()
		if err != nil {
			t.Fatal(err)
		}
		if scheme.Scale, err = dtype.Parse(q.ScaleType); err != nil {
			t.Fatal(err)
		}
		data := quant.Data{Packed: gather(t, p, q.Packed, 2), Scale: gather(t, p, q.Scale, 2)}
		if q.Zero != nil {
			scheme.Zero, data.Zero = true, gather(t, p, *q.Zero, 1)
		}
		if q.Code != nil {
			if err := readFloats(scheme.Code[:], gather(t, p, *q.Code, 1)); err != nil {
				t.Fatal(err)
			}
		}
		n := row.Bytes / uint64(typ.WordBytes())
		if err := scheme.Check(&data, n, typ); err != nil {
			t.Fatalf("%s: %v", row.Name, err)
		}
		got, expected := make([]byte, row.Bytes), make([]byte, row.Bytes)
		if err := quant.DequantizeRange(got, typ, &scheme, &data, n, 0); err != nil {
			t.Fatal(err)
		}
		if err := base.ReadTensor(context.Background(), row.Name, expected, 1); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, expected) {
			t.Errorf("the parts of the base of %s stand for something else", row.Name)
		}
	}
	if want != 0 {
		t.Errorf("%d quantised bases more were expected", want)
	}
}

// A view of any part of a tensor with nested scales is what the expanded
// scales give, in every element type.
func TestNestedViews(t *testing.T) {
	w := normal("w.weight", dtype.BF16, 1, 333, 131)
	parts, absmax := bnb4bit(w, "nf4", true, dtype.U8)
	path := write(t, t.TempDir()+"/w.safetensors", fileOf(parts))
	for _, typ := range []dtype.Type{dtype.Invalid, dtype.F32, dtype.F16} {
		s, err := OpenQuantised(path, func(string) dtype.Type { return typ })
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		c := s.byName[w.name].data.(*quantised)
		want := make([]byte, c.size())
		plain := quant.Data{Packed: c.data.Packed, Scale: floats(absmax...)}
		if err := quant.Dequantize(context.Background(), want, c.desc.Type, &c.scheme, &plain, 2); err != nil {
			t.Fatal(err)
		}
		word := uint64(c.desc.Type.WordBytes())
		var buf []byte
		for _, r := range [][2]uint64{{0, c.n}, {0, 1}, {63, 2}, {64, 64}, {65, 1000}, {c.n - 1, 1}, {c.n - 70, 70}, {16383, 20000}, {5, 0}} {
			got, err := c.view(r[0]*word, r[1]*word, &buf)
			if err != nil || !bytes.Equal(got, want[r[0]*word:(r[0]+r[1])*word]) {
				t.Errorf("%v: elements %v differ (%v)", c.desc.Type, r, err)
			}
		}
	}
}

func TestBitsandbytesRefuses(t *testing.T) {
	dir := t.TempDir()
	w := normal("m.weight", dtype.BF16, 1, 130, 128)
	nf4, _ := bnb4bit(w, "nf4", true, dtype.U8)
	int8s := bnbInt8(w, "m")
	without := func(parts []tens, suffix string) (list []tens) {
		for _, p := range parts {
			if p.name != "m"+suffix {
				list = append(list, p)
			}
		}
		return list
	}
	with := func(parts []tens, suffix, old, new string) []tens {
		for _, p := range parts {
			if p.name == "m"+suffix {
				p.data = bytes.ReplaceAll(p.data, []byte(old), []byte(new))
				p.shape = []uint64{uint64(len(p.data))}
				return append(without(parts, suffix), p)
			}
		}
		panic(suffix)
	}
	state := ".weight" + bnbState + "nf4"
	for i, c := range []struct {
		parts []tens
		want  error
		says  string
	}{
		{without(nf4, ".weight"), status.ErrCorrupt, "m.weight is missing"},
		{without(nf4, ".weight.absmax"), status.ErrCorrupt, "absmax is missing"},
		{without(nf4, ".weight.nested_absmax"), status.ErrCorrupt, "nested_absmax is missing"},
		{without(nf4, ".weight.nested_quant_map"), status.ErrCorrupt, "nested_quant_map is missing"},
		{with(nf4, state, `"nested_dtype": "float32"`, `"nested_dtype": "float16"`), status.ErrUnsupported, "nested_dtype"},
		{with(nf4, state, `"nf4"`, `"af4"`), status.ErrUnsupported, "af4"},
		{with(nf4, state, `"bfloat16"`, `"float64"`), status.ErrUnsupported, "float64"},
		{with(nf4, state, `"blocksize": 64`, `"blocksize": 32`), status.ErrCorrupt, "codes"},
		{with(nf4, state, `"blocksize": 64`, `"blocksize": 4`), status.ErrCorrupt, "group"},
		{with(nf4, state, `"blocksize": 64`, `"blocksize": 63`), status.ErrUnsupported, "even"},
		{with(nf4, state, `"nested_blocksize": 256`, `"nested_blocksize": 0`), status.ErrCorrupt, "block"},
		{with(nf4, state, `"nested_blocksize": 256`, `"nested_blocksize": 8`), status.ErrCorrupt, "scales"},
		{with(nf4, state, `[130`, `[131`), status.ErrCorrupt, "bytes of codes"},
		{with(nf4, state, `[130`, `[-1`), status.ErrCorrupt, "malformed"},
		{with(nf4, state, `[130`, `[4294967296, 4294967296`), status.ErrLimit, "2^64"},
		{with(nf4, state, `{`, `[`), status.ErrCorrupt, "malformed"},
		{without(int8s, ".weight"), status.ErrCorrupt, "no I8 matrix"},
		{with(int8s, ".weight_format", "\x00", "\x02"), status.ErrUnsupported, "weight_format"},
		{without(int8s, ".SCB"), nil, ""}, // an I8 tensor as any other
	} {
		path := write(t, fmt.Sprintf("%s/%d.safetensors", dir, i), fileOf(c.parts))
		s, err := OpenQuantised(path, func(string) dtype.Type { return dtype.Invalid })
		if c.want == nil {
			if err != nil || s.byName["m.weight"].desc.Type != dtype.I8 {
				t.Errorf("case %d: %v", i, err)
			}
			continue
		}
		if err == nil {
			t.Errorf("case %d (%s): it was taken", i, c.says)
			continue
		}
		wantError(t, err, c.want, c.says)
	}

	// What does not fit the model.
	base := write(t, dir+"/nf4.safetensors", fileOf(nf4))
	for says, target := range map[string]tens{
		"does not have it": normal("other.weight", dtype.BF16, 1, 130, 128),
		"in shape":         normal("m.weight", dtype.BF16, 1, 128, 130),
		"expected F32":     random("m.weight", dtype.F64, 1, 130, 128),
	} {
		o := DefaultCompressOptions()
		o.BasePath = base
		_, err := Compress(context.Background(), memory(t, target), dir+"/out", o, nil)
		wantError(t, err, status.ErrBaseMismatch, says, "tensor")
	}
	// The type of the elements is the model's.
	for _, typ := range []dtype.Type{dtype.F16, dtype.F32} {
		target := memory(t, normal("m.weight", typ, 1, 130, 128))
		out := fmt.Sprint(dir, "/", typ)
		r := compressTo(t, target, out, func(o *CompressOptions) { o.BasePath = base })
		if r.Tensors[0].Kind != kindDelta || r.Tensors[0].BaseBytes == 0 {
			t.Errorf("%v: %+v", typ, r.Tensors[0])
		}
		restore(t, out, out+".safetensors")
	}
}

// Whatever a file claims of its quantised tensors, it is refused, or all of
// them can be read.
func FuzzQuantised(f *testing.F) {
	w := normal("w.weight", dtype.BF16, 1, 130, 128)
	nf4, _ := bnb4bit(w, "nf4", true, dtype.U8)
	dir := f.TempDir()
	compressTo(f, memory(f, w), dir+"/out", nil)
	ours, err := os.ReadFile(dir + "/out/base/model.safetensors")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(ours)
	f.Add(fileOf(nf4))
	f.Add(fileOf(bnbInt8(normal("m.weight", dtype.BF16, 2, 16, 8), "m")))
	path := dir + "/x.safetensors"
	f.Fuzz(func(t *testing.T, data []byte) {
		write(t, path, data)
		s, err := OpenQuantised(path, func(string) dtype.Type { return dtype.Invalid })
		if err != nil {
			return
		}
		defer s.Close()
		for _, e := range s.tensors {
			if e.data.size() > 1<<24 {
				continue
			}
			if err := s.ReadTensor(context.Background(), e.name, make([]byte, e.data.size()), 1); err != nil {
				t.Error(err)
			}
		}
	})
}
