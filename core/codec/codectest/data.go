package codectest

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// types has one type of every word size, and those whose words are special.
var types = []dtype.Type{dtype.F8E4M3, dtype.BF16, dtype.F16, dtype.F32, dtype.F64, dtype.C64, dtype.Bool}

// sizes are words per chunk: none, one, and both sides of what GPUs and
// codecs like to handle at once.
var sizes = []int{0, 1, 31, 32, 33, 255, 256, 257, 4095, 4096, 4097}

// sample is a block with a name that tells how to make it again.
type sample struct {
	name  string
	block codec.Block
}

// aligned returns n bytes aligned to 8.
func aligned(n int) []byte { return word.Bytes(make([]uint64, n/8+1))[:n] }

// putWord stores the low bytes of v as word i of b.
func putWord(b []byte, wordBytes, i int, v uint64) {
	for k := range wordBytes {
		b[i*wordBytes+k] = byte(v >> (8 * k))
	}
}

// nearZero returns a residual that is not 0: a few units up or down, as
// weights move.
func nearZero(rng *rand.Rand) uint64 {
	if v := uint64(rng.IntN(16)) - 8; v != 0 {
		return v
	}
	return 1
}

// residualMakers fill one residual word each; by name.
var residualMakers = []struct {
	name string
	word func(rng *rand.Rand, t dtype.Type) uint64
}{
	{"unchanged", func(*rand.Rand, dtype.Type) uint64 { return 0 }},
	{"1 in 1000", sometimes(1e-3, nearZero)},
	{"1 in 50", sometimes(0.02, nearZero)},
	{"3 in 10", sometimes(0.3, nearZero)},
	{"3 in 10 wide", sometimes(0.3, func(rng *rand.Rand) uint64 { return rng.Uint64() | 1 })},
	{"all changed", sometimes(1, nearZero)},
	{"all random", func(rng *rand.Rand, _ dtype.Type) uint64 { return rng.Uint64() }},
	{"all equal", func(*rand.Rand, dtype.Type) uint64 { return 3 }},
	{"all minus one", func(*rand.Rand, dtype.Type) uint64 { return math.MaxUint64 }},
	{"NaN", nanWord},
}

func sometimes(p float64, v func(*rand.Rand) uint64) func(*rand.Rand, dtype.Type) uint64 {
	return func(rng *rand.Rand, _ dtype.Type) uint64 {
		if rng.Float64() < p {
			return v(rng)
		}
		return 0
	}
}

// nanWord returns infinities and NaNs of every payload and sign, as an add
// residual or a residual against nothing may hold them.
func nanWord(rng *rand.Rand, t dtype.Type) uint64 {
	shift, width := t.Exponent()
	sign := rng.Uint64() << (8*t.WordBytes() - 1)
	return sign | (1<<width-1)<<shift | rng.Uint64()&(1<<shift-1)
}

// samples makes one block of words words for every kind of residual.
func samples(t dtype.Type, words int) []sample {
	var out []sample
	for i, m := range residualMakers {
		rng := rand.New(rand.NewPCG(uint64(words), uint64(i)))
		out = append(out, sample{
			name:  fmt.Sprintf("%v/%d/%s", t, words, m.name),
			block: makeBlock(rng, t, words, m.word),
		})
	}
	return out
}

func makeBlock(rng *rand.Rand, t dtype.Type, words int, residualWord func(*rand.Rand, dtype.Type) uint64) codec.Block {
	w := t.WordBytes()
	b := codec.Block{Type: t, Base: aligned(words * w), Residual: aligned(words * w)}
	for i := range b.Base {
		b.Base[i] = byte(rng.Uint32())
	}
	for i := range words {
		putWord(b.Residual, w, i, residualWord(rng, t))
	}
	return b
}

// RL returns bf16 weights one reinforcement-learning step apart: fp32 masters
// move by about 1e-6, so that one bf16 word in forty changes, mostly among the
// small weights and by one unit.
func RL(words int) codec.Block { return trained(words, 1e-6) }

// RLSteps returns bf16 weights some such steps apart.
func RLSteps(words, steps int) codec.Block { return trained(words, 1e-6*math.Sqrt(float64(steps))) }

// FineTune returns bf16 weights before and after hundreds of steps: nearly
// every word has changed, small weights by many units.
func FineTune(words int) codec.Block { return trained(words, 1.2e-3) }

// trained returns normal weights that each moved by about step.
func trained(words int, step float64) codec.Block {
	rng := rand.New(rand.NewPCG(uint64(words), math.Float64bits(step)))
	base, target := make([]uint16, words), make([]uint16, words)
	for i := range base {
		master := rng.NormFloat64() * 0.03
		base[i] = bfloat16(master)
		target[i] = bfloat16(master + step*rng.NormFloat64())
	}
	b := codec.Block{Type: dtype.BF16, Base: word.Bytes(base), Residual: aligned(2 * words)}
	residual.Compute(residual.Bit, dtype.BF16, b.Residual, b.Base, word.Bytes(target), nil)
	return b
}

func bfloat16(f float64) uint16 {
	return uint16((math.Float32bits(float32(f)) + 0x8000) >> 16)
}

// Schemes are of quantised bases: every kind and number of bits, groups of all
// sorts of lengths.
var Schemes = []quant.Scheme{
	{Kind: quant.Linear, Bits: 2, Group: 32, Scale: dtype.F16},
	{Kind: quant.Linear, Bits: 3, Group: 64, Scale: dtype.BF16, Zero: true},
	{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16},
	{Kind: quant.Linear, Bits: 4, Group: 100, Scale: dtype.F32, Zero: true},
	{Kind: quant.Linear, Bits: 8, Group: 128, Scale: dtype.F32},
	{Kind: quant.Codebook, Bits: 4, Group: 64, Scale: dtype.F32, Code: quant.NF4},
	{Kind: quant.Int8Rows, Bits: 8, Group: 96, Scale: dtype.F32},
}
