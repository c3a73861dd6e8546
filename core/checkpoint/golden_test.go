package checkpoint

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
)

var update = flag.Bool("update", false, "write testdata/v1 anew")

// A delta that version 1 has written, with every kind of tensor and file in
// it, stays readable. Rewrite testdata only together with the version.
func TestGolden(t *testing.T) {
	const golden = "testdata/v1/delta.safetensors"
	dir := t.TempDir()
	base, out := small(t, dir)
	mustPack(t, base, open(t, dir+"/target"), out, PackOptions{Codec: codec.Raw, Overwrite: true})
	if *update {
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		write(t, golden, data)
	}
	mustUnpack(t, base, dir+"/got", golden)
	sameTree(t, dir+"/got", dir+"/target")

	// The headers and the raw codec are ours to the last byte; zstd frames are not.
	a, ha, err := openHeader(out)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, hb, err := openHeader(golden)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if len(ha.Tensors) != len(hb.Tensors) {
		t.Fatalf("%d tensors stored, the golden file has %d", len(ha.Tensors), len(hb.Tensors))
	}
	for i := range ha.Tensors {
		x, y := ha.Tensors[i], hb.Tensors[i]
		if x.Name != y.Name || x.Type != y.Type {
			t.Errorf("tensor %d is %s %v, in the golden file %s %v", i, x.Name, x.Type, y.Name, y.Type)
			continue
		}
		zstd := x.Name == manifestName || x.Name == manifestName+"/zip.txt"
		if got, want := a.Data[ha.DataStart()+x.Begin:ha.DataStart()+x.End], b.Data[hb.DataStart()+y.Begin:hb.DataStart()+y.End]; !zstd && !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", x.Name, got, want)
		}
	}
}
