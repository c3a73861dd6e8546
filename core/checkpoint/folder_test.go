package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// hub writes a folder as Hugging Face lays it out: two shards, an index, other
// files, and something below.
func hub(t *testing.T, dir string, tensors []tens, config string) {
	t.Helper()
	half := len(tensors) / 2
	weights := map[string]string{}
	for i, e := range tensors {
		weights[e.name] = "model-00001-of-00002.safetensors"
		if i >= half {
			weights[e.name] = "model-00002-of-00002.safetensors"
		}
	}
	index, _ := json.Marshal(map[string]any{"weight_map": weights})
	write(t, dir+"/model.safetensors.index.json", index)
	write(t, dir+"/model-00001-of-00002.safetensors", fileOf(tensors[:half]))
	write(t, dir+"/model-00002-of-00002.safetensors", fileOf(tensors[half:]))
	write(t, dir+"/config.json", []byte(config))
	write(t, dir+"/tokenizer.json", bytes.Repeat([]byte("token "), 5000))
	write(t, dir+"/noise.bin", random("", dtype.U8, 77, 3000).data)
	write(t, dir+"/empty", nil)
	write(t, dir+"/unet/model.safetensors", fileOf([]tens{tensors[0]}))
	write(t, dir+"/unet/deep/README.md", []byte(config+"readme"))
	write(t, dir+"/broken.safetensors", []byte("version https://git-lfs.github.com/spec/v1"))
}

func TestFolderRoundTrip(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	hub(t, dir+"/base", base, `{"step":1}`)
	hub(t, dir+"/target", target, `{"step":2}`)
	write(t, dir+"/target/extra/new.txt", []byte("new"))
	write(t, dir+"/target/.git/HEAD", []byte("not part of it"))
	b := open(t, dir+"/base")
	r := mustPack(t, b, open(t, dir+"/target"), dir+"/d.safetensors", PackOptions{})
	how := map[string]string{}
	for _, f := range r.Files {
		how[f.Path] = f.Kind
	}
	if how["tokenizer.json"] != fileSame || how["config.json"] != fileCarried || how["noise.bin"] != fileSame || how["unet/model.safetensors"] != fileTensors {
		t.Errorf("files %v", how)
	}
	if k := kinds(r.InspectReport)["unet/model.safetensors:layer.0.weight"]; k != kindAlias {
		t.Errorf("the tensor below is %q, want an alias", k)
	}
	mustUnpack(t, b, dir+"/got/", dir+"/d.safetensors")
	os.RemoveAll(dir + "/target/.git")
	sameTree(t, dir+"/got", dir+"/target")
	noLitter(t, dir)

	// Another tokenizer in the base is noticed, by name, and nothing is left.
	write(t, dir+"/base/tokenizer.json", bytes.Repeat([]byte("Token "), 5000))
	_, err := Unpack(context.Background(), b, []string{dir + "/d.safetensors"}, dir+"/wrong", UnpackOptions{}, nil)
	wantError(t, err, status.ErrBaseMismatch, "tokenizer.json", "sha256")
	os.Remove(dir + "/base/tokenizer.json")
	_, err = Unpack(context.Background(), open(t, dir+"/base"), []string{dir + "/d.safetensors"}, dir+"/wrong", UnpackOptions{}, nil)
	wantError(t, err, status.ErrBaseMismatch, "tokenizer.json", "no file")
	if _, err := os.Stat(dir + "/wrong"); err == nil {
		t.Error("something was written")
	}
	noLitter(t, dir)
}

