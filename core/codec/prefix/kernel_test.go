package prefix

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

// kernelRequests gathers chunks for testdata/kernel.cc and what it must say.
type kernelRequests struct {
	t    *testing.T
	rng  *rand.Rand
	data []byte
	want []verdict

	instead []byte // of the base: what is sent of a quantised one
}

type verdict struct {
	what   string
	target []byte
	err    error // of the Go decoder; its words are undefined then
}

// errUnknown stands for a verdict that only has to be some verdict.
var errUnknown = errors.New("whatever")

// add asks for a chunk in every place and alignment by turns.
func (k *kernelRequests) add(what string, t dtype.Type, tables, chunk, base, target []byte, err error) {
	le := binary.LittleEndian
	pad := func(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }
	turn := len(k.want)
	hasBase, inPlace := uint32(1), uint32(turn&1)
	if k.instead != nil {
		inPlace = 0
	}
	if base == nil {
		hasBase, inPlace = 0, 0
		base = make([]byte, len(target))
	}
	room := [...]uint32{0, 1 << 16, 40}[turn%3]
	for _, v := range []uint32{
		uint32(t.WordBytes()), uint32(len(target) / t.WordBytes()), uint32(len(tables)), uint32(len(chunk)),
		hasBase, inPlace, uint32(turn / 2 % 4), uint32(turn / 4 % 5 / 4), uint32(turn / 3 % 5 / 4), room, uint32(DeviceQueue(t)),
	} {
		k.data = le.AppendUint32(k.data, v)
	}
	k.data = append(append(k.data, pad(tables)...), pad(chunk)...)
	if k.instead != nil {
		k.data = append(k.data, k.instead...)
	} else {
		k.data = append(k.data, pad(base)...)
	}
	k.want = append(k.want, verdict{what, target, err})
}

// run compares the answers. The kernel does not look at padding, as a chunk's
// checksum does; all else that the Go decoder refuses, it must.
func (k *kernelRequests) run(flags ...string) {
	k.t.Helper()
	got := codectest.RunKernel(k.t, k.data, flags...)
	refused := 0
	for i, x := range k.want {
		size := (len(x.target) + 3) &^ 3
		good, target := got[0] == 1, got[4:4+len(x.target)]
		got = got[4+size:]
		padding := x.err != nil && strings.Contains(x.err.Error(), "not padded")
		switch {
		case x.err == errUnknown:
		case good != (x.err == nil) && !padding:
			k.t.Fatalf("request %d, %s: well formed %v, the Go decoder says %v", i, x.what, good, x.err)
		case x.err == nil && !bytes.Equal(target, x.target):
			k.t.Fatalf("request %d, %s: other words", i, x.what)
		}
		if !good {
			refused++
		}
	}
	if len(got) != 0 {
		k.t.Fatalf("%d bytes are left over", len(got))
	}
	k.t.Logf("%d chunks, %d of them refused", len(k.want), refused)
}

// block makes words that changed a little, some not at all, some for good, with
// base words of a few exponents.
func (k *kernelRequests) block(t dtype.Type, words int, hasBase bool) codec.Block {
	size := t.WordBytes()
	b := codec.Block{Type: t, Base: word.Bytes(make([]uint64, words*size/8+1))[:words*size], Residual: word.Bytes(make([]uint64, words*size/8+1))[:words*size]}
	shift, width := t.Exponent()
	put := func(to []byte, v uint64) {
		for i := range to {
			to[i] = byte(v >> (8 * i))
		}
	}
	unit := uint64(1) << (8 * max(size-2, 0)) // of the coded part of floats
	if width == 0 {
		unit = 1
	}
	for i := range words {
		w := k.rng.Uint64()
		exponent := min(uint64(k.rng.IntN(6)), 1<<width-1)
		if width > 0 {
			w = w&^((1<<width-1)<<shift) | (1<<(width-1)-exponent)<<shift
		}
		r := (k.rng.Uint64N(4<<(2*exponent)) - 2<<(2*exponent)) * unit
		switch k.rng.IntN(100) {
		case 0:
			r = k.rng.Uint64()
		case 1:
			r += 1 << (8*size - 1)
		}
		if hasBase {
			put(b.Base[i*size:(i+1)*size], w)
		} else {
			r += w
		}
		put(b.Residual[i*size:(i+1)*size], r)
	}
	return b
}

