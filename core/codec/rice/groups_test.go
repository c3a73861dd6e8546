package rice

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// anyTables returns tables with classes in any order: one for every key of
// classes, repeated.
func anyTables(dt dtype.Type, order []byte) *tables {
	t := newTables(dt)
	shift, _ := dt.Exponent()
	t.shift = max(uint(shift), t.leastShift())
	gaps := 0
	t.contexts = []context{{}}
	for i := range 1 << t.keyBits() {
		class := order[i%len(order)] % classes
		if class == dense {
			t.hasDense = true
		} else {
			gaps = max(gaps, int(class)+1)
		}
		if i == 0 {
			t.contexts[0].class = class
		} else {
			t.contexts = append(t.contexts, context{first: uint16(i), class: class})
		}
	}
	t.gaps = make([]gapClass, gaps)
	return &t
}

// differ compares the ways to scan and to locate with each other and with a
// word by word search, for words of which those with a residual are events.
func differ[T word.Word](t *testing.T, tab *tables, base, res []T) {
	t.Helper()
	k := newClassifier(tab)
	byClass := func(scan func(*classifier, []T, []T, uint32, *[classes]uint32, []found) int) (lists [classes][]found, passed [classes]uint32) {
		out := make([]found, len(res))
		for _, f := range out[:scan(k, base, res, 5, &passed, out)] {
			c := classOf(k.steps[key(k, base[f.at-5])])
			lists[c] = append(lists[c], f)
		}
		passed[dense] = 0 // nobody asks
		for i := range lists[dense] {
			lists[dense][i].rank = 0
		}
		return lists, passed
	}
	fast, passedFast := byClass(scan[T])
	plain, passedPlain := byClass(scanWordwise[T])
	var want [classes][]found
	var passed [classes]uint32
	for i, w := range base {
		c := classOf(k.steps[key(k, w)])
		switch {
		case c == dense:
			want[c] = append(want[c], found{uint32(i + 5), 0})
			continue
		case res[i] != 0:
			want[c] = append(want[c], found{uint32(i + 5), passed[c]})
		}
		passed[c]++
	}
	if passedFast != passed || passedPlain != passed {
		t.Fatalf("words of each class: %v and %v, expected %v", passedFast, passedPlain, passed)
	}
	var h head
	for c := range want {
		if !slices.Equal(fast[c], want[c]) || !slices.Equal(plain[c], want[c]) {
			t.Fatalf("class %d: %d and %d events, expected %d, or others", c, len(fast[c]), len(plain[c]), len(want[c]))
		}
		h.events[c] = len(want[c])
	}

	at := slotsOf(&h)
	ranks := func() []uint32 {
		out := make([]uint32, at.size)
		for c, list := range want {
			for i, f := range list {
				out[at.start[c]+i] = f.rank
			}
			out[at.end[c]] = never
		}
		return out
	}
	inGo := func(ranks []uint32) bool {
		p := progress{next: at.start}
		return locateFrom(k, base, 0, &at, ranks, &p) && p.next == at.end
	}
	for name, locate := range map[string]func([]uint32) bool{
		"fast":  func(ranks []uint32) bool { return locate(k, base, &at, ranks) },
		"plain": inGo,
	} {
		got := ranks()
		if !locate(got) {
			t.Fatalf("%s: events were not found", name)
		}
		for c, list := range want {
			for i, f := range list {
				if got[at.start[c]+i] != f.at-5 {
					t.Fatalf("%s: event %d of class %d is at %d, expected %d", name, i, c, got[at.start[c]+i], f.at-5)
				}
			}
		}
		// An event behind the last word of its class, or a dense word too many.
		for c, list := range want {
			if n := len(list); n > 0 {
				wrong := ranks()
				if c == dense {
					saved := at
					at.end[c]--
					if locate(wrong) {
						t.Fatalf("%s: dense words without a slot", name)
					}
					at = saved
					continue
				}
				wrong[at.start[c]+n-1] = passed[c]
				if locate(wrong) {
					t.Fatalf("%s: class %d has an event behind its last word", name, c)
				}
			}
		}
	}
}

// fill makes words of which about one in gap has a residual.
func fill[T word.Word](seed uint64, n, gap int) (base, res []T) {
	rng := rand.New(rand.NewPCG(seed, 1))
	base, res = make([]T, n), make([]T, n)
	for i := range base {
		base[i] = T(rng.Uint64())
		if rng.IntN(gap) == 0 {
			res[i] = T(rng.Uint64()) | 1
		}
	}
	return base, res
}

var orders = [][]byte{{0}, {7}, {0, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {6, 6, 6, 5, 4, 4, 3, 2, 1, 0, 0}, {2, 0, 1, 1, 1, 1, 1, 1}}

func TestGroupsAgree(t *testing.T) {
	for _, order := range orders {
		for _, n := range []int{0, 1, 63, 64, 65, 127, 128, 1000, 4096, 5000} {
			for _, gap := range []int{1, 3, 50, 1000} {
				b16, r16 := fill[uint16](uint64(n), n, gap)
				differ(t, anyTables(dtype.BF16, order), b16, r16)
				differ(t, anyTables(dtype.F16, order), b16, r16)
				b32, r32 := fill[uint32](uint64(n), n, gap)
				differ(t, anyTables(dtype.F32, order), b32, r32)
				b8, r8 := fill[uint8](uint64(n), n, gap)
				differ(t, anyTables(dtype.F8E4M3, order), b8, r8)
				b64, r64 := fill[uint64](uint64(n), n, gap)
				differ(t, anyTables(dtype.F64, order), b64, r64)
			}
		}
	}
}

// FuzzGroups compares assembly and plain Go on arbitrary words and classes.
func FuzzGroups(f *testing.F) {
	for _, order := range orders {
		f.Add(order, make([]byte, 300), []byte{1, 0, 0, 0, 9})
	}
	f.Fuzz(func(t *testing.T, order, baseBytes, resBytes []byte) {
		if len(order) == 0 || len(baseBytes) > 1<<14 {
			return
		}
		n := len(baseBytes) / 4
		b32, r32 := make([]uint32, n), make([]uint32, n)
		for i := range b32 {
			b32[i] = binary.LittleEndian.Uint32(baseBytes[4*i:])
			if len(resBytes) > 0 {
				r32[i] = uint32(resBytes[i%len(resBytes)]) << (i % 25)
			}
		}
		differ(t, anyTables(dtype.F32, order), b32, r32)
		b16, r16 := word.View[uint16](word.Bytes(b32)), word.View[uint16](word.Bytes(r32))
		differ(t, anyTables(dtype.BF16, order), b16, r16)
	})
}
