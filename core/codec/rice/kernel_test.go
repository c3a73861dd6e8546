package rice

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// kernelRequests collects chunks for the kernels' code, and what it should make
// of them.
type kernelRequests struct {
	t     testing.TB
	rng   *rand.Rand
	bytes []byte
	want  []kernelWant
}

type kernelWant struct {
	name   string
	size   int    // of the answer's target, padded
	target []byte // nil if Go refuses the chunk
}

// kernelMode says how a chunk is decoded.
type kernelMode struct {
	inPlace bool
	off     int  // words by which buffers are not aligned
	noBase  bool // the base is all zeros
	kind    residual.Kind
	quant   []byte // what is sent in place of a quantised base
}

// packed is an encoded block.
type packed struct {
	name   string
	block  codec.Block
	tables []byte // expanded
	dec    codec.Decoder
	data   []byte
	deltas uint32
}

func pack(t testing.TB, name string, b codec.Block, enc codec.Encoder) *packed {
	t.Helper()
	p := &packed{name: name, block: b}
	var err error
	if p.tables, err = DeviceTables(b.Type, enc.Tables()); err != nil {
		t.Fatal(err)
	}
	if p.dec, err = (factory{}).NewDecoder(b.Type, enc.Tables()); err != nil {
		t.Fatal(err)
	}
	if p.data, p.deltas, err = enc.Encode(nil, b); err != nil {
		t.Fatal(err)
	}
	return p
}

// add asks for a chunk, which is what the encoder wrote or damaged.
func (k *kernelRequests) add(p *packed, data []byte, m kernelMode) {
	le := binary.LittleEndian
	b := p.block
	w := b.Type.WordBytes()
	pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }
	off := m.off
	if m.noBase {
		off += 16
	}
	inPlace := uint32(0)
	if m.inPlace {
		inPlace = 1
	}
	for _, v := range []uint32{
		uint32(w), uint32(len(b.Base) / w), uint32(len(p.tables)), uint32(len(data)), p.deltas, inPlace, uint32(off),
		2*k.rng.Uint32N(128) + 1, k.rng.Uint32N(256),
	} {
		k.bytes = le.AppendUint32(k.bytes, v)
	}
	base := b.Base
	if m.quant != nil {
		base = m.quant
	}
	k.bytes = append(append(append(k.bytes, pad(p.tables)...), pad(base)...), data...)

	x := kernelWant{name: fmt.Sprintf("%s, in place: %v, off: %v", p.name, m.inPlace, m.off), size: len(pad(b.Base))}
	res := word.Bytes(make([]uint64, len(b.Base)/8+1))[:len(b.Base)]
	if p.dec.Decode(codec.Block{Type: b.Type, Base: b.Base, Residual: res}, data, p.deltas) == nil {
		x.target = bytes.Clone(b.Base)
		residual.Apply(m.kind, b.Type, x.target, b.Base, res)
	} else if bytes.Equal(data, p.data) {
		k.t.Fatalf("%s: Go does not decode what it encoded", p.name)
	}
	k.want = append(k.want, x)
}

// run checks the answers: what Go decodes comes out the same; what Go refuses
// may be taken where telling would cost too much.
func (k *kernelRequests) run(flags ...string) {
	t := k.t.(*testing.T)
	t.Helper()
	got := codectest.RunKernel(t, k.bytes, flags...)
	refused, taken := 0, 0
	for i, x := range k.want {
		if len(got) < 4+x.size {
			t.Fatalf("request %d, %s: no answer", i, x.name)
		}
		good, target := got[0] == 1, got[4:4+len(x.target)]
		got = got[4+x.size:]
		switch {
		case x.target == nil && good:
			taken++
		case x.target == nil:
			refused++
		case !good:
			t.Fatalf("request %d, %s: refused", i, x.name)
		case !bytes.Equal(target, x.target):
			at := 0
			for target[at] == x.target[at] {
				at++
			}
			t.Fatalf("request %d, %s: byte %d of %d is %#x, expected %#x", i, x.name, at, len(target), target[at], x.target[at])
		}
	}
	if len(got) != 0 {
		t.Fatalf("%d bytes are left over", len(got))
	}
	t.Logf("%d requests, of which %d refused as by Go, %d not", len(k.want), refused, taken)
}

