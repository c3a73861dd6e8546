package raw_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// These tests hold kernels/raw.cu, run on the CPU by testdata/kernel.cc, to what Go
// rebuilds.

// packed is a tensor for the kernel.
type packed struct {
	name               string
	dt                 dtype.Type
	x                  *container.Index
	base, target, blob []byte
	quant              []byte // in place of the base
	inPlace, noBase    bool
	baseOff, dstOff    int
	damaged            int  // a chunk whose fate Go decides, -1: none
	lenient            bool // the kernel may take what Go refuses
	refuse             bool // what Go decided
}

type shape struct {
	dt         dtype.Type
	kind       residual.Kind
	words      int
	chunkWords uint64
	density    float64
}

func pad(b []byte) []byte { return append(bytes.Clone(b), make([]byte, -len(b)&3)...) }

// weights makes floats of normal size, or any words, of which a part changes, most
// by one and some entirely.
func weights(r *rand.Rand, s shape) (base, target []byte) {
	size := s.dt.WordBytes()
	shift, width := s.dt.Exponent()
	for range s.words {
		w := r.Uint64()
		if width > 0 {
			w &^= (1<<width - 1) << shift
			w |= uint64(1<<(width-1)-1-min(r.IntN(20), 1<<(width-1)-2)) << shift
		}
		v := w
		if r.Float64() < s.density {
			if v++; r.IntN(8) == 0 {
				v = r.Uint64()
			}
		}
		base = append(base, binary.LittleEndian.AppendUint64(nil, w)[:size]...)
		target = append(target, binary.LittleEndian.AppendUint64(nil, v)[:size]...)
	}
	return base, target
}

func encode(t *testing.T, s shape, base, target []byte) *packed {
	t.Helper()
	p := &packed{name: fmt.Sprintf("%+v", s), dt: s.dt, base: base, target: target, damaged: -1}
	var out bytes.Buffer
	d := tensor.Desc{Type: s.dt, Shape: []uint64{uint64(8 * len(target) / s.dt.Bits())}}
	index, err := tensor.Encode(context.Background(), &out, d, base, target, tensor.Options{Codec: codec.Raw, Residual: s.kind, ChunkWords: s.chunkWords})
	if err != nil {
		t.Fatal(err)
	}
	if p.x, err = container.Parse(index); err != nil {
		t.Fatal(err)
	}
	p.blob = out.Bytes()
	return p
}

func pack(t *testing.T, r *rand.Rand, s shape) *packed {
	base, target := weights(r, s)
	return encode(t, s, base, target)
}

// with returns a copy that is rebuilt otherwise.
func (p *packed) with(f func(*packed)) *packed {
	c := *p
	f(&c)
	return &c
}

// damage returns a copy whose chunk i is changed by f, and lets Go decide.
func (p *packed) damage(t *testing.T, i int, f func(part []byte)) *packed {
	t.Helper()
	c := *p
	c.blob, c.damaged = bytes.Clone(p.blob), i
	x := *p.x
	x.Records = append([]container.Record(nil), p.x.Records...)
	c.x = &x
	rec := &x.Records[i]
	part := c.blob[rec.DataOffset:][:rec.CompressedBytes]
	f(part)
	rec.Checksum = rec.Sum(part)
	reader, err := tensor.Open(x.Append(nil), c.blob)
	if err != nil {
		t.Fatal(err)
	}
	c.target = make([]byte, len(p.target))
	err = reader.Reconstruct(context.Background(), c.target, p.base, tensor.ReconstructOptions{SkipTargetDigest: true})
	c.refuse = err != nil
	if err != nil {
		c.target = p.target
		c.lenient = strings.Contains(err.Error(), "padding") // which the kernel does not look at
	}
	return &c
}

// requests are launches for the kernel.
type requests struct {
	t     *testing.T
	rng   *rand.Rand
	bytes []byte
	want  []*packed
}

