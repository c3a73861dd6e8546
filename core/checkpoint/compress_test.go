package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
)

// normal returns a weight as training leaves it.
func normal(name string, typ dtype.Type, seed uint64, shape ...uint64) tens {
	n := uint64(1)
	for _, d := range shape {
		n *= d
	}
	r := rand.New(rand.NewPCG(seed, 3))
	var data []byte
	for range n {
		v := math.Float32bits(float32(r.NormFloat64() * 0.02))
		switch typ {
		case dtype.BF16:
			data = binary.LittleEndian.AppendUint16(data, uint16(v>>16))
		case dtype.F16: // 0.02 is far from what F16 cannot hold, but for the exponent
			e := int(v>>23&255) - 112
			w := uint16(v >> 16 & 0x8000)
			if e > 0 {
				w |= uint16(e)<<10 | uint16(v>>13&0x3FF)
			}
			data = binary.LittleEndian.AppendUint16(data, w)
		default:
			data = binary.LittleEndian.AppendUint32(data, v)
		}
	}
	return tens{name, typ, shape, data}
}

// llama returns a model of the usual parts: float matrices of every type, odd
// sizes, tied ones, and what gets no base.
func llama() []tens {
	embed := normal("model.embed_tokens.weight", dtype.BF16, 1, 300, 64)
	odd := normal("model.layers.0.mlp.up.weight", dtype.BF16, 2, 129, 131) // 16899 elements
	tied := embed
	tied.name = "model.tied.weight"
	wild := random("model.layers.1.mlp.up.weight", dtype.BF16, 3, 130, 128) // NaN, infinity and all
	zeros := tens{"model.layers.1.zeros.weight", dtype.F32, []uint64{128, 128}, make([]byte, 4*128*128)}
	same := odd
	same.name = "model.layers.2.mlp.up.weight"
	return []tens{
		embed, odd, tied, wild, zeros, same,
		normal("model.layers.0.f16.weight", dtype.F16, 4, 128, 200),
		normal("model.layers.0.f32.weight", dtype.F32, 5, 4, 64, 100),
		normal("model.layers.0.norm.weight", dtype.BF16, 6, 32768),
		normal("model.layers.0.small.weight", dtype.BF16, 7, 8, 8),
		random("model.rope", dtype.I32, 8, 128, 256),
		random("model.f64", dtype.F64, 9, 128, 256),
		{"model.empty", dtype.BF16, []uint64{0, 64}, nil},
	}
}

func compressTo(t testing.TB, target *Source, out string, change func(*CompressOptions)) *CompressReport {
	t.Helper()
	o := DefaultCompressOptions()
	if change != nil {
		change(&o)
	}
	var p Progress
	r, err := Compress(context.Background(), target, out, o, &p)
	if err != nil {
		t.Fatal(err)
	}
	if p.Done.Load() != p.Total.Load() {
		t.Errorf("progress ends at %d of %d", p.Done.Load(), p.Total.Load())
	}
	return r
}