// chunk encodes b, asks for it, and, if damage is set, for it with every bit
// flipped, or some of them.
func (k *kernelRequests) chunk(what string, enc codec.Encoder, b codec.Block, hasBase bool, damage int) {
	k.t.Helper()
	device, err := DeviceTables(b.Type, enc.Tables())
	if err != nil {
		k.t.Fatal(err)
	}
	dec, err := factory{}.NewDecoder(b.Type, enc.Tables())
	if err != nil {
		k.t.Fatal(err)
	}
	data, deltas, err := enc.Encode(nil, b)
	if err != nil {
		k.t.Fatal(err)
	}
	base := b.Base
	if !hasBase {
		base = nil
	}
	target := bytes.Clone(b.Base)
	residual.Apply(residual.Bit, b.Type, target, b.Base, b.Residual)
	k.add(what, b.Type, device, data, base, target, nil)
	try := func(damaged []byte) {
		out := word.Bytes(make([]uint64, len(target)/8+1))[:len(target)]
		err := dec.(interface {
			Rebuild(dst, base, data []byte, deltas uint32) error
		}).Rebuild(out, b.Base, damaged, deltas)
		k.add("damaged "+what, b.Type, device, damaged, base, out, err)
	}
	flips := 8 * len(data)
	for i := range min(damage, flips) {
		bit := i
		if damage < flips {
			bit = k.rng.IntN(flips)
		}
		damaged := bytes.Clone(data)
		damaged[bit/8] ^= 1 << (bit % 8)
		try(damaged)
	}
	if damage > 0 {
		for cut := 0; cut < len(data); cut += 4 * (1 + len(data)/200) {
			try(data[:cut])
		}
		try(append(bytes.Clone(data), 0, 0, 0, 0))
		noise := bytes.Clone(data)
		for i := range noise {
			noise[i] = byte(k.rng.Uint32())
		}
		try(noise)
	}
}

// TestKernel decodes what the Go encoder wrote with the kernel's code: every
// word size and layout, in place and not, aligned or not, whole and damaged.
func TestKernel(t *testing.T) {
	k := kernelRequests{t: t, rng: rand.New(rand.NewPCG(5, 6))}
	for _, typ := range []dtype.Type{dtype.U8, dtype.F8E4M3, dtype.F8E5M2, dtype.Bool, dtype.BF16, dtype.F16, dtype.I16, dtype.F32, dtype.C64, dtype.I32, dtype.F64, dtype.I64, dtype.U64} {
		for _, words := range []int{0, 1, 7, 8, 9, 255, 256, 257, 511, 513, 5000} {
			for _, hasBase := range []bool{true, false} {
				b := k.block(typ, words, hasBase)
				damage := 0
				switch {
				case words == 9 || words == 257 && hasBase:
					damage = 4000 // every bit
				case words == 5000:
					damage = 10
				}
				k.chunk(typ.String(), factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault), b, hasBase, damage)
			}
		}
		// Tables of other data, so that there are many exceptions, and of none.
		b, other := k.block(typ, 3000, true), k.block(typ, 3000, true)
		for i := range other.Residual {
			other.Residual[i] = 3
		}
		k.chunk(typ.String()+" with foreign tables", factory{}.Plan(typ, []codec.Block{other}, 0, codec.LevelDefault), b, true, 10)
		k.chunk(typ.String()+" with tables of nothing", factory{}.Plan(typ, nil, 0, codec.LevelDefault), b, true, 10)
		k.chunk(typ.String()+" unchanged", encoderWith(oneContext(t, typ, interval.Symbol{})), other, true, 40)
	}
	for _, typ := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.I64} { // several blocks
		b := k.block(typ, 2*blockWords+300, true)
		k.chunk(typ.String()+" of several blocks", factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault), b, true, 5)
	}
	k.run()
}