// launch rebuilds tensors in one launch.
func (k *requests) launch(all ...*packed) {
	le := binary.LittleEndian
	u32 := func(values ...int) {
		for _, v := range values {
			k.bytes = le.AppendUint32(k.bytes, uint32(v))
		}
	}
	flag := map[bool]int{true: 1}
	u32(len(all), 2*k.rng.IntN(128)+1, k.rng.IntN(256))
	for _, p := range all {
		u32(len(p.target)/p.dt.WordBytes(), int(p.x.ChunkWords), len(p.x.Records), len(p.blob), flag[p.inPlace], flag[p.noBase], p.baseOff, p.dstOff)
		for i := range p.x.Records {
			k.bytes = p.x.Records[i].AppendFlat(k.bytes)
		}
		base := pad(p.base)
		switch {
		case p.quant != nil:
			base = p.quant
		case p.base == nil:
			base = pad(make([]byte, len(p.target)))
		}
		k.bytes = append(append(k.bytes, pad(p.blob)...), base...)
		k.want = append(k.want, p)
	}
}

func (k *requests) run(flags ...string) {
	t := k.t
	t.Helper()
	got := codectest.RunKernel(t, k.bytes, append(flags, "-fno-strict-aliasing", "-ffp-contract=off")...)
	refused, taken := 0, 0
	for _, p := range k.want {
		statuses := got[:4*len(p.x.Records)]
		got = got[len(statuses):]
		target := got[:len(p.target)]
		got = got[len(pad(target)):]
		for i := range p.x.Records {
			rec := &p.x.Records[i]
			from := int(rec.OutputWord) * p.dt.WordBytes()
			to := from + int(rec.UncompressedBytes)
			st, refuse := binary.LittleEndian.Uint32(statuses[4*i:]), p.refuse && i == p.damaged
			switch {
			case refuse && st == uint32(status.Corrupt):
				refused++
			case refuse && p.lenient && st == 0:
				taken++
			case refuse || st != 0:
				t.Fatalf("%s, in place %v, off %d, %d: chunk %d has status %d, refused by Go: %v", p.name, p.inPlace, p.baseOff, p.dstOff, i, st, refuse)
			case !bytes.Equal(target[from:to], p.target[from:to]):
				at := from
				for target[at] == p.target[at] {
					at++
				}
				t.Fatalf("%s, in place %v, off %d, %d: byte %d of %d is %#x, expected %#x", p.name, p.inPlace, p.baseOff, p.dstOff, at, len(target), target[at], p.target[at])
			}
		}
	}
	if len(got) != 0 {
		t.Fatalf("%d bytes are left over", len(got))
	}
	t.Logf("%d tensors; %d chunks refused as by Go, %d not", len(k.want), refused, taken)
}

// all rebuilds a tensor in each way that there is.
func (k *requests) all(p *packed) []*packed {
	off := func() int { return k.rng.IntN(2) * k.rng.IntN(16) }
	return []*packed{
		p, p.with(func(c *packed) { c.inPlace, c.baseOff = true, off() }),
		p.with(func(c *packed) { c.dstOff = 1 + k.rng.IntN(3) }), p.with(func(c *packed) { c.baseOff = 1 + k.rng.IntN(3) }),
	}
}

var bits = map[string][]dtype.Type{
	"u8": {dtype.U8, dtype.F8E4M3}, "u16": {dtype.BF16, dtype.I16}, "u32": {dtype.F32, dtype.C64}, "u64": {dtype.F64, dtype.I64},
}

// kTileBytes of raw.cu, and with a quantised base.
const tileBytes, quantTileBytes = 16384, 32768