// block makes a block of floats of normal size and other words, of which a part
// changes, most by one.
func block(rng *rand.Rand, t dtype.Type, words int, density, wide float64, zeroBase bool) codec.Block {
	w := t.WordBytes()
	shift, width := t.Exponent()
	b := codec.Block{Type: t, Base: word.Bytes(make([]uint64, words*w/8+1))[:words*w], Residual: word.Bytes(make([]uint64, words*w/8+1))[:words*w]}
	var buf [8]byte
	put := func(to []byte, i int, v uint64) {
		binary.LittleEndian.PutUint64(buf[:], v)
		copy(to[i*w:], buf[:w])
	}
	for i := range words {
		v := rng.Uint64()
		small := 0
		if width > 0 { // exponents below that of 1, each half as frequent as the one above
			small = min(bits.TrailingZeros64(rng.Uint64()), 1<<(width-1)-2)
			v = v&^((1<<width-1)<<shift) | uint64(1<<(width-1)-1-small)<<shift
		}
		if !zeroBase {
			put(b.Base, i, v)
		}
		if rng.Float64() < density*math.Ldexp(1, min(small, 4))/2 {
			change := uint64(1)
			switch {
			case rng.Float64() < wide:
				change = rng.Uint64() >> rng.IntN(64)
			case rng.IntN(2) == 0:
				change = math.MaxUint64
			}
			put(b.Residual, i, change)
		}
	}
	return b
}

var kernelTypes = []dtype.Type{dtype.U8, dtype.F8E4M3, dtype.BF16, dtype.F16, dtype.F32, dtype.F64, dtype.I64}

// TestKernel decodes what the Go encoder wrote, of every word size and from
// sparse to dense.
func TestKernel(t *testing.T) {
	k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(1, 2))}
	for _, typ := range kernelTypes {
		for _, words := range []int{1, 7, 257, 5000, 20_001} {
			for _, density := range []float64{0, 0.01, 0.2, 1} {
				for _, wide := range []float64{0, 0.1, 1} {
					b := block(k.rng, typ, words, density, wide, false)
					enc := factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault)
					p := pack(t, fmt.Sprintf("%v/%d/%v/%v", typ, words, density, wide), b, enc)
					k.add(p, p.data, kernelMode{})
					k.add(p, p.data, kernelMode{inPlace: true, off: k.rng.IntN(3)})
				}
			}
		}
		b := block(k.rng, typ, 9001, 0.3, 0.3, true)
		p := pack(t, fmt.Sprintf("%v without a base", typ), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
		k.add(p, p.data, kernelMode{noBase: true, off: k.rng.IntN(3)})
		// Tables that were made for other data: exceptions, and classes that
		// have no words.
		other := block(k.rng, typ, 3000, 0.02, 0.2, false)
		enc := factory{}.Plan(typ, []codec.Block{other}, 0, codec.LevelDefault)
		for _, wide := range []float64{0.01, 0.7} {
			p = pack(t, fmt.Sprintf("%v with other tables", typ), block(k.rng, typ, 9001, 0.1, wide, false), enc)
			k.add(p, p.data, kernelMode{})
			k.add(p, p.data, kernelMode{inPlace: true})
		}
	}
	k.run()
}

