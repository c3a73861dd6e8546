package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
)

// small is a delta that is small enough to be attacked at every byte, with
// every kind of tensor and file in it.
func small(t *testing.T, dir string) (base *Source, out string) {
	b := random("w", dtype.BF16, 1, 30, 20)
	zeros := tens{"zeros", dtype.F32, []uint64{300}, make([]byte, 1200)}
	target := []tens{b.step(40, 1), random("v", dtype.U16, 2, 7), zeros, random("same", dtype.U8, 3, 9)}
	tied := target[0]
	tied.name = "tied"
	write(t, dir+"/base/model.safetensors", fileOf([]tens{b, target[3]}))
	write(t, dir+"/base/same.txt", []byte("same"))
	write(t, dir+"/target/model.safetensors", fileOf(append(target, tied)))
	write(t, dir+"/target/same.txt", []byte("same"))
	write(t, dir+"/target/zip.txt", bytes.Repeat([]byte("zip"), 50))
	write(t, dir+"/target/raw.txt", []byte("r"))
	base = open(t, dir+"/base")
	mustPack(t, base, open(t, dir+"/target"), dir+"/d.safetensors", PackOptions{Codec: codec.Elias})
	return base, dir + "/d.safetensors"
}

// attack unpacks data as a delta: an error, or the right bytes, nothing else.
func attack(t *testing.T, base *Source, dir, what string, data []byte) (failed bool) {
	t.Helper()
	write(t, dir+"/attacked", data)
	_, err := Verify(context.Background(), base, []string{dir + "/attacked"}, nil, UnpackOptions{Workers: 1}, nil)
	if err != nil {
		if status.Of(err) == status.Internal {
			t.Fatalf("%s: error without a status: %v", what, err)
		}
		return true
	}
	// Verify says that all is well: then the files have to be the right ones.
	os.RemoveAll(dir + "/got")
	mustUnpack(t, base, dir+"/got", dir+"/attacked")
	sameTree(t, dir+"/got", dir+"/target")
	if t.Failed() {
		t.Fatalf("%s gives wrong bytes", what)
	}
	return false
}

func TestEveryBitFlip(t *testing.T) {
	dir := t.TempDir()
	base, out := small(t, dir)
	good, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	survived := 0
	for i := range good {
		for bit := range 8 {
			if (raceDetector || testing.Short()) && (i+bit)%8 != 0 {
				continue
			}
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			if !attack(t, base, dir, fmt.Sprintf("bit %d of byte %d", bit, i), bad) {
				survived++
			}
		}
	}
	// The texts of the tool and the list of the removed are for people only.
	if limit := 8 * (len(Tool) + 20); survived > limit {
		t.Errorf("%d of %d flips were ignored, expected at most %d", survived, 8*len(good), limit)
	}
}

func TestEveryCut(t *testing.T) {
	dir := t.TempDir()
	base, out := small(t, dir)
	good, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if !attack(t, base, dir, fmt.Sprintf("cut at %d", n), good[:n]) {
			t.Fatalf("cut at %d of %d went unnoticed", n, len(good))
		}
	}
	if !attack(t, base, dir, "one byte more", append(good, 0)) {
		t.Error("a byte behind the end went unnoticed")
	}
}

// forge rewrites the manifest of a delta.
func forge(t *testing.T, out string, change func(m *manifest, metadata map[string]string)) []byte {
	t.Helper()
	m, h, err := openHeader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	data := bytes.Clone(m.Data[h.DataStart():])
	last := &h.Tensors[len(h.Tensors)-1]
	if last.Name != manifestName {
		t.Fatalf("the last tensor is %s", last.Name)
	}
	man, err := decodeManifest(data[last.Begin:])
	if err != nil {
		t.Fatal(err)
	}
	change(man, h.Metadata)
	packed, err := man.encode()
	if err != nil {
		t.Fatal(err)
	}
	data = append(data[:last.Begin], packed...)
	last.Shape = []uint64{uint64(len(packed))}
	var pairs []safetensors.Pair
	for _, k := range sortedNames(h.Metadata) {
		pairs = append(pairs, safetensors.Pair{Key: k, Value: h.Metadata[k]})
	}
	text, err := safetensors.Format(h.Tensors, pairs)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(safetensors.Prefix(text), text...), data...)
}

