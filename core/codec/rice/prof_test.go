package rice

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

func load(path, prefix string) []uint16 {
	f, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	n := binary.LittleEndian.Uint64(f)
	var h map[string]json.RawMessage
	json.Unmarshal(f[8:8+n], &h)
	var out []byte
	for _, t := range []string{"layers.5.mlp.gate_proj.weight", "layers.5.self_attn.q_proj.weight"} {
		var x struct{ Data_offsets [2]int }
		json.Unmarshal(h[prefix+"/"+t], &x)
		out = append(out, f[8+int(n)+x.Data_offsets[0]:8+int(n)+x.Data_offsets[1]]...)
	}
	c := make([]uint16, len(out)/2)
	copy(word.Bytes(c), out)
	return c
}

func BenchmarkReal(bb *testing.B) {
	for _, step := range []string{"step21", "step28"} {
		rl := "/work/shared/data/rl_bf16.safetensors"
		b, x := load(rl, "step20"), load(rl, step)
		for i := range x {
			x[i] -= b[i]
		}
		codectest.BenchmarkBlock(bb, factory{}, step, codec.Block{Type: dtype.BF16, Base: word.Bytes(b), Residual: word.Bytes(x)})
	}
}
