package engine

import (
	"errors"
	"slices"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// job places the memory of a tensor at made-up addresses.
func job(p *Prepared, at uintptr) Job {
	return Job{P: p, Base: at, Dst: at + 1<<20, Blob: at + 2<<20, Image: at + 3<<20, Status: at + 4<<20}
}

func decodeKernel(j *Job) kernelID { return j.P.kernel }

func TestGroup(t *testing.T) {
	a := prepare(t, codec.Elias, dtype.BF16, residual.Bit, 5500) // 6 chunks, 2 thread blocks
	b := prepare(t, codec.Raw, dtype.F32, residual.Bit, 2500)    // 3 chunks, 3 thread blocks
	none := prepare(t, codec.Elias, dtype.BF16, residual.Bit, 0)
	var jobs []Job
	for i := range 130 {
		jobs = append(jobs, job(a, uintptr(i+1)<<24), job(none, 0))
		if i%10 == 0 {
			jobs = append(jobs, job(b, uintptr(i+1000)<<24))
		}
	}
	blocksOf := func(p *Prepared) uint32 {
		if p == b {
			return 3
		}
		return 2
	}
	type launched struct {
		k             kernelID
		items, blocks uint32
	}
	var got []launched
	var order []uintptr
	err := group(&hopper, jobs, decodeKernel, func(k kernelID, batch *batch, blocks uint32, _ cut) error {
		got = append(got, launched{k, batch.items, blocks})
		var first uint32
		for _, it := range batch.item[:batch.items] {
			p := a
			if k == b.kernel {
				p = b
			}
			if it.firstBlock != first || it.chunks != p.chunks() {
				t.Errorf("%s: block %d and %d chunks, expected %d and %d", k.module(), it.firstBlock, it.chunks, first, p.chunks())
			}
			first += blocksOf(p)
			tables := it.records - 512
			if k == b.kernel {
				tables = 0
			}
			if it.dst != it.base+1<<20 || it.blob != it.base+2<<20 || it.status != it.base+4<<20 || it.tables != tables ||
				it.records != it.base+3<<20+uintptr(p.tableBytes) {
				t.Errorf("item %+v", it)
			}
			order = append(order, it.base)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []launched{{a.kernel, 56, 56 * blocksOf(a)}, {a.kernel, 56, 56 * blocksOf(a)}, {a.kernel, 18, 18 * blocksOf(a)}, {b.kernel, 13, 13 * blocksOf(b)}}
	if !slices.Equal(got, want) {
		t.Errorf("launches %v, expected %v", got, want)
	}
	if len(order) != 143 || !slices.IsSorted(order) {
		t.Errorf("%d tensors, in order: %v", len(order), slices.IsSorted(order))
	}
}

func TestGroupStopsAtError(t *testing.T) {
	p := prepare(t, codec.Raw, dtype.F32, residual.Bit, 10)
	calls := 0
	failed := errors.New("no")
	err := group(&hopper, slices.Repeat([]Job{job(p, 1<<24)}, 200), decodeKernel, func(kernelID, *batch, uint32, cut) error { calls++; return failed })
	if err != failed || calls != 1 {
		t.Errorf("%v after %d launches", err, calls)
	}
}

func TestGroupOfNothing(t *testing.T) {
	p := prepare(t, codec.Elias, dtype.BF16, residual.Bit, 0)
	for _, jobs := range [][]Job{nil, {job(p, 0)}} {
		if err := group(&hopper, jobs, decodeKernel, func(kernelID, *batch, uint32, cut) error { return errors.New("launched") }); err != nil {
			t.Error(err)
		}
	}
}

func TestCheck(t *testing.T) {
	with := prepare(t, codec.Elias, dtype.F32, residual.Bit, 1000)
	index, _ := pack(t, codec.Elias, dtype.F32, residual.Bit, 1000, false)
	without, err := Prepare(index)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		p    *Prepared
		edit func(*Job)
		ok   bool
	}{
		{"good", with, func(j *Job) {}, true},
		{"in place", with, func(j *Job) { j.Base = j.Dst }, true},
		{"base right behind dst", with, func(j *Job) { j.Base = j.Dst + 4000 }, true},
		{"dst right behind base", with, func(j *Job) { j.Base = j.Dst - 4000 }, true},
		{"no base", without, func(j *Job) { j.Base = 0 }, true},
		{"no tensor", nil, func(j *Job) {}, false},
		{"unwanted base", without, func(j *Job) {}, false},
		{"missing base", with, func(j *Job) { j.Base = 0 }, false},
		{"null dst", with, func(j *Job) { j.Dst = 0 }, false},
		{"null blob", with, func(j *Job) { j.Blob = 0 }, false},
		{"null image", with, func(j *Job) { j.Image = 0 }, false},
		{"null status", with, func(j *Job) { j.Status = 0 }, false},
		{"dst off word", with, func(j *Job) { j.Dst += 2 }, false},
		{"base off word", with, func(j *Job) { j.Base += 2 }, false},
		{"blob off 8", with, func(j *Job) { j.Blob += 4 }, false},
		{"image off 16", with, func(j *Job) { j.Image += 8 }, false},
		{"status off 4", with, func(j *Job) { j.Status += 2 }, false},
		{"overlap", with, func(j *Job) { j.Base = j.Dst + 4 }, false},
		{"overlap below", with, func(j *Job) { j.Base = j.Dst - 3996 }, false},
	} {
		j := job(c.p, 1<<24)
		c.edit(&j)
		err := j.check(7, true)
		if c.ok != (err == nil) || err != nil && !errors.Is(err, status.ErrArgument) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	j := Job{P: with, Blob: 64, Image: 64, Status: 64}
	if err := j.check(0, false); err != nil {
		t.Errorf("verification needs dst or base: %v", err)
	}
}

func TestScatterCheck(t *testing.T) {
	good := Scatter{Type: dtype.BF16, Dst: 1 << 20, Base: 2 << 20, Elements: 1000, Indices: 3 << 20, Values: 4 << 20, Deltas: 100, Bad: 5 << 20}
	for _, c := range []struct {
		what string
		edit func(*Scatter)
		want error
	}{
		{"good", func(s *Scatter) {}, nil},
		{"in place", func(s *Scatter) { s.Base = s.Dst }, nil},
		{"no deltas", func(s *Scatter) { s.Deltas, s.Indices, s.Values = 0, 0, 0 }, nil},
		{"empty", func(s *Scatter) { *s = Scatter{Type: dtype.F32, Bad: 4} }, nil},
		{"integers", func(s *Scatter) { s.Type = dtype.I32 }, status.ErrUnsupported},
		{"complex", func(s *Scatter) { s.Type = dtype.C64 }, status.ErrUnsupported},
		{"null dst", func(s *Scatter) { s.Dst = 0 }, status.ErrArgument},
		{"null base", func(s *Scatter) { s.Base = 0 }, status.ErrArgument},
		{"null indices", func(s *Scatter) { s.Indices = 0 }, status.ErrArgument},
		{"null bad", func(s *Scatter) { s.Bad = 0 }, status.ErrArgument},
		{"indices off 8", func(s *Scatter) { s.Indices += 4 }, status.ErrArgument},
		{"values off word", func(s *Scatter) { s.Values++ }, status.ErrArgument},
		{"naive in place", func(s *Scatter) { s.Base, s.Naive = s.Dst, true }, nil},
		{"naive out of place", func(s *Scatter) { s.Naive = true }, status.ErrArgument},
		{"overlap", func(s *Scatter) { s.Base = s.Dst + 2 }, status.ErrArgument},
		{"more deltas than elements", func(s *Scatter) { s.Deltas = 1001 }, status.ErrArgument},
	} {
		s := good
		c.edit(&s)
		if _, err := s.check(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", c.what, err, c.want)
		}
	}
}

func TestBlocks(t *testing.T) {
	tile := uint64(newKernelID(scatterAdd, 0).launch().share)
	for _, c := range []struct {
		k               kernelID
		n, word, expect uint64
	}{
		{newKernelID(scatterAddNaive, 0), 0, 4, 0}, {newKernelID(scatterAddNaive, 0), 1, 4, 1},
		{newKernelID(scatterAddNaive, 0), 256, 4, 1}, {newKernelID(scatterAddNaive, 0), 257, 8, 2},
		{newKernelID(scatterAdd, 0), tile / 2, 2, 1}, {newKernelID(scatterAdd, 0), tile/2 + 1, 2, 2}, {newKernelID(scatterAdd, 0), tile, 8, 8},
	} {
		if got := c.k.blocks(c.n, c.word); got != c.expect {
			t.Errorf("%s: %d blocks for %d of %d bytes, expected %d", c.k.name(), got, c.n, c.word, c.expect)
		}
	}
}
