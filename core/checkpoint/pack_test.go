package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/safetensors"
)

func TestFileRoundTrip(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := write(t, dir+"/base.safetensors", fileOf(base))
	// An order, and metadata, that the library would not write; data begin at an odd byte.
	slices.Reverse(target)
	odd := fileOf(target, safetensors.Pair{Key: "format", Value: "pt"}, safetensors.Pair{Key: "é\n", Value: "<&>"})
	text := bytes.Replace(odd[8:], []byte(`"shape":[700,600]`), []byte(`"shape": [700, 600]`), 1)
	n := len(odd) - 8 - sizeOf(target)
	odd = append(safetensors.Prefix(make([]byte, n+2)), text...)
	want := write(t, dir+"/target.safetensors", odd)

	for _, o := range []PackOptions{
		{}, {Workers: 1}, {Workers: 3}, {Codec: codec.Raw}, {Codec: codec.Elias}, {Residual: residual.Add},
		{NumChunks: 3}, {ChunkBytes: 1000}, {Level: codec.LevelFast}, {MaxShardBytes: 3000},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			out := t.TempDir()
			var p Progress
			r, err := Pack(context.Background(), open(t, b), open(t, want), out+"/d.safetensors", o, &p)
			if err != nil {
				t.Fatal(err)
			}
			if p.Done.Load() != p.Total.Load() || p.Total.Load() != uint64(sizeOf(target)) {
				t.Errorf("progress ends at %d of %d, want %d", p.Done.Load(), p.Total.Load(), sizeOf(target))
			}
			noLitter(t, out)
			u, err := Unpack(context.Background(), open(t, b), []string{out + "/d.safetensors"}, out+"/got.safetensors", UnpackOptions{Workers: o.Workers}, &p)
			if err != nil {
				t.Fatal(err)
			}
			sameFile(t, out+"/got.safetensors", want)
			if p.Total.Load() != u.Bytes || u.Bytes != uint64(len(odd)) || u.Files[0].Path != out+"/got.safetensors" {
				t.Errorf("report %+v, total %d", u, p.Total.Load())
			}
			if _, err := Verify(context.Background(), open(t, b), []string{out + "/d.safetensors"}, open(t, want), UnpackOptions{}, nil); err != nil {
				t.Error(err)
			}
			i, err := Inspect(out + "/d.safetensors")
			if err != nil {
				t.Fatal(err)
			}
			x, _ := json.Marshal(i)
			y, _ := json.Marshal(r.InspectReport)
			if !bytes.Equal(x, y) {
				t.Errorf("Inspect says %s, Pack said %s", x, y)
			}
			noLitter(t, out)
		})
	}
}

func sizeOf(tensors []tens) int {
	n := 0
	for _, t := range tensors {
		n += len(t.data)
	}
	return n
}

// The same bytes, whatever the number of workers.
func TestPackIsDeterministic(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	var first []byte
	for i, workers := range []int{1, 2, 5} {
		out := fmt.Sprintf("%s/%d.safetensors", dir, i)
		mustPack(t, memory(t, base...), memory(t, target...), out, PackOptions{Workers: workers})
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.Errorf("%d workers give other bytes than 1", workers)
		}
	}
}