// TestKernelLongCodes uses codes of up to 24 bits, which no plan of ours has.
func TestKernelLongCodes(t *testing.T) {
	k := kernelRequests{t: t, rng: rand.New(rand.NewPCG(7, 8))}
	symbols := []interval.Symbol{{Base: 0, Raw: 14, Length: 10}, {Base: 1 << 14, Raw: 14, Length: 10}}
	for i := range uint64(9) {
		symbols = append(symbols, interval.Symbol{Base: 1<<15 + i<<11, Raw: 11, Length: uint8(i + 1)})
	}
	for _, typ := range []dtype.Type{dtype.BF16, dtype.F32, dtype.I32} {
		enc := encoderWith(oneContext(t, typ, symbols...))
		for _, words := range []int{9, 257, 6000} {
			b := k.block(typ, words, true)
			for i := range b.Residual {
				b.Residual[i] = byte(k.rng.Uint32())
			}
			k.chunk(typ.String(), enc, b, true, 300)
		}
	}
	k.run()
}

// TestKernelContexts uses contexts that the kernel calculates, and some that it cannot.
func TestKernelContexts(t *testing.T) {
	k := kernelRequests{t: t, rng: rand.New(rand.NewPCG(13, 14))}
	for _, typ := range []dtype.Type{dtype.F8E4M3, dtype.BF16, dtype.F32} {
		l := layoutOf(typ)
		keyBits := min(l.keyBits, maxKeyBits)
		keys := uint16(1) << keyBits
		for _, c := range []struct {
			what               string
			first, step, count uint16
			longest            uint8
			ramp               bool
		}{
			{"from the first key on", 1, 1, 47, 8, true},
			{"to the last key", keys - 47, 1, 47, 8, true},
			{"with gaps", keys/2 - 20, 3, 15, 8, true},
			{"of eight keys", 8, 8, min(keys/8-1, 47), 8, true},
			{"two", keys / 3, 1, 1, 3, true},
			{"one more than a ramp has", 1, 1, 48, 8, false},
			{"few and far between", 11, 59, 2, 8, false},
			{"everywhere", 1, keys / 64, 63, 8, false},
			{"of codes of 9 bits", keys / 2, 1, 31, 9, false},
			{"of codes of 10 bits", keys / 2, 1, 15, 10, false},
		} {
			tab := tables{layout: l}
			tab.contexts.shift = l.keyBits - keyBits
			for i := range c.count {
				tab.contexts.starts = append(tab.contexts.starts, c.first+i*c.step)
			}
			for i := range int(c.count) + 1 {
				tab.codes = append(tab.codes, codeFrom(lowest(i), l.coded, c.longest))
			}
			parsed, err := parseTables(typ, tab.marshal())
			if err != nil {
				t.Fatal(err)
			}
			device, err := DeviceTables(typ, parsed.marshal())
			if err != nil {
				t.Fatal(err)
			}
			if ramp := device[32] == 1; ramp != c.ramp {
				t.Errorf("%v, contexts %s: a ramp %v, expected %v", typ, c.what, ramp, c.ramp)
			}
			if size := DeviceShared(device); c.ramp && size > 60<<10 {
				t.Errorf("%v, contexts %s: %d bytes of shared memory", typ, c.what, size)
			}
			const words = 3000
			b := codec.Block{Type: typ}
			for range words {
				base := k.rng.Uint64()
				key := base >> l.codeShift & (1<<l.keyBits - 1) >> tab.contexts.shift
				r := uint64(lowest(tab.contexts.of(uint16(key)))+k.rng.IntN(residuals)) << l.codeShift
				b.Base = append(b.Base, binary.LittleEndian.AppendUint64(nil, base)[:typ.WordBytes()]...)
				b.Residual = append(b.Residual, binary.LittleEndian.AppendUint64(nil, r)[:typ.WordBytes()]...)
			}
			k.chunk(typ.String()+", contexts "+c.what, encoderWith(parsed), b, true, 20)
		}
	}
	k.run()
}

// residuals is how many a context of TestKernelContexts has, from lowest on: two next
// to each other have none in common.
const residuals = 44

func lowest(context int) int { return residuals * (context % 2) }

// codeFrom returns a code of them, whose longest codes are two of so many bits; the
// fewer the bits, the fewer it covers.
func codeFrom(first int, width uint, longest uint8) interval.Code {
	c := interval.Code{Width: width}
	for k := range longest + 1 {
		c.Symbols = append(c.Symbols, interval.Symbol{Base: uint64(first) + 4*uint64(k), Raw: 2, Length: min(k+1, longest)})
	}
	return c
}

