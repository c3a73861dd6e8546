package rice_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/tensor"
	"github.com/tpde-project/tpde/core/word"
)

// load returns the one tensor of a file of the test data.
func load(t testing.TB, name string) (tensor.Desc, []byte) {
	t.Helper()
	file, err := os.ReadFile("../../../tests/data/" + name + ".safetensors")
	if err != nil {
		t.Fatal(err)
	}
	h, err := safetensors.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	x := h.Tensors[0]
	data := word.Bytes(make([]uint64, x.Bytes()/8+1))[:x.Bytes()] // aligned
	copy(data, file[h.DataStart()+x.Begin:])
	return tensor.Desc{Type: x.Type, Shape: x.Shape}, data
}

func BenchmarkReal(b *testing.B) {
	c, err := codec.Get(codec.Rice)
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"step21", "step28"} {
		desc, base := load(b, "rl/step20")
		_, res := load(b, "rl/"+name)
		residual.Compute(residual.Bit, desc.Type, res, base, res, nil)
		codectest.BenchmarkBlock(b, c, name, codec.Block{Type: desc.Type, Base: base, Residual: res})
	}
}

// TestRealSteps holds one and eight RL steps of a matrix of 384 x 768 to what
// they should take, index and all.
func TestRealSteps(t *testing.T) {
	for _, c := range []struct {
		target string
		level  codec.Level
		ratio  float64
	}{
		{"rl/step21", codec.LevelDefault, 128}, {"rl/step21", codec.LevelSmall, 129}, {"rl/step21", codec.LevelFast, 127},
		{"rl/step28", codec.LevelDefault, 32.6}, {"rl/step28", codec.LevelSmall, 32.7}, {"rl/step28", codec.LevelFast, 32.4},
	} {
		desc, base := load(t, "rl/step20")
		_, target := load(t, c.target)
		if desc.Type != dtype.BF16 {
			t.Fatalf("%v", desc.Type)
		}
		var blob bytes.Buffer
		index, err := tensor.Encode(context.Background(), &blob, desc, base, target, tensor.Options{Codec: codec.Rice, Level: c.level, Workers: 1})
		if err != nil {
			t.Fatal(err)
		}
		r, err := tensor.Open(index, blob.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		out := bytes.Clone(base)
		if err := r.Reconstruct(context.Background(), out, out, tensor.ReconstructOptions{Workers: 1}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out, target) {
			t.Fatalf("%s: another target", c.target)
		}
		ratio := float64(len(target)) / float64(len(index)+blob.Len())
		t.Logf("%s, level %d: ratio %.2f, chunks of %d words", c.target, c.level, ratio, r.Index().ChunkWords)
		if ratio < c.ratio {
			t.Errorf("%s, level %d: ratio %.2f, expected %.2f", c.target, c.level, ratio, c.ratio)
		}
	}
}