// restore unpacks the compressed model in folder.
func restore(t testing.TB, folder, out string) {
	t.Helper()
	base, err := OpenCompressedBase(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	mustUnpack(t, base, out, ResidualPath(folder))
}

func TestCompressRoundTrip(t *testing.T) {
	dir := t.TempDir()
	hub(t, dir+"/model", llama(), `{"model_type":"llama"}`)
	for base, bits := range map[string]float64{"int2": 2.25, "int3": 3.25, "int4": 4.25, "int8": 8.25, "none": 0} {
		t.Run(base, func(t *testing.T) {
			out := dir + "/" + base
			r := compressTo(t, open(t, dir+"/model"), out, func(o *CompressOptions) { o.Base = base })
			restore(t, out, out+"-restored")
			sameTree(t, out+"-restored", dir+"/model")
			noLitter(t, dir)
			for _, row := range r.Tensors {
				has := map[string]bool{"model.layers.0.mlp.up.weight": true, "model.layers.1.mlp.up.weight": true, "model.layers.1.zeros.weight": true,
					"model.layers.0.f16.weight": true, "model.layers.0.f32.weight": true, "model.embed_tokens.weight": true}[row.Name]
				if want := has && base != "none"; (row.BaseBytes > 0) != want {
					t.Errorf("%s (%s): base of %d bytes", row.Name, row.Kind, row.BaseBytes)
				}
				if row.Name == "model.layers.0.f32.weight" && base != "none" {
					if got := 8 * float64(row.BaseBytes) / (4 * 64 * 100); got != bits || row.BaseLayout != base || row.BaseGroup != 64 {
						t.Errorf("%s: %g bits of %s/%d", row.Name, got, row.BaseLayout, row.BaseGroup)
					}
				}
			}
			k := kinds(r.InspectReport)
			if k["model.tied.weight"] != kindAlias || k["model.layers.2.mlp.up.weight"] != kindAlias {
				t.Errorf("kinds %v", k)
			}
			files := tree(t, out)
			_, hasBase := files["base/model.safetensors"]
			if hasBase != (base != "none") || files["config.json"] == "" || files["model.safetensors.index.json"] != "" {
				t.Errorf("files %q", sortedNames(files))
			}
			if len(r.Out) != len(files) {
				t.Errorf("the report lists %q of %q", r.Out, sortedNames(files))
			}
			again, err := InspectCompressed(out)
			if err != nil || again.Totals != r.Totals || again.BaseBytes != r.BaseBytes {
				t.Errorf("inspect says %+v, compress %+v (%v)", again, r.CompressedReport, err)
			}
		})
	}
}

func TestCompressIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	tensors := append(llama(), normal("model.large.weight", dtype.BF16, 10, 1000, 3001))
	hub(t, dir+"/model", tensors, "{}")
	for i, workers := range []int{1, 2, 7} {
		compressTo(t, open(t, dir+"/model"), fmt.Sprint(dir, "/out", i), func(o *CompressOptions) {
			o.Pack.Workers, o.GroupSize = workers, 40
		})
	}
	sameTree(t, dir+"/out1", dir+"/out0")
	sameTree(t, dir+"/out2", dir+"/out0")
	restore(t, dir+"/out0", dir+"/restored")
	sameTree(t, dir+"/restored", dir+"/model")
	for _, group := range []uint64{8, 9, 131, 65536} {
		compressTo(t, open(t, dir+"/model"), dir+"/group", func(o *CompressOptions) {
			o.Base, o.GroupSize, o.Pack.Overwrite = "int3", group, true
		})
		os.RemoveAll(dir + "/restored")
		restore(t, dir+"/group", dir+"/restored")
		sameTree(t, dir+"/restored", dir+"/model")
	}
}

func TestCompressShards(t *testing.T) {
	dir := t.TempDir()
	hub(t, dir+"/model", llama(), "{}")
	compressTo(t, open(t, dir+"/model"), dir+"/out", func(o *CompressOptions) { o.Pack.MaxShardBytes = 20_000 })
	files := tree(t, dir+"/out")
	if files["base/model.safetensors.index.json"] == "" || files["residual.safetensors.index.json"] == "" {
		t.Fatalf("files %q", sortedNames(files))
	}
	if strings.Contains(files["base/model.safetensors.index.json"], `"format": "tpde"`) {
		t.Error("the base calls itself a delta")
	}
	if !IsCompressed(dir+"/out") || IsCompressed(dir+"/model") || IsCompressed(dir+"/none") {
		t.Error("IsCompressed is wrong")
	}
	restore(t, dir+"/out", dir+"/restored")
	sameTree(t, dir+"/restored", dir+"/model")
}