// TestKernel rebuilds tensors of every word size, from nothing changed to
// everything, of chunks of a few words to several tiles, whole and not.
func TestKernel(t *testing.T) {
	for flag, types := range bits {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			k := &requests{t: t, rng: rand.New(rand.NewPCG(1, uint64(len(flag))))}
			for _, dt := range types {
				tile := tileBytes / dt.WordBytes()
				for _, s := range []shape{
					{dt, 0, 2, 2, 0.5}, {dt, 0, 34, 16, 0.2}, {dt, 0, 1000, 998, 0.1}, {dt, 0, 1000, 100, 1},
					{dt, 0, 2 * tile, uint64(2 * tile), 0.02}, {dt, 0, 3*tile + 38, uint64(2*tile + 6), 0.1}, {dt, 0, 3 * tile, uint64(2*tile + 1), 0.02},
					{dt, 0, 2*tile + 2, uint64(2*tile + 2), 0}, {dt, 0, 2*tile - 2, uint64(2 * tile), 1}, {dt, 0, 4*tile + 6, uint64(3 * tile), 0.3},
				} {
					p := pack(t, k.rng, s)
					k.launch(k.all(p)...)
				}
				s := shape{dt, 0, tile + 20, uint64(tile + 10), 0.7}
				_, target := weights(k.rng, s)
				none := encode(t, s, nil, target).with(func(c *packed) { c.noBase = true })
				// All changes in one tile, or the first and the last words alone.
				base, _ := weights(k.rng, shape{dt, 0, 4 * tile, 0, 0})
				last, ends := bytes.Clone(base), bytes.Clone(base)
				for i := len(last) - tileBytes; i < len(last); i += 3 * dt.WordBytes() {
					last[i]++
				}
				ends[0]++
				ends[len(ends)-1]++
				s = shape{dt, 0, 4 * tile, uint64(4 * tile), -1}
				k.launch(append(append(k.all(encode(t, s, base, last)), none), k.all(encode(t, s, base, ends))...)...)
			}
			k.run("-DWORD=" + flag)
		})
	}
}

// TestKernelLong rebuilds chunks as they are in practice, with more deltas of a
// chunk and a tile than a thread block loads at once.
func TestKernelLong(t *testing.T) {
	k := &requests{t: t, rng: rand.New(rand.NewPCG(3, 4))}
	for _, density := range []float64{0.02, 0.1, 0.3} {
		k.launch(k.all(pack(t, k.rng, shape{dtype.BF16, 0, 150_000, 0, density}))...)
	}
	k.run("-DWORD=u16")
}

// TestKernelAdd rebuilds floats that are added, with exceptions of all kinds.
func TestKernelAdd(t *testing.T) {
	for _, c := range []struct {
		flags string
		dt    dtype.Type
	}{
		{"-DWORD=u16 -DADD=F16", dtype.F16}, {"-DWORD=u16 -DADD=BF16", dtype.BF16}, {"-DWORD=u32 -DADD=F32", dtype.F32}, {"-DWORD=u64 -DADD=F64", dtype.F64},
		{"-DWORD=u8 -DADD=F8E4M3", dtype.F8E4M3}, {"-DWORD=u8 -DADD=F8E5M2", dtype.F8E5M2},
		{"-DWORD=u8 -DADD=F8E4M3FNUZ", dtype.F8E4M3FNUZ}, {"-DWORD=u8 -DADD=F8E5M2FNUZ", dtype.F8E5M2FNUZ},
	} {
		t.Run(c.dt.String(), func(t *testing.T) {
			t.Parallel()
			k := &requests{t: t, rng: rand.New(rand.NewPCG(5, uint64(c.dt)))}
			tile := tileBytes / c.dt.WordBytes()
			for _, s := range []shape{
				{c.dt, residual.Add, 2, 2, 1}, {c.dt, residual.Add, 1000, 300, 0.2}, {c.dt, residual.Add, 3*tile + 5, uint64(2*tile + 3), 0.05},
				{c.dt, residual.Add, 2 * tile, uint64(2 * tile), 1}, {c.dt, residual.Add, 4 * tile, uint64(3 * tile), 0.3}, {c.dt, residual.Add, tile, uint64(tile), 0},
			} {
				k.launch(k.all(pack(t, k.rng, s))...)
			}
			for _, s := range []shape{{c.dt, residual.Add, 3*tile + 5, uint64(3*tile + 1), 0.05}, {c.dt, residual.Add, 400, 200, 0.3}, {c.dt, residual.Add, 2*tile + 4, uint64(2 * tile), 1}} {
				p := pack(t, k.rng, s)
				var all []*packed
				for range 40 {
					d := p.damage(t, 0, func(part []byte) {
						// What comes first has the exceptions.
						at := k.rng.IntN(min(len(part), []int{16, 400, len(part)}[k.rng.IntN(3)]))
						part[at] ^= 1 << k.rng.IntN(8)
					})
					d.inPlace = k.rng.IntN(2) == 0
					all = append(all, d)
				}
				// Exceptions of words that have residuals, which no encoder writes.
				d := p.damage(t, 0, func(part []byte) {
					le := binary.LittleEndian
					n, deltas := le.Uint32(part), p.x.Records[0].Deltas
					numbers := part[(4+n*uint32(4+c.dt.WordBytes())+7)/8*8:]
					for i := range min(n, deltas) {
						if uint64(deltas) < p.x.ChunkWords {
							le.PutUint32(part[4+4*i:], le.Uint32(numbers[4*(i*(deltas/n)):]))
						}
					}
				})
				if d.refuse && d.x.Records[0].Deltas >= binary.LittleEndian.Uint32(d.blob) {
					t.Errorf("Go refuses %s", d.name)
				}
				k.launch(d, d.with(func(c *packed) { c.inPlace = true }))
				k.launch(d.with(func(c *packed) { c.inPlace = true }))
				k.launch(all...)
			}
			k.run(strings.Fields(c.flags)...)
		})
	}
}