func TestForgedManifest(t *testing.T) {
	dir := t.TempDir()
	base, out := small(t, dir)
	file := func(m *manifest, path string) *manifestFile {
		for i := range m.Files {
			if m.Files[i].Path == path {
				return &m.Files[i]
			}
		}
		t.Fatalf("no file %s", path)
		return nil
	}
	row := func(m *manifest, kind string) *manifestTensor {
		rows := file(m, "model.safetensors").Tensors
		for i := range rows {
			if rows[i].Kind == kind {
				return &rows[i]
			}
		}
		t.Fatalf("no tensor of kind %s", kind)
		return nil
	}
	type change = func(m *manifest, md map[string]string)
	path := func(p string) change {
		return func(m *manifest, _ map[string]string) { m.Files[len(m.Files)-1].Path = p }
	}
	for _, c := range []struct {
		name   string
		change change
		want   error
		says   string
	}{
		{"nothing", func(*manifest, map[string]string) {}, nil, ""},
		{"parent", path("../evil"), status.ErrCorrupt, "no path inside"},
		{"parent in the middle", path("z/../../evil"), status.ErrCorrupt, "no path inside"},
		{"absolute", path("/evil"), status.ErrCorrupt, "no path inside"},
		{"backslash", path(`z\evil`), status.ErrCorrupt, "no path inside"},
		{"zero byte", path("z\x00"), status.ErrCorrupt, "no path inside"},
		{"dot", path("."), status.ErrCorrupt, "no path inside"},
		{"empty path", path(""), status.ErrCorrupt, "no path inside"},
		{"two slashes", path("z//y"), status.ErrCorrupt, "no path inside"},
		{"temporary name", path(".tpde-tmp-x/y"), status.ErrCorrupt, "no path inside"},
		{"path twice", path("same.txt"), status.ErrCorrupt, "twice"},
		{"file and folder", func(m *manifest, _ map[string]string) { m.Files[len(m.Files)-1].Path = "same.txt/x/y" }, status.ErrCorrupt, "is a file and a folder"},
		{"not a folder", func(m *manifest, _ map[string]string) { m.Folder = false }, status.ErrCorrupt, "exactly one"},
		{"no files", func(m *manifest, _ map[string]string) { m.Folder, m.Files = false, nil }, status.ErrCorrupt, "exactly one"},
		{"kind of file", func(m *manifest, _ map[string]string) { m.Files[0].Kind = "x" }, status.ErrCorrupt, "kind"},
		{"sha256", func(m *manifest, _ map[string]string) { m.Files[0].SHA256 = "12" }, status.ErrCorrupt, "sha256"},
		{"another sha256", func(m *manifest, _ map[string]string) { m.Files[0].SHA256 = strings.Repeat("0", 64) }, status.ErrTargetMismatch, "sha256"},
		{"sha256 of the base's file", func(m *manifest, _ map[string]string) { file(m, "same.txt").SHA256 = strings.Repeat("0", 64) }, status.ErrBaseMismatch, "same.txt"},
		{"size of the base's file", func(m *manifest, _ map[string]string) { file(m, "same.txt").Bytes++ }, status.ErrBaseMismatch, "same.txt"},
		{"carried too long", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Bytes-- }, status.ErrCorrupt, "longer"},
		{"carried, size without end", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Bytes = 1<<64 - 1 }, status.ErrLimit, "in all"},
		{"carried too short", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Bytes++ }, status.ErrCorrupt, "expected"},
		{"carried, raw, too short", func(m *manifest, _ map[string]string) { file(m, "raw.txt").Bytes++ }, status.ErrCorrupt, "coding"},
		{"carried, coding", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Coding = "lzma" }, status.ErrCorrupt, "lzma"},
		{"carried, not zstd", func(m *manifest, _ map[string]string) { file(m, "raw.txt").Coding = codingZstd }, status.ErrCorrupt, "decompressed"},
		{"carried, nowhere", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Stored = "x" }, status.ErrCorrupt, "stores nothing"},
		{"carried, in a tensor", func(m *manifest, _ map[string]string) { file(m, "zip.txt").Stored = "v" }, status.ErrCorrupt, "expected U8"},
		{"header", func(m *manifest, _ map[string]string) { file(m, "model.safetensors").Header = "{" }, status.ErrCorrupt, "model.safetensors"},
		{"another header", func(m *manifest, _ map[string]string) {
			f := file(m, "model.safetensors")
			f.Header = strings.Replace(f.Header, `"dtype":"U16"`, `"dtype":"I16"`, 1)
		}, status.ErrCorrupt, "stores it as U16"},
		{"size", func(m *manifest, _ map[string]string) { file(m, "model.safetensors").Bytes++ }, status.ErrCorrupt, "do not make a file"},
		{"a tensor less", func(m *manifest, _ map[string]string) {
			f := file(m, "model.safetensors")
			f.Tensors = f.Tensors[1:]
		}, status.ErrCorrupt, "in its table"},
		{"kind of tensor", func(m *manifest, _ map[string]string) { row(m, kindDelta).Kind = "x" }, status.ErrCorrupt, "unknown kind"},
		{"delta as new", func(m *manifest, _ map[string]string) { row(m, kindDelta).Kind = kindNew }, status.ErrCorrupt, "base: true"},
		{"new as delta", func(m *manifest, _ map[string]string) { row(m, kindNew).Kind = kindDelta }, status.ErrCorrupt, "base: false"},
		{"stored nowhere", func(m *manifest, _ map[string]string) { row(m, kindDelta).Stored = "x" }, status.ErrCorrupt, "stores nothing"},
		{"stored elsewhere", func(m *manifest, _ map[string]string) { row(m, kindDelta).Stored = "zeros" }, status.ErrCorrupt, "its index is for"},
		{"verbatim nowhere", func(m *manifest, _ map[string]string) { row(m, kindVerbatim).Stored = "x" }, status.ErrCorrupt, "stores nothing"},
		{"alias of nothing", func(m *manifest, _ map[string]string) { row(m, kindAlias).Of = "x" }, status.ErrCorrupt, "no tensor of the target"},
		{"alias of itself", func(m *manifest, _ map[string]string) { row(m, kindAlias).Of = "tied" }, status.ErrCorrupt, "alias itself"},
		{"alias of another size", func(m *manifest, _ map[string]string) { row(m, kindAlias).Of = "v" }, status.ErrCorrupt, "is alias of"},
		{"digest", func(m *manifest, _ map[string]string) { row(m, kindVerbatim).Digest = strings.Repeat("0", 32) }, status.ErrCorrupt, "make target"},
		{"digest in capitals", func(m *manifest, _ map[string]string) {
			r := row(m, kindVerbatim)
			r.Digest = strings.ToUpper(r.Digest)
		}, status.ErrCorrupt, "hexadecimal"},
		{"unchanged that the base does not have", func(m *manifest, _ map[string]string) {
			r := row(m, kindVerbatim)
			r.Kind = kindUnchanged
		}, status.ErrBaseMismatch, "no such tensor"},
		{"removed and there", func(m *manifest, _ map[string]string) { m.Removed = []string{"w"} }, status.ErrCorrupt, "removed"},
		{"another base", func(m *manifest, _ map[string]string) { m.Base = strings.Repeat("0", 32) }, status.ErrCorrupt, "metadata say"},
		{"another target", func(_ *manifest, md map[string]string) { md[keyTarget] = strings.Repeat("0", 32) }, status.ErrCorrupt, "make target"},
		{"bad base", func(_ *manifest, md map[string]string) { md[keyBase] = "x" }, status.ErrCorrupt, "hexadecimal"},
		{"version", func(_ *manifest, md map[string]string) { md[keyVersion] = "2" }, status.ErrVersion, `"2"`},
		{"another format", func(_ *manifest, md map[string]string) { md["format"] = "pt" }, status.ErrCorrupt, "not a TPDE delta"},
	} {
		t.Run(c.name, func(t *testing.T) {
			write(t, dir+"/forged", forge(t, out, c.change))
			_, err := Unpack(context.Background(), base, []string{dir + "/forged"}, dir+"/got", UnpackOptions{Overwrite: true}, nil)
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				os.RemoveAll(dir + "/got")
				return
			}
			wantError(t, err, c.want, c.says)
			if _, err := os.Stat(dir + "/got"); err == nil {
				t.Error("something was written")
			}
			noLitter(t, dir)
		})
	}
}