// TestKernelAdd does the same for the add residual, where exceptions of the
// codec are put in place before the addition, and those of the chunk after it.
func TestKernelAdd(t *testing.T) {
	for typ, flag := range map[dtype.Type]string{dtype.BF16: "BF16", dtype.F16: "F16", dtype.F32: "F32", dtype.F64: "F64", dtype.F8E4M3: "F8E4M3"} {
		k := kernelRequests{t: t, rng: rand.New(rand.NewPCG(9, 10))}
		for _, words := range []int{1, 8, 300, 5000, blockWords + 777} {
			b := k.block(typ, words, true)
			target := bytes.Clone(b.Base)
			residual.Apply(residual.Bit, typ, target, b.Base, b.Residual)
			replaced := residual.Compute(residual.Add, typ, b.Residual, b.Base, target, nil)
			foreign := k.block(typ, 500, true)
			for _, samples := range [][]codec.Block{{b}, {foreign}, nil} {
				enc := factory{}.Plan(typ, samples, 0, codec.LevelDefault)
				device, err := DeviceTables(typ, enc.Tables())
				if err != nil {
					t.Fatal(err)
				}
				data := binary.LittleEndian.AppendUint32(nil, uint32(len(replaced)))
				data = append(data, word.Bytes(replaced)...)
				for _, i := range replaced {
					data = append(data, target[int(i)*typ.WordBytes():int(i+1)*typ.WordBytes()]...)
				}
				data = append(data, make([]byte, -len(data)&7)...)
				if data, _, err = enc.Encode(data, b); err != nil {
					t.Fatal(err)
				}
				k.add(typ.String(), typ, device, data, b.Base, target, nil)
				k.add(typ.String(), typ, device, data, b.Base, target, nil) // and in place
				for range 30 {
					damaged := bytes.Clone(data)
					damaged[k.rng.IntN(len(data))] ^= 1 << k.rng.IntN(8)
					k.add("damaged", typ, device, damaged, b.Base, target, errUnknown)
				}
			}
		}
		k.run("-DADD="+flag, "-ffp-contract=off")
	}
}

// TestKernelQuantised decodes against the codes of quantised bases.
func TestKernelQuantised(t *testing.T) {
	for typ, flag := range map[dtype.Type]string{dtype.BF16: "kBF16", dtype.F32: "kF32"} {
		k := kernelRequests{t: t, rng: rand.New(rand.NewPCG(11, 12))}
		for _, scheme := range []quant.Scheme{
			{Kind: quant.Linear, Bits: 4, Group: 64, Scale: dtype.BF16},
			{Kind: quant.Linear, Bits: 3, Group: 100, Scale: dtype.F32},
			{Kind: quant.Linear, Bits: 8, Group: 128, Scale: dtype.F16},
		} {
			for _, words := range []int{1, 9, 257, 5000} {
				b := k.block(typ, words, true)
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
				k.instead = append(append(append([]byte{}, q[:]...), pad(d.Packed)...), pad(d.Scale)...)
				k.chunk(typ.String(), factory{}.Plan(typ, []codec.Block{b}, 0, codec.LevelDefault), b, true, 40)
			}
		}
		k.run("-DQUANT=quant::" + flag)
	}
}

// oneContext returns tables with one context and these symbols.
func oneContext(t *testing.T, typ dtype.Type, symbols ...interval.Symbol) tables {
	t.Helper()
	tab := tables{layout: layoutOf(typ), codes: []interval.Code{{Width: layoutOf(typ).coded, Symbols: symbols}}}
	tab.contexts.shift = tab.layout.keyBits
	parsed, err := parseTables(typ, tab.marshal()) // which assigns the codes
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// encoderWith returns the encoder of tables.
func encoderWith(t tables) codec.Encoder {
	switch t.layout.wordBits {
	case 8:
		return encoderOf[uint8, uint8](t, 4096)
	case 16:
		return encoderOf[uint16, uint16](t, 4096)
	case 32:
		return encoderOf[uint32, uint16](t, 4096)
	}
	return encoderOf[uint64, uint16](t, 4096)
}