func TestKinds(t *testing.T) {
	big := random("big", dtype.F32, 1, 100, 100)
	as := func(x tens, name string) tens { x.name = name; return x }
	shaped := random("shaped", dtype.BF16, 2, 40, 50)
	typed := random("typed", dtype.F16, 3, 4000)
	noise := random("noise", dtype.F32, 4, 1000)
	zeros := tens{"zeros", dtype.F32, []uint64{100, 100}, make([]byte, 40000)}
	base := []tens{big, shaped, typed, noise, random("gone", dtype.F32, 5, 10), random("none", dtype.F32, 1, 0)}

	reshaped, retyped := shaped, typed
	reshaped.shape = []uint64{50, 40}
	retyped.typ = dtype.BF16
	step := big.step(20, 1)
	target := []tens{
		step, as(step, "tied"), as(shaped.step(10, 1), "fresh"), reshaped, retyped, zeros,
		as(random("", dtype.F32, 99, 1000), "noise"), as(noise, "noise2"),
		random("none", dtype.F32, 1, 0), random("none2", dtype.F32, 1, 3, 0),
	}
	dir := t.TempDir()
	b, want := memory(t, base...), open(t, write(t, dir+"/t.safetensors", fileOf(target)))
	r := mustPack(t, b, want, dir+"/d.safetensors", PackOptions{})
	got := kinds(r.InspectReport)
	expected := map[string]string{
		"big": kindDelta, "tied": kindAlias, "fresh": kindVerbatim, "shaped": kindVerbatim, "typed": kindVerbatim, "zeros": kindNew,
		"noise": kindVerbatim, "noise2": kindVerbatim, "none": kindUnchanged, "none2": kindVerbatim,
	}
	// Whether a codec can do something about random bits is its business.
	for _, name := range []string{"fresh", "shaped", "typed", "noise", "noise2"} {
		if got[name] == kindNew || name == "noise" && got[name] == kindDelta {
			got[name] = kindVerbatim
		}
	}
	if !maps.Equal(got, expected) {
		t.Errorf("kinds %v, want %v", got, expected)
	}
	for _, row := range r.Tensors {
		want := map[string]string{"shaped": "the base has it as BF16 [40 50]", "typed": "the base has it as F16 [4000]"}[row.Name]
		if row.Reason != want {
			t.Errorf("%s: reason %q, want %q", row.Name, row.Reason, want)
		}
		if row.TargetBytes > 0 && row.StoredBytes > row.TargetBytes {
			t.Errorf("%s: stored in %d bytes, it has %d", row.Name, row.StoredBytes, row.TargetBytes)
		}
		if row.Name == "tied" && (row.Of != "big" || row.StoredBytes != 0) {
			t.Errorf("tied: %+v", row)
		}
	}
	if !slices.Equal(r.Removed, []string{"gone"}) || r.Totals.Removed != 1 || r.Totals.Alias != 1 {
		t.Errorf("removed %v, totals %+v", r.Removed, r.Totals)
	}
	mustUnpack(t, b, dir+"/got.safetensors", dir+"/d.safetensors")
	sameFile(t, dir+"/got.safetensors", dir+"/t.safetensors")
}

func TestNamesThatMeetOurs(t *testing.T) {
	w := random("w", dtype.F32, 1, 2000)
	as := func(name string, seed uint64) tens { return random(name, dtype.U8, seed, 50) }
	base := []tens{w}
	target := []tens{
		w.step(10, 1), as("w.tpde_index", 1), as("w.tpde_blob", 2), as("__tpde__", 3), as("__tpde__/config.json", 4),
		as("w~", 5), as("w~.tpde_index", 6), as("", 7), as("é\n\"\\", 8),
	}
	dir := t.TempDir()
	write(t, dir+"/t/model.safetensors", fileOf(target))
	write(t, dir+"/t/config.json", []byte(strings.Repeat("{}", 100)))
	b := memory(t, base...)
	mustPack(t, b, open(t, dir+"/t"), dir+"/d.safetensors", PackOptions{})
	mustUnpack(t, b, dir+"/got", dir+"/d.safetensors")
	sameTree(t, dir+"/got", dir+"/t")
}

func TestUnchangedCostsNothing(t *testing.T) {
	base, _ := model()
	dir := t.TempDir()
	b := write(t, dir+"/b.safetensors", fileOf(base))
	c := write(t, dir+"/c.safetensors", fileOf(base))
	r := mustPack(t, open(t, b), open(t, c), dir+"/d.safetensors", PackOptions{})
	if r.Totals.Unchanged != len(base) || r.Totals.StoredBytes != 0 || r.Totals.FileBytes > 2000 {
		t.Errorf("%+v", r.Totals)
	}
	mustUnpack(t, open(t, b), dir+"/got.safetensors", dir+"/d.safetensors")
	sameFile(t, dir+"/got.safetensors", c)
}

