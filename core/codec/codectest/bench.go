package codectest

import (
	"bytes"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
)

// Benchmark measures one core on synthetic bf16 weights, chunked as the codec
// wishes: MB/s of target, and the ratio as a metric of its own.
func Benchmark(b *testing.B, c codec.Codec) {
	const words = 1 << 20
	for _, data := range []struct {
		name  string
		block codec.Block
	}{{"RL", RL(words)}, {"FineTune", FineTune(words)}} {
		BenchmarkBlock(b, c, data.name, data.block)
	}
}

// BenchmarkBlock measures one tensor, after showing that it comes back.
func BenchmarkBlock(b *testing.B, c codec.Codec, name string, whole codec.Block) {
	const sampleBytes = 64 << 10
	var plan []codec.Block
	step := max(len(whole.Residual)/4, sampleBytes)
	for at := 0; at < len(whole.Residual); at += step {
		end := min(at+sampleBytes, len(whole.Residual))
		plan = append(plan, codec.Block{Type: whole.Type, Base: whole.Base[at:end], Residual: whole.Residual[at:end]})
	}
	enc := c.Plan(whole.Type, plan, 0, codec.LevelDefault)
	dec, err := c.NewDecoder(whole.Type, enc.Tables())
	if err != nil {
		b.Fatal(err)
	}
	type chunk struct {
		block  codec.Block
		data   []byte
		deltas uint32
	}
	var chunks []chunk
	size, chunkBytes := len(enc.Tables()), enc.ChunkWords()*whole.Type.WordBytes()
	res := aligned(len(whole.Residual))
	for at := 0; at < len(whole.Residual); at += chunkBytes {
		end := min(at+chunkBytes, len(whole.Residual))
		block := codec.Block{Type: whole.Type, Base: whole.Base[at:end], Residual: whole.Residual[at:end]}
		data, deltas, err := enc.Encode(nil, block)
		if err != nil {
			b.Fatal(err)
		}
		size += len(data)
		block.Residual = res[at:end]
		chunks = append(chunks, chunk{block, data, deltas})
	}
	unpack := func() {
		for _, ch := range chunks {
			if err := dec.Decode(ch.block, ch.data, ch.deltas); err != nil {
				b.Fatal(err)
			}
		}
	}
	unpack()
	if !bytes.Equal(res, whole.Residual) {
		b.Fatal("decoded residual differs")
	}
	b.Run(name+"/Plan", func(b *testing.B) {
		for b.Loop() {
			c.Plan(whole.Type, plan, 0, codec.LevelDefault)
		}
	})
	b.Run(name+"/Encode", func(b *testing.B) {
		b.SetBytes(int64(len(whole.Residual)))
		var buf []byte
		for b.Loop() {
			for _, ch := range chunks {
				buf, _, _ = enc.Encode(buf[:0], ch.block)
			}
		}
		b.ReportMetric(float64(len(whole.Residual))/float64(size), "ratio")
	})
	if r, ok := dec.(codec.Rebuilder); ok {
		b.Run(name+"/Rebuild", func(b *testing.B) {
			b.SetBytes(int64(len(whole.Residual)))
			for b.Loop() {
				for _, ch := range chunks {
					if err := r.Rebuild(ch.block.Residual, ch.block.Base, ch.data, ch.deltas); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run(name+"/Decode", func(b *testing.B) {
		b.SetBytes(int64(len(whole.Residual)))
		for b.Loop() {
			unpack()
		}
	})
}
