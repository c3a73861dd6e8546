package residual

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

var allTypes = func() (ts []dtype.Type) {
	for t := dtype.Bool; t.Valid(); t++ {
		ts = append(ts, t)
	}
	return ts
}()

// randomPair makes a base and a target of n words: unchanged, near and
// arbitrary words mixed.
func randomPair(rng *rand.Rand, n, wordBytes int) (base, target []byte) {
	base = word.Bytes(make([]uint64, (n*wordBytes+7)/8))[:n*wordBytes]
	target = word.Bytes(make([]uint64, (n*wordBytes+7)/8))[:n*wordBytes]
	for i := range base {
		base[i] = byte(rng.Uint32())
	}
	copy(target, base)
	for i := 0; i < n; i++ {
		switch rng.IntN(3) {
		case 0:
			target[i*wordBytes] += byte(rng.IntN(5)) - 2
		case 1:
			for k := range wordBytes {
				target[i*wordBytes+k] = byte(rng.Uint32())
			}
		}
	}
	return base, target
}

// TestVectorsDoAsPlainGo holds the assembly to subWords, at every alignment.
func TestVectorsDoAsPlainGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	a, b := randomPair(rng, 500, 1)
	for _, w := range []int{1, 2, 4, 8} {
		for _, n := range []int{0, 8, 56, 64, 72, 128, 256} {
			for off := range 70 {
				want, got := make([]byte, n), make([]byte, n+1)
				subWords(want, a[off:off+n], b[2*off:2*off+n], topBits(w))
				done := subVectors(got[1:], a[off:off+n], b[2*off:2*off+n], w)
				if !bytes.Equal(got[1:1+done], want[:done]) || !bytes.Equal(got[1+done:], make([]byte, n-done)) {
					t.Fatalf("words of %d bytes: %d of %d bytes from byte %d on differ", w, done, n, off)
				}
			}
		}
	}
}

func le(b []byte) (v uint64) {
	for i, x := range b {
		v |= uint64(x) << (8 * i)
	}
	return v
}

var sizes = []int{0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 1000}

func TestBitIsModularDifferenceAndInverts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, typ := range allTypes {
		w := typ.WordBytes()
		for _, n := range sizes {
			base, target := randomPair(rng, n, w)
			res := make([]byte, n*w)
			if e := Compute(Bit, typ, res, base, target, nil); e != nil {
				t.Fatalf("%v: the bit residual has exceptions %v", typ, e)
			}
			mask := ^uint64(0) >> (64 - 8*w)
			for i := range n {
				at := slices.Clone(res[i*w : (i+1)*w])
				if want := (le(target[i*w:(i+1)*w]) - le(base[i*w:(i+1)*w])) & mask; le(at) != want {
					t.Fatalf("%v word %d of %d: residual %x, expected %x", typ, i, n, le(at), want)
				}
			}
			dst := make([]byte, n*w)
			Apply(Bit, typ, dst, base, res)
			if !bytes.Equal(dst, target) {
				t.Fatalf("%v, %d words: target not rebuilt", typ, n)
			}
			inBase, inRes := slices.Clone(base), slices.Clone(res)
			Apply(Bit, typ, inBase, inBase, res)
			Apply(Bit, typ, inRes, base, inRes)
			if !bytes.Equal(inBase, target) || !bytes.Equal(inRes, target) {
				t.Fatalf("%v, %d words: in place differs from out of place", typ, n)
			}
		}
	}
}

func TestChangedFindsEveryNonzeroWord(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 1))
	for _, w := range []int{1, 2, 4, 8} {
		for _, n := range sizes {
			res := make([]byte, n*w)
			var want []uint32
			for i := range n {
				if rng.IntN(3) > 0 {
					// One byte anywhere in the word, at either end of its range.
					res[i*w+rng.IntN(w)] = []byte{1, 0x80, 0xFF}[rng.IntN(3)]
					want = append(want, uint32(i))
				}
			}
			if got := AppendChanged(nil, res, w); !slices.Equal(got, want) {
				t.Fatalf("%d words of %d bytes: changed %v, expected %v", n, w, got, want)
			}
			if got := CountChanged(res, w); got != len(want) {
				t.Fatalf("%d words of %d bytes: %d changed, expected %d", n, w, got, len(want))
			}
		}
	}
}

func TestKindNames(t *testing.T) {
	if got := fmt.Sprint(Bit, Add, Kind(9)); got != "bit add unknown" {
		t.Fatalf("kinds are called %q", got)
	}
}

func benchmark(b *testing.B, kind Kind, typ dtype.Type) {
	const size = 128 << 10
	n := size / typ.WordBytes()
	base, target := randomPair(rand.New(rand.NewPCG(3, 1)), n, typ.WordBytes())
	res, dst := make([]byte, size), make([]byte, size)
	b.Run(fmt.Sprintf("Compute/%v/%v", kind, typ), func(b *testing.B) {
		b.SetBytes(size)
		var e []uint32
		for b.Loop() {
			e = Compute(kind, typ, res, base, target, e[:0])
		}
	})
	b.Run(fmt.Sprintf("Apply/%v/%v", kind, typ), func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			Apply(kind, typ, dst, base, res)
		}
	})
}

func BenchmarkResidual(b *testing.B) {
	benchmark(b, Bit, dtype.F8E4M3)
	benchmark(b, Bit, dtype.BF16)
	benchmark(b, Bit, dtype.F32)
	benchmark(b, Add, dtype.BF16)
	benchmark(b, Add, dtype.F32)
	benchmark(b, Add, dtype.F8E4M3)
}