// TestKernelQuantised rebuilds on quantised bases.
func TestKernelQuantised(t *testing.T) {
	for flag, dt := range map[string]dtype.Type{"-DWORD=u16 -DQUANT=quant::kF16": dtype.F16, "-DWORD=u16 -DQUANT=quant::kBF16": dtype.BF16, "-DWORD=u32 -DQUANT=quant::kF32": dtype.F32} {
		t.Run(dt.String(), func(t *testing.T) {
			t.Parallel()
			k := &requests{t: t, rng: rand.New(rand.NewPCG(7, uint64(dt)))}
			tile := quantTileBytes / dt.WordBytes()
			for _, scheme := range codectest.Schemes {
				var all []*packed
				for _, s := range []shape{
					{dt, 0, 1, 1, 1}, {dt, 0, 1003, 300, 0.1}, {dt, 0, 2 * tile, uint64(2 * tile), 0.02}, {dt, 0, 2*tile + 29, uint64(tile + 9), 0.05},
					{dt, 0, tile, uint64(tile), 1}, {dt, 0, 2*tile - 8, uint64(2 * tile), 0},
				} {
					p := quantised(t, k.rng, s, scheme)
					all = append(all, p, p.with(func(c *packed) { c.dstOff = 1 }))
				}
				k.launch(all...)
			}
			k.run(strings.Fields(flag)...)
		})
	}
}

func quantised(t *testing.T, r *rand.Rand, s shape, scheme quant.Scheme) *packed {
	t.Helper()
	n := uint64(s.words)
	base, target := weights(r, s)
	d := &quant.Data{Packed: make([]byte, scheme.PackedBytes(n)), Scale: make([]byte, scheme.ScaleBytes(n)), Zero: make([]byte, scheme.ZeroBytes(n))}
	if scheme.Kind == quant.Linear {
		if err := quant.Quantize(t.Context(), d, &scheme, base, s.dt, 0); err != nil {
			t.Fatal(err)
		}
	} else { // codes and scales as they may come from elsewhere
		for i := range d.Packed {
			d.Packed[i] = byte(r.Uint32())
		}
		for i := range d.Scale {
			d.Scale[i] = [4]byte{byte(r.Uint32()), byte(r.Uint32()), 0x80, 0x3c}[i%4]
		}
	}
	values := make([]byte, len(base))
	if err := quant.Dequantize(t.Context(), values, s.dt, &scheme, d, 0); err != nil {
		t.Fatal(err)
	}
	for i := range target {
		target[i] += values[i] - base[i]
	}
	p := encode(t, s, values, target)
	p.name += fmt.Sprintf(" on %+v", scheme)
	at := quant.Pointers{Packed: 8, Scale: 8} // kernel.cc has its own
	if scheme.Zero {
		at.Zero = 8
	}
	q, err := scheme.Descriptor(at, n)
	if err != nil {
		t.Fatal(err)
	}
	p.quant = bytes.Join([][]byte{q[:], pad(d.Packed), pad(d.Scale), pad(d.Zero)}, nil)
	return p
}