// The cache of Hugging Face: a snapshot of links to blobs.
func TestSymbolicLinks(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	hub(t, dir+"/blobs", target, "{}")
	if err := os.MkdirAll(dir+"/snapshot", 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "unet"} {
		if err := os.Symlink("../blobs/"+name, dir+"/snapshot/"+name); err != nil {
			t.Fatal(err)
		}
	}
	b := memory(t, base...)
	mustPack(t, b, open(t, dir+"/snapshot"), dir+"/d.safetensors", PackOptions{})
	mustUnpack(t, b, dir+"/got", dir+"/d.safetensors")
	for name, data := range tree(t, dir+"/got") {
		if want := tree(t, dir+"/blobs")[name]; data != want {
			t.Errorf("%s differs", name)
		}
	}
	if len(tree(t, dir+"/got")) != 6 {
		t.Errorf("files %q", sortedNames(tree(t, dir+"/got")))
	}
	if err := os.Symlink("..", dir+"/snapshot/loop"); err != nil {
		t.Fatal(err)
	}
	_, err := Open(dir + "/snapshot")
	wantError(t, err, status.ErrUnsupported, "loop")
	os.Remove(dir + "/snapshot/loop")
	if err := os.Symlink("../nowhere", dir+"/snapshot/dangling"); err != nil {
		t.Fatal(err)
	}
	_, err = Open(dir + "/snapshot")
	wantError(t, err, status.ErrNotFound, "dangling")
}