// TestKernelChunks decodes chunks as they are in practice, and the largest.
func TestKernelChunks(t *testing.T) {
	k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(3, 4))}
	for name, b := range map[string]codec.Block{
		"RL": codectest.RL(1 << 16), "RL in pages": codectest.RL(200_000), "a long RL": codectest.RL(300_001), "fine-tune": codectest.FineTune(40_000),
		"long fine-tune": codectest.FineTune(100_000), "nothing": block(k.rng, dtype.F32, 1<<16, 0, 0, false),
		"long and sparse": block(k.rng, dtype.U8, 1<<18, 1e-4, 0.5, false), "long and wide": block(k.rng, dtype.F64, 1<<17, 0.05, 1, false),
	} {
		p := pack(t, name, b, factory{}.Plan(b.Type, []codec.Block{b}, 0, codec.LevelDefault))
		k.add(p, p.data, kernelMode{})
		k.add(p, p.data, kernelMode{inPlace: true})
	}
	// Events of the same class a few, and very many, words apart, in all pages
	// of a chunk; a few of them have values.
	for _, typ := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F64} {
		for _, wide := range []float64{0, 1} {
			b := block(k.rng, typ, maxListed-5, 0, 0, false)
			w := typ.WordBytes()
			for range 40 {
				at := k.rng.IntN(len(b.Residual) / w)
				for range k.rng.IntN(5) + 1 {
					change := uint64(1)
					if k.rng.Float64() < wide {
						change = k.rng.Uint64()>>k.rng.IntN(64) | 1
					}
					b.Residual[at*w] = byte(change)
					at = min(at+k.rng.IntN(50), len(b.Residual)/w-1)
				}
			}
			p := pack(t, fmt.Sprintf("%v far apart, %v", typ, wide), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
			k.add(p, p.data, kernelMode{off: 1})
			k.add(p, p.data, kernelMode{inPlace: true})
		}
	}
	// Long distances in a code for short ones: more zeros than the list holds.
	short := block(k.rng, dtype.U8, 3000, 1, 0, false)
	p := pack(t, "long distances", block(k.rng, dtype.U8, 200_000, 1e-4, 0, false), factory{}.Plan(dtype.U8, []codec.Block{short}, 0, codec.LevelDefault))
	k.add(p, p.data, kernelMode{})
	k.add(p, p.data, kernelMode{inPlace: true})
	k.run()
}

// TestKernelQuantised decodes against the codes of quantised bases, without
// zero points.
func TestKernelQuantised(t *testing.T) {
	for flag, typ := range map[string]dtype.Type{"kBF16": dtype.BF16, "kF32": dtype.F32} {
		k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(7, 8))}
		for _, scheme := range []quant.Scheme{
			{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16},
			{Kind: quant.Linear, Bits: 3, Group: 100, Scale: dtype.F32},
			{Kind: quant.Linear, Bits: 8, Group: 128, Scale: dtype.F16},
		} {
			for _, words := range []int{1, 5000, 8192, 20_001, maxListed + 1} {
				b := block(k.rng, typ, words, 0.02, 0.3, false)
				n := uint64(words)
				d := &quant.Data{Packed: make([]byte, scheme.PackedBytes(n)), Scale: make([]byte, scheme.ScaleBytes(n))}
				if err := quant.Quantize(t.Context(), d, &scheme, b.Base, typ, 0); err != nil {
					t.Fatal(err)
				}
				if err := quant.Dequantize(t.Context(), b.Base, typ, &scheme, d, 0); err != nil {
					t.Fatal(err)
				}
				q, err := scheme.Descriptor(quant.Pointers{Packed: 8, Scale: 8}, n) // kernel.cc has its own
				if err != nil {
					t.Fatal(err)
				}
				pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }
				m := kernelMode{quant: append(append(bytes.Clone(q[:]), pad(d.Packed)...), pad(d.Scale)...)}
				p := pack(t, fmt.Sprintf("%v/%d on %d bits", typ, words, scheme.Bits), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
				k.add(p, p.data, m)
				m.off = 1
				k.add(p, p.data, m)
			}
		}
		k.run("-DQUANT=quant::" + flag)
	}
}

// TestKernelAdd decodes floats that are added.
func TestKernelAdd(t *testing.T) {
	for flag, typ := range map[string]dtype.Type{"BF16": dtype.BF16, "F16": dtype.F16, "F32": dtype.F32, "F64": dtype.F64} {
		k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(9, 10))}
		shift, width := typ.Exponent()
		w := typ.WordBytes()
		for _, density := range []float64{0.01, 0.6} {
			b := block(k.rng, typ, 20_001, 0, 0, false)
			for at := 0; at < len(b.Base); at += w {
				var buf [8]byte
				copy(buf[:], b.Base[at:at+w])
				v := binary.LittleEndian.Uint64(buf[:])
				if v>>shift&(1<<width-1) > 3 && k.rng.Float64() < density { // plus an eighth
					binary.LittleEndian.PutUint64(buf[:], v-3<<shift)
					copy(b.Residual[at:], buf[:w])
				}
			}
			p := pack(t, fmt.Sprintf("%v added", typ), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
			k.add(p, p.data, kernelMode{kind: residual.Add})
			k.add(p, p.data, kernelMode{kind: residual.Add, inPlace: true, off: 1})
		}
		k.run("-DADD="+flag, "-ffp-contract=off")
	}
}

