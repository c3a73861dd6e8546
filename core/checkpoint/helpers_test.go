package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
)

// tens is a tensor of a test checkpoint.
type tens struct {
	name  string
	typ   dtype.Type
	shape []uint64
	data  []byte
}

// random returns a tensor of arbitrary bits: NaNs, infinities and all.
func random(name string, typ dtype.Type, seed uint64, shape ...uint64) tens {
	n, err := typ.Bytes(shape)
	if err != nil {
		panic(err)
	}
	data := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(data)
	return tens{name, typ, shape, data}
}

// step returns t after a small update: one word in rate moves by a little.
func (t tens) step(rate int, seed uint64) tens {
	data := bytes.Clone(t.data)
	w := t.typ.WordBytes()
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+w <= len(data); i += w {
		if r.IntN(rate) == 0 {
			data[i] += byte(1 + r.IntN(3))
		}
	}
	t.data = data
	return t
}

// fileOf returns a safetensors file with the tensors in the given order.
func fileOf(tensors []tens, metadata ...safetensors.Pair) []byte {
	list := make([]safetensors.Tensor, len(tensors))
	for i, t := range tensors {
		list[i] = safetensors.Tensor{Name: t.name, Type: t.typ, Shape: t.shape}
	}
	text, err := safetensors.Format(list, metadata)
	if err != nil {
		panic(err)
	}
	b := append(safetensors.Prefix(text), text...)
	for _, t := range tensors {
		b = append(b, t.data...)
	}
	return b
}

func write(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *Source {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func memory(t testing.TB, tensors ...tens) *Source {
	t.Helper()
	s := NewSource("memory")
	for _, e := range tensors {
		if err := s.Add(e.name, e.typ, e.shape, e.data); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func mustPack(t testing.TB, base, target *Source, out string, o PackOptions) *PackReport {
	t.Helper()
	r, err := Pack(context.Background(), base, target, out, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustUnpack(t testing.TB, base *Source, out string, deltas ...string) *UnpackReport {
	t.Helper()
	r, err := Unpack(context.Background(), base, deltas, out, UnpackOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// tree returns the contents of every file below a path.
func tree(t testing.TB, path string) map[string]string {
	t.Helper()
	m := map[string]string{}
	err := filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(path, p)
		m[filepath.ToSlash(rel)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func sameTree(t testing.TB, got, want string) {
	t.Helper()
	g, w := tree(t, got), tree(t, want)
	if !slices.Equal(sortedNames(g), sortedNames(w)) {
		t.Fatalf("files %q, want %q", sortedNames(g), sortedNames(w))
	}
	for p := range w {
		if g[p] != w[p] {
			t.Errorf("file %s differs", p)
		}
	}
}

func sameFile(t testing.TB, got, want string) {
	t.Helper()
	g, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(g, w) {
		t.Errorf("%s differs from %s", got, want)
	}
}

// noLitter requires that no temporary name is left in dir.
func noLitter(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if atomicfile.IsTemporary(e.Name()) {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

func wantError(t testing.TB, err, want error, says ...string) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

func kinds(r InspectReport) map[string]string {
	m := map[string]string{}
	for _, row := range r.Tensors {
		m[row.Name] = row.Kind
	}
	return m
}

// model is a small checkpoint with a bit of everything, and its next step.
func model() (base, target []tens) {
	for i := range 3 {
		b := random(fmt.Sprintf("layer.%d.weight", i), dtype.BF16, uint64(i), 64, 96)
		base, target = append(base, b), append(target, b.step(50, uint64(i)))
	}
	big := random("big", dtype.F32, 7, 700, 600)
	norm := random("norm", dtype.F32, 8, 64)
	scalar := random("scalar", dtype.I64, 9)
	none := random("none", dtype.F16, 10, 0, 5)
	odd := random("odd", dtype.U8, 11, 5)
	same := random("same", dtype.F64, 12, 333)
	base = append(base, big, norm, scalar, none, odd, same)
	target = append(target, big.step(30, 1), norm.step(2, 1), scalar.step(1, 1), none, odd.step(1, 2), same)
	return base, target
}

// sortedNames returns the names of m in order.
func sortedNames[T any](m map[string]T) []string {
	return slices.Sorted(maps.Keys(m))
}