func TestWhichFilesAreTheModel(t *testing.T) {
	a, b := random("a", dtype.F32, 1, 3), random("b", dtype.F32, 2, 3)
	names := func(files map[string][]byte) []string {
		dir := t.TempDir()
		for p, data := range files {
			write(t, dir+"/"+p, data)
		}
		return sortedNames(open(t, dir).byName)
	}
	one, two := fileOf([]tens{a}), fileOf([]tens{b})
	for _, c := range []struct {
		files map[string][]byte
		want  string
	}{
		{map[string][]byte{"model.safetensors": one, "other.safetensors": two}, "a other.safetensors:b"},
		{map[string][]byte{"x.safetensors": one, "y.safetensors": two}, "a b"},
		{map[string][]byte{"x.safetensors": one, "x.fp16.safetensors": one}, "x.fp16.safetensors:a x.safetensors:a"},
		{map[string][]byte{"model.safetensors.index.json": []byte(`{"weight_map":{"a":"x.safetensors"}}`), "x.safetensors": one, "y.safetensors": one}, "a y.safetensors:a"},
		{map[string][]byte{"vae/x.safetensors": one}, "vae/x.safetensors:a"},
	} {
		if got := strings.Join(names(c.files), " "); got != c.want {
			t.Errorf("%v: tensors %q, want %q", sortedNames(c.files), got, c.want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	good := fileOf([]tens{random("a", dtype.F32, 1, 3)})
	base, target := model()
	mustPack(t, memory(t, base...), memory(t, target...), dir+"/delta.safetensors", PackOptions{})
	for _, c := range []struct {
		name  string
		files map[string][]byte
		want  error
		says  string
	}{
		{"empty folder", map[string][]byte{"a.txt": nil}, status.ErrNotFound, "no .safetensors file"},
		{"shard missing", map[string][]byte{"model.safetensors.index.json": []byte(`{"weight_map":{"a":"x.safetensors"}}`)}, status.ErrNotFound, "x.safetensors"},
		{"shard outside", map[string][]byte{"model.safetensors.index.json": []byte(`{"weight_map":{"a":"../x.safetensors"}}`)}, status.ErrCorrupt, "inside"},
		{"bad index", map[string][]byte{"model.safetensors.index.json": []byte(`{`)}, status.ErrCorrupt, "index.json"},
		{"no weight map", map[string][]byte{"model.safetensors.index.json": []byte(`{}`)}, status.ErrCorrupt, "weight_map"},
		{"broken model", map[string][]byte{"model.safetensors": good[:20]}, status.ErrCorrupt, "model.safetensors"},
		{"name twice", map[string][]byte{"x.safetensors": good, "y.safetensors": good, "model.safetensors.index.json": []byte(`{"weight_map":{"a":"x.safetensors","b":"y.safetensors"}}`)}, status.ErrCorrupt, "two files"},
	} {
		d := filepath.Join(dir, c.name)
		for p, data := range c.files {
			write(t, d+"/"+p, data)
		}
		_, err := Open(d)
		if err == nil {
			t.Errorf("%s: no error", c.name)
			continue
		}
		wantError(t, err, c.want, c.says)
	}
	_, err := Open(dir + "/nothing")
	wantError(t, err, status.ErrNotFound, "nothing")
	_, err = Open(dir + "/delta.safetensors")
	wantError(t, err, status.ErrArgument, "is a TPDE delta")
	_, err = Open("/dev/null")
	wantError(t, err, status.ErrUnsupported, "/dev/null")
}

func TestAddRefuses(t *testing.T) {
	s := NewSource("x")
	ok := s.Add("a", dtype.F32, []uint64{2}, make([]byte, 8))
	if ok != nil {
		t.Fatal(ok)
	}
	wantError(t, s.Add("a", dtype.F32, []uint64{2}, make([]byte, 8)), status.ErrArgument, "twice")
	wantError(t, s.Add("b", dtype.F32, []uint64{2}, make([]byte, 7)), status.ErrArgument, "7 bytes")
	wantError(t, s.Add("__metadata__", dtype.F32, nil, make([]byte, 4)), status.ErrArgument)
	wantError(t, s.Add("\xff", dtype.F32, nil, make([]byte, 4)), status.ErrArgument)
	wantError(t, s.Add("c", dtype.F32, make([]uint64, 65), nil), status.ErrLimit)
	wantError(t, s.Add("d", 0, nil, nil), status.ErrUnsupported)
}

func TestManifestAndReadTensor(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := memory(t, base...)
	mustPack(t, b, memory(t, target...), dir+"/d.safetensors", PackOptions{})
	s, err := Apply(b, []string{dir + "/d.safetensors"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, src := range []*Source{memory(t, target...), s} {
		text, err := src.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		var m struct {
			Tensors []struct {
				Name, Dtype string
				Shape       []uint64
				Bytes       uint64
			}
		}
		if err := json.Unmarshal(text, &m); err != nil || len(m.Tensors) != len(target) {
			t.Fatalf("%v: %s", err, text)
		}
		if m.Tensors[0].Name != "scalar" || m.Tensors[0].Shape == nil || m.Tensors[0].Dtype != "I64" || m.Tensors[0].Bytes != 8 {
			t.Errorf("first row %+v", m.Tensors[0])
		}
		for _, e := range target {
			for _, workers := range []int{1, 4} {
				dst := make([]byte, len(e.data))
				if err := src.ReadTensor(context.Background(), e.name, dst, workers); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(dst, e.data) {
					t.Errorf("%s differs", e.name)
				}
			}
		}
		wantError(t, src.ReadTensor(context.Background(), "x", nil, 0), status.ErrNotFound)
		wantError(t, src.ReadTensor(context.Background(), "big", make([]byte, 3), 0), status.ErrShortBuffer)
	}
	// Ranges are rebuilt alone, at any word.
	c := s.byName["big"].data
	want := target[slices.IndexFunc(target, func(e tens) bool { return e.name == "big" })].data
	var buf []byte
	for _, r := range [][2]uint64{{0, 4}, {4, 400000}, {1000000, 680000}, {1679996, 4}, {12, 0}} {
		got, err := c.view(r[0], r[1], &buf)
		if err != nil || !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
			t.Errorf("range %v: %v", r, err)
		}
	}
}

// scan computes the same digests as package digest, whatever the size.
func TestScanDigests(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 4<<20 - 1, 4 << 20, 4<<20 + 1, 9<<20 + 5} {
		data := random("", dtype.U8, uint64(n), uint64(n)).data
		other := bytes.Clone(data)
		if n > 0 {
			other[n/2] ^= 1
		}
		for _, base := range [][]byte{data, other} {
			err := scan(context.Background(), 2, []content{plain(data)}, []content{plain(base)}, func(_ int, r scanned) error {
				if r.target != digest.Of(data, 1) || r.base != digest.Of(base, 1) || r.equal != bytes.Equal(data, base) {
					t.Errorf("%d bytes: %+v", n, r)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