func TestCompressOneFileAndMemory(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir+"/w.safetensors", fileOf(llama(), safetensors.Pair{Key: "a", Value: "b"}))
	compressTo(t, open(t, file), dir+"/out", nil)
	restore(t, dir+"/out", dir+"/restored.safetensors")
	sameFile(t, dir+"/restored.safetensors", file)

	compressTo(t, memory(t, llama()...), dir+"/memory", nil)
	restore(t, dir+"/memory", dir+"/memory.safetensors")
	small := memory(t, normal("w", dtype.BF16, 1, 4, 4))
	r := compressTo(t, small, dir+"/small", nil) // nothing is large enough for a base
	if r.BaseTensors != 0 || r.BaseFileBytes != 0 {
		t.Errorf("%+v", r.CompressedReport)
	}
	restore(t, dir+"/small", dir+"/small.safetensors")
}

// Who rebuilds tensors on a GPU gets the parts of quantised bases.
func TestCompressedParts(t *testing.T) {
	dir := t.TempDir()
	for _, base := range []string{"int3", "int8", "none"} {
		out := dir + "/" + base
		r := compressTo(t, memory(t, llama()...), out, func(o *CompressOptions) { o.Base = base })
		if quantisedParts(t, out, r.BaseTensors); (r.BaseTensors > 0) != (base != "none") {
			t.Errorf("%s: %d tensors have a base", base, r.BaseTensors)
		}
	}
}

func TestCompressEmbeddings(t *testing.T) {
	dir := t.TempDir()
	embed := normal("transformer.wte.weight", dtype.BF16, 1, 300, 64)
	head := normal("lm_head.weight", dtype.BF16, 2, 300, 64)
	for _, c := range []struct {
		how         string
		head, based bool
	}{{EmbeddingsAuto, true, false}, {EmbeddingsAuto, false, true}, {EmbeddingsBase, true, true}, {EmbeddingsNone, false, false}} {
		tensors := []tens{embed}
		if c.head {
			tensors = append(tensors, head)
		}
		r := compressTo(t, memory(t, tensors...), dir+"/out", func(o *CompressOptions) { o.Embeddings, o.Pack.Overwrite = c.how, true })
		for _, row := range r.Tensors {
			if want := c.based || row.Name == head.name; (row.BaseBytes > 0) != want {
				t.Errorf("%+v: %s has a base of %d bytes", c, row.Name, row.BaseBytes)
			}
		}
	}
}