// maxListed is kMaxWords of kernels/rice_state.cuh.
const maxListed = 1 << 18

// TestKernelThreads decodes with as many threads as a GPU has, which takes its
// code for warps and barriers.
func TestKernelThreads(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of threads")
	}
	k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(11, 12))}
	for _, typ := range kernelTypes {
		for _, c := range []struct {
			words         int
			density, wide float64
		}{{20_001, 0.02, 0.01}, {20_001, 1, 1}, {300, 0.2, 0.2}} {
			b := block(k.rng, typ, c.words, c.density, c.wide, false)
			p := pack(t, fmt.Sprintf("%v/%+v", typ, c), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
			k.add(p, p.data, kernelMode{})
			k.add(p, p.data, kernelMode{inPlace: true, off: 1})
			for range 4 {
				data := bytes.Clone(p.data)
				data[k.rng.IntN(min(len(data), 200))] ^= 1 << k.rng.IntN(8)
				k.add(p, data, kernelMode{inPlace: true})
			}
		}
	}
	for _, b := range []codec.Block{codectest.RL(1 << 16), codectest.RLSteps(maxListed+1, 1)} {
		p := pack(t, "RL", b, factory{}.Plan(b.Type, []codec.Block{b}, 0, codec.LevelDefault))
		k.add(p, p.data, kernelMode{})
		k.add(p, p.data, kernelMode{inPlace: true})
	}
	k.run("-include", "testdata/threads.h")
}

// TestKernelDamaged flips every bit of small chunks, and of tables' chunks some
// bytes, and cuts them.
func TestKernelDamaged(t *testing.T) {
	k := &kernelRequests{t: t, rng: rand.New(rand.NewPCG(5, 6))}
	for _, typ := range kernelTypes {
		for _, c := range []struct{ density, wide float64 }{{0.05, 0}, {0.3, 0.3}} {
			b := block(k.rng, typ, 300, c.density, c.wide, false)
			p := pack(t, fmt.Sprintf("%v/%v damaged", typ, c.density), b, factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault))
			for bit := range 8 * len(p.data) {
				data := bytes.Clone(p.data)
				data[bit/8] ^= 1 << (bit % 8)
				k.add(p, data, kernelMode{inPlace: bit%2 == 0, off: bit % 3})
			}
			for n := 0; n < len(p.data); n += codec.Align {
				k.add(p, p.data[:n], kernelMode{})
			}
		}
	}
	// Longer ones, which have lanes, or are decoded tile by tile.
	for _, b := range []codec.Block{
		block(k.rng, dtype.BF16, 9000, 0.05, 0.5, false), block(k.rng, dtype.F32, 9000, 0.05, 0.5, false), block(k.rng, dtype.F64, 5000, 1, 1, false),
		block(k.rng, dtype.BF16, 40_000, 0.5, 0.01, false), block(k.rng, dtype.F32, 20_000, 0.3, 0.5, false), block(k.rng, dtype.U8, 30_000, 0.7, 0, false),
		codectest.RLSteps(maxListed+1, 1), block(k.rng, dtype.F32, maxListed+1, 0.01, 1, false),
	} {
		p := pack(t, fmt.Sprintf("%v longer", b.Type), b, factory{}.Plan(b.Type, []codec.Block{b}, 0, codec.LevelDefault))
		for round := range 60 {
			data := bytes.Clone(p.data)
			at := k.rng.IntN(len(data))
			if round%2 == 0 { // where the head is
				at = k.rng.IntN(min(len(data), 60))
			}
			data[at] ^= 1 << k.rng.IntN(8)
			if round%4 == 1 { // all zeros, all ones, or anything
				fill := k.rng.IntN(3)
				part := data[at:min(at+k.rng.IntN(500), len(data))]
				for i := range part {
					part[i] = [3]byte{0, 0xff, byte(k.rng.Uint32())}[fill]
				}
			}
			k.add(p, data, kernelMode{inPlace: round%3 == 0})
		}
	}
	k.run()
}