// A manifest and a carried file that grow out of nothing.
func TestBombs(t *testing.T) {
	dir := t.TempDir()
	base, out := small(t, dir)
	var bomb bytes.Buffer
	z, err := newCompressor(&bomb)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(z, zeroReader{}, maxManifest+1); err != nil {
		t.Fatal(err)
	}
	z.Close()
	_, err = decodeManifest(bomb.Bytes())
	wantError(t, err, status.ErrLimit)

	m, h, err := openHeader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var list []safetensors.Tensor
	var data []byte
	for _, e := range h.Tensors {
		d := m.Data[h.DataStart()+e.Begin : h.DataStart()+e.End]
		if e.Name == manifestName+"/zip.txt" {
			d, e.Shape = bomb.Bytes(), []uint64{uint64(bomb.Len())}
		}
		list, data = append(list, e), append(data, d...)
	}
	var pairs []safetensors.Pair
	for k, v := range h.Metadata {
		pairs = append(pairs, safetensors.Pair{Key: k, Value: v})
	}
	text, err := safetensors.Format(list, pairs)
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/bomb", append(append(safetensors.Prefix(text), text...), data...))
	_, err = Unpack(context.Background(), base, []string{dir + "/bomb"}, dir+"/got", UnpackOptions{}, nil)
	wantError(t, err, status.ErrCorrupt, "zip.txt", "longer")
	noLitter(t, dir)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestShardsThatDoNotBelongTogether(t *testing.T) {
	dir := t.TempDir()
	b := random("w", dtype.F32, 1, 5000)
	for i, name := range []string{"x", "y"} {
		target := []tens{b.step(5, uint64(i)), random("v", dtype.F32, uint64(i), 3000)}
		mustPack(t, memory(t, b), memory(t, target...), dir+"/"+name+".safetensors", PackOptions{MaxShardBytes: 5000})
	}
	r, err := Inspect(dir + "/x.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/y-00001-of-00002.safetensors", dir+"/x-00001-of-00002.safetensors"); err != nil {
		t.Fatal(err, r.Totals)
	}
	_, err = Inspect(dir + "/x.safetensors")
	wantError(t, err, status.ErrCorrupt, "another delta")
	os.Remove(dir + "/x-00002-of-00002.safetensors")
	_, err = Inspect(dir + "/x.safetensors")
	wantError(t, err, status.ErrNotFound, "x-00002")
}

func FuzzManifest(f *testing.F) {
	for _, m := range []manifest{
		{},
		{Folder: true, Base: strings.Repeat("0", 32), Removed: []string{"x"}},
		{Files: []manifestFile{{Path: "a", Kind: fileTensors, Header: "{}", SHA256: strings.Repeat("0", 64), Bytes: 10}}},
		{Folder: true, Files: []manifestFile{{Path: "a/b", Kind: fileCarried, Stored: "x", Coding: codingZstd}, {Path: "c", Kind: fileSame, Bytes: 1 << 63}}},
	} {
		text, err := json.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := parseManifest(text)
		d := &delta{stored: map[string]storedTensor{}, byName: map[string]*deltaTensor{}}
		if err == nil {
			err = d.validate(m)
		}
		if err != nil {
			var known *status.Error
			if !errors.As(err, &known) {
				t.Fatalf("error without a status: %v", err)
			}
			return
		}
		for _, file := range d.manifest.Files {
			if !validPath(file.Path) {
				t.Fatalf("path %q was accepted", file.Path)
			}
		}
	})
}