func TestEmptyCheckpoints(t *testing.T) {
	dir := t.TempDir()
	mustPack(t, memory(t), memory(t, random("a", dtype.F32, 1, 9)), dir+"/d1.safetensors", PackOptions{})
	mustPack(t, memory(t, random("a", dtype.F32, 1, 9)), memory(t), dir+"/d2.safetensors", PackOptions{})
	mustUnpack(t, memory(t), dir+"/got.safetensors", dir+"/d1.safetensors", dir+"/d2.safetensors")
	if s := open(t, dir+"/got.safetensors"); len(s.tensors) != 0 {
		t.Errorf("%d tensors", len(s.tensors))
	}
}

// A source in memory becomes the file that the library would write.
func TestMemoryTarget(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := memory(t, base...)
	mustPack(t, b, memory(t, target...), dir+"/d.safetensors", PackOptions{})
	list := slices.Clone(target)
	sorted := make([]safetensors.Tensor, len(list))
	byName := map[string]tens{}
	for i, e := range list {
		sorted[i] = safetensors.Tensor{Name: e.name, Type: e.typ}
		byName[e.name] = e
	}
	safetensors.Sort(sorted)
	for i, e := range sorted {
		list[i] = byName[e.Name]
	}
	want := write(t, dir+"/want.safetensors", fileOf(list))
	if err := os.Mkdir(dir+"/empty", 0o777); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ out, file string }{
		{dir + "/got.safetensors", dir + "/got.safetensors"},
		{dir + "/empty", dir + "/empty/model.safetensors"},
		{dir + "/new/", dir + "/new/model.safetensors"},
	} {
		r := mustUnpack(t, b, c.out, dir+"/d.safetensors")
		if r.Files[0].Path != c.file {
			t.Errorf("%s: written to %s", c.out, r.Files[0].Path)
		}
		sameFile(t, c.file, want)
	}
}

func TestSharding(t *testing.T) {
	var base, target []tens
	for i := range 6 {
		b := random(fmt.Sprintf("w%d", i), dtype.BF16, uint64(i), 1000, 700)
		base, target = append(base, b), append(target, b.step(20, uint64(i)))
	}
	dir := t.TempDir()
	b := open(t, write(t, dir+"/b.safetensors", fileOf(base)))
	c := write(t, dir+"/c.safetensors", fileOf(target))
	out := dir + "/d.safetensors"
	one := mustPack(t, b, open(t, c), out, PackOptions{})
	limit := one.Totals.StoredBytes / 3
	r := mustPack(t, b, open(t, c), out, PackOptions{MaxShardBytes: limit, Overwrite: true})
	n := len(r.Out) - 1
	if n < 3 || r.Out[n] != out+".index.json" || r.Out[0] != fmt.Sprintf("%s/d-00001-of-%05d.safetensors", dir, n) {
		t.Fatalf("written: %v", r.Out)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("the single file still hides the sharded set")
	}
	for _, p := range r.Out[:n] {
		if s, _ := os.Stat(p); uint64(s.Size()) > limit+3000 {
			t.Errorf("%s has %d bytes, want about %d", p, s.Size(), limit)
		}
	}
	for i, path := range []string{out, out + ".index.json"} {
		got := fmt.Sprintf("%s/got%d.safetensors", dir, i)
		mustUnpack(t, b, got, path)
		sameFile(t, got, c)
	}
	// A second set does not touch the first before it is complete, then replaces it.
	r2 := mustPack(t, b, open(t, c), out, PackOptions{MaxShardBytes: limit, Overwrite: true})
	if !strings.Contains(r2.Out[0], "-v2-") {
		t.Errorf("written: %v", r2.Out)
	}
	if _, err := os.Stat(r.Out[0]); err == nil {
		t.Error("the old shards are still there")
	}
	mustUnpack(t, b, dir+"/again.safetensors", out)
	// And back to one file.
	mustPack(t, b, open(t, c), out, PackOptions{Overwrite: true})
	left, _ := filepath.Glob(dir + "/d*")
	if !slices.Equal(left, []string{out}) {
		t.Errorf("left: %v", left)
	}
}