// TestKernelDamaged damages a chunk of several under a checksum that is right: what
// Go refuses is refused, what it decodes comes out the same, the other chunk is
// always right and nothing else is touched.
func TestKernelDamaged(t *testing.T) {
	for flag, types := range bits {
		t.Run(flag, func(t *testing.T) {
			t.Parallel()
			dt := types[0]
			k := &requests{t: t, rng: rand.New(rand.NewPCG(9, uint64(len(flag))))}
			r := k.rng
			tile := tileBytes / dt.WordBytes()
			for _, s := range []shape{{dt, 0, 300, 150, 0.1}, {dt, 0, 4*tile + 8, uint64(3*tile + 3), 0.03}, {dt, 0, 4 * tile, uint64(3 * tile), 0.1}, {dt, 0, 300, 200, 1}} {
				p := pack(t, r, s)
				deltas := int(p.x.Records[0].Deltas)
				var all []*packed
				for round := range 48 {
					d := p.damage(t, 0, func(part []byte) {
						number := r.IntN(deltas)
						dense := deltas == int(p.x.ChunkWords)
						put := func(i int, v uint32) {
							if !dense {
								binary.LittleEndian.PutUint32(part[4*i:], v)
							}
						}
						get := func(i int) uint32 {
							if dense {
								return 0
							}
							return binary.LittleEndian.Uint32(part[4*i:])
						}
						switch round % 8 {
						case 0: // noise
							for i := range part {
								part[i] = byte(r.Uint32())
							}
						case 1: // a number that is there already
							put(number, get(max(number-1, 0)))
						case 2: // one beyond the chunk
							put([]int{number, deltas - 1}[r.IntN(2)], uint32(p.x.ChunkWords)+r.Uint32N(2)*r.Uint32())
						case 3: // two in the wrong order
							other := r.IntN(deltas)
							a, b := get(number), get(other)
							put(number, b)
							put(other, a)
						case 4: // no residual
							if !dense {
								at := (4*deltas+7)/8*8 + number*dt.WordBytes()
								clear(part[at : at+dt.WordBytes()])
							}
						case 5: // all numbers the same, or falling
							first, step := r.Uint32N(uint32(p.x.ChunkWords)), r.Uint32N(2)
							for i := range deltas {
								put(i, first-step*uint32(i))
							}
						default:
							part[r.IntN(len(part))] ^= 1 << r.IntN(8)
						}
					})
					d.name = fmt.Sprintf("round %d of %s", round, d.name)
					d.inPlace = round/8%2 == 0
					d.dstOff = round % 3 / 2
					all = append(all, d)
				}
				// Records that do not fit their chunk, though containers do not hold them.
				for _, f := range []func(*container.Record){
					func(c *container.Record) { c.Deltas += 3 }, func(c *container.Record) { c.Deltas = uint32(p.x.ChunkWords) + 1 },
					func(c *container.Record) { c.CompressedBytes -= 8 }, func(c *container.Record) { c.CompressedBytes, c.Deltas = 0, 1<<31 },
				} {
					d := p.with(func(c *packed) {
						x := *p.x
						x.Records = append([]container.Record(nil), p.x.Records...)
						f(&x.Records[0])
						c.x, c.damaged, c.refuse = &x, 0, true
					})
					all = append(all, d)
				}
				k.launch(all...)
			}
			k.run("-DWORD=" + flag)
		})
	}
}