func TestCompressRefuses(t *testing.T) {
	dir := t.TempDir()
	hub(t, dir+"/model", llama(), "{}")
	write(t, dir+"/full/x.safetensors", fileOf(llama()))
	target := open(t, dir+"/model")
	for _, c := range []struct {
		name, out string
		change    func(*CompressOptions)
		want      error
		says      string
	}{
		{"inside", "/model/out", nil, status.ErrExists, "input folder"},
		{"the model", "/model", nil, status.ErrExists, "not empty"},
		{"around, forced", "/model", func(o *CompressOptions) { o.Pack.Overwrite = true }, status.ErrExists, "input"},
		{"exists", "/full", nil, status.ErrExists, "not empty"},
		{"is a file", "/full/x.safetensors", nil, status.ErrExists, "is a file"},
		{"no parent", "/none/out", nil, status.ErrNotFound, ""},
		{"unknown base", "/out", func(o *CompressOptions) { o.Base = "int5" }, status.ErrArgument, "int5"},
		{"group", "/out", func(o *CompressOptions) { o.GroupSize = 7 }, status.ErrArgument, "group_size"},
		{"group too large", "/out", func(o *CompressOptions) { o.GroupSize = 1 << 17 }, status.ErrArgument, "group_size"},
		{"embeddings", "/out", func(o *CompressOptions) { o.Embeddings = "some" }, status.ErrArgument, "embeddings"},
		{"link", "/out", func(o *CompressOptions) { o.LinkBase = true }, status.ErrArgument, "link_base"},
		{"add", "/out", func(o *CompressOptions) { o.Pack.Residual = 1 }, status.ErrArgument, "residual"},
		{"full base", "/out", func(o *CompressOptions) { o.BasePath = dir + "/full" }, status.ErrArgument, "no quantised tensors"},
		{"no base", "/out", func(o *CompressOptions) { o.BasePath = dir + "/none" }, status.ErrNotFound, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := DefaultCompressOptions()
			if c.change != nil {
				c.change(&o)
			}
			_, err := Compress(context.Background(), target, dir+c.out, o, nil)
			wantError(t, err, c.want, c.says)
			noLitter(t, dir)
			if _, err := os.Stat(dir + "/out"); err == nil {
				t.Error("something was written")
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Compress(ctx, target, dir+"/out", DefaultCompressOptions(), nil)
	wantError(t, err, status.ErrCanceled)
	noLitter(t, dir)
	if _, err := ParseCompressOptions([]byte(`{"base":"int4","codecs":"auto"}`)); err == nil {
		t.Error("an unknown option was taken")
	}
	o, err := ParseCompressOptions([]byte(`{"base":"int3","group_size":128,"codec":"prefix","workers":2}`))
	if err != nil || o.Base != "int3" || o.GroupSize != 128 || o.Pack.Workers != 2 || o.Pack.Codec == 0 {
		t.Errorf("%+v, %v", o, err)
	}
}

// What happens to a base is found out before anything is written.
func TestCompressedDamage(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/model.safetensors", fileOf(llama()))
	compressTo(t, open(t, dir+"/model.safetensors"), dir+"/out", nil)
	path := dir + "/out/base/model.safetensors"
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(data []byte) error {
		write(t, path, data)
		base, err := OpenCompressedBase(dir + "/out")
		if err != nil {
			return err
		}
		defer base.Close()
		_, err = Unpack(context.Background(), base, []string{ResidualPath(dir + "/out")}, dir+"/got", UnpackOptions{}, nil)
		return err
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)-1] ^= 1
	wantError(t, try(flipped), status.ErrBaseMismatch, "model.")
	for old, c := range map[string]struct {
		new  string
		want error
	}{
		"mlp.up.weight.packed":     {"mlp.up.weight.pocked", status.ErrCorrupt},
		"mlp.up.weight.scale":      {"mlp.up.weight.scala", status.ErrCorrupt},
		`\"bits\":4`:               {`\"bits\":5`, status.ErrCorrupt},
		`\"bits\":4,`:              {`\"bits\":3,`, status.ErrCorrupt},
		`\"group_size\":64`:        {`\"group_size\":32`, status.ErrCorrupt},
		`\"group_size\":64,`:       {`\"group_size\":07,`, status.ErrCorrupt},
		`linear`:                   {`binear`, status.ErrUnsupported},
		`\"dtype\":\"BF16\"`:       {`\"dtype\":\"BF15\"`, status.ErrUnsupported},
		`\"shape\":[129,131]`:      {`\"shape\":[129,130]`, status.ErrCorrupt},
		`"tpde.version":"1"`:       {`"tpde.version":"2"`, status.ErrVersion},
		`"tpde.quantized_tensors"`: {`"tpde.quantized_tensorz"`, status.ErrBaseMismatch},
	} {
		changed := bytes.Replace(whole, []byte(old), []byte(c.new), 1)
		if bytes.Equal(changed, whole) {
			t.Errorf("%s is not there", old)
			continue
		}
		if err := try(changed); !errors.Is(err, c.want) {
			t.Errorf("%s became %s: got %v, want %v", old, c.new, err, c.want)
		}
	}
	os.RemoveAll(filepath.Dir(path))
	base, err := OpenCompressedBase(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Unpack(context.Background(), base, []string{ResidualPath(dir + "/out")}, dir+"/got", UnpackOptions{}, nil)
	wantError(t, err, status.ErrBaseMismatch, "has no base")
	_, err = OpenCompressedBase(dir)
	wantError(t, err, status.ErrArgument, "no compressed model")
	_, err = OpenCompressedBase(dir + "/nothing")
	wantError(t, err, status.ErrNotFound)
	if _, err := os.Stat(dir + "/got"); err == nil {
		t.Error("something was written")
	}
}
