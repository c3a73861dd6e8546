package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/zstd"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/device/nvcomp"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

func TestPlaces(t *testing.T) {
	p := prepare(t, codec.Zstd, dtype.F32, residual.Add, 3100) // 4 chunks, the last of which has narrow gaps
	records := p.index.Records
	image := p.Image()
	if len(records) != 4 || len(p.places) != 5 || p.tableBytes != 512 || len(image) != 512+4*container.RecordBytes {
		t.Fatalf("%d chunks, %d places, an image of %d bytes", len(records), len(p.places), len(image))
	}
	le := binary.LittleEndian
	var buffer uint64
	var slot, largest uint32
	for i, r := range records {
		planes := uint32(zstd.Planes(int(r.UncompressedBytes)/4, int(r.Deltas), 4))
		at := image[i*placeBytes:]
		if le.Uint64(at) != buffer || le.Uint32(at[8:]) != slot || le.Uint32(at[12:]) != planes {
			t.Errorf("chunk %d: place %x, expected buffer %d, slot %d, %d planes", i, at[:placeBytes], buffer, slot, planes)
		}
		buffer += uint64(planes) * uint64((r.Deltas+15)/16*16)
		slot += planes
		largest = max(largest, r.Deltas)
	}
	if p.places[4] != (place{buffer, uint64(slot)}) || p.largest != uint64(largest) {
		t.Errorf("all take %+v with planes of %d, expected %d, %d and %d", p.places[4], p.largest, buffer, slot, largest)
	}
	if first, last := p.places[1].slot, slot-uint32(p.places[3].slot); first != 6 || last != 5 {
		t.Errorf("%d and %d planes, expected 6 and 5", first, last)
	}
}

// TestWaves: every chunk is in one wave, in order, none too large but those of
// one chunk, and what is before a run is what the runs before it take.
func TestWaves(t *testing.T) {
	a := prepare(t, codec.Zstd, dtype.BF16, residual.Bit, 20_500)
	b := prepare(t, codec.Zstd, dtype.F64, residual.Bit, 2500)
	raw := prepare(t, codec.Raw, dtype.BF16, residual.Bit, 2500)
	none := prepare(t, codec.Zstd, dtype.BF16, residual.Bit, 0)
	jobs := []Job{job(a, 1<<24), job(raw, 2<<24), job(b, 3<<24), job(none, 0), job(a, 4<<24)}
	all := cost(place{}, a.places[len(a.places)-1])
	for _, limit := range []uint64{0, 1, all / 20, all / 3, all - 1, all, all + 1, 1 << 40} {
		var got, want []string
		for _, j := range []*Job{&jobs[0], &jobs[2], &jobs[4]} {
			for c := range j.P.chunks() {
				want = append(want, fmt.Sprint(j.Dst, c))
			}
		}
		count := 0
		err := waves(jobs, limit, func(w *wave) error {
			count++
			var sum place
			chunks := 0
			for _, r := range w.runs {
				if r.before != sum {
					t.Errorf("limit %d: a run is behind %+v, expected %+v", limit, r.before, sum)
				}
				for c := r.first; c < r.end; c++ {
					got = append(got, fmt.Sprint(r.job.Dst, c))
				}
				chunks += r.end - r.first
				sum.buffer += r.job.P.places[r.end].buffer - r.job.P.places[r.first].buffer
				sum.slot += r.job.P.places[r.end].slot - r.job.P.places[r.first].slot
				if w.largest < r.job.P.largest {
					t.Errorf("limit %d: largest plane %d, expected %d", limit, w.largest, r.job.P.largest)
				}
			}
			if sum != (place{w.bytes, w.slots}) || chunks > 1 && cost(place{}, sum) > limit {
				t.Errorf("limit %d: a wave of %d chunks takes %+v, expected %d and %d", limit, chunks, sum, w.bytes, w.slots)
			}
			return nil
		})
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("limit %d: %v, chunks %v, expected %v", limit, err, got, want)
		}
		if limit == 1<<40 && count != 1 || limit == 0 && count != len(want) {
			t.Errorf("limit %d: %d waves", limit, count)
		}
	}
}

// TestRunItem: a run in the midst of a tensor is described by its first chunk.
func TestRunItem(t *testing.T) {
	p := prepare(t, codec.Zstd, dtype.BF16, residual.Bit, 5500)
	j := job(p, 1<<24)
	r := run{&j, 2, 5, place{640, 7}}
	it := r.item(9, 1<<30)
	if it.records != j.Image+512+2*32 || it.tables != j.Image+2*16 || it.status != j.Status+8 || it.chunks != 3 || it.firstBlock != 9 || it.checked != 1 {
		t.Errorf("item %+v", it)
	}
	if got := uint64(it.buffers) + p.places[2].buffer; got != 1<<30+640 {
		t.Errorf("buffers of the first chunk at %#x", got)
	}
	if got := it.slots + uint32(p.places[2].slot); got != 7 {
		t.Errorf("first slot %d", got)
	}
	j.Verified = true
	if it := r.item(0, 0); it.checked != 0 {
		t.Error("a verified blob is checked")
	}
}

// names are the calls, without the bytes of their arguments, and loads left out.
func names(calls []string) (out []string) {
	for _, c := range calls {
		if f := strings.Fields(c); f[0] == "launch" {
			out = append(out, f[1])
		} else if f[0] != "load" {
			out = append(out, f[0])
		}
	}
	return out
}

func TestZstdRun(t *testing.T) {
	e, calls := openFake(t)
	a := prepare(t, codec.Zstd, dtype.BF16, residual.Bit, 5500)
	b := prepare(t, codec.Zstd, dtype.F32, residual.Add, 2500)
	raw := prepare(t, codec.Raw, dtype.F32, residual.Bit, 2500)
	jobs := []Job{job(a, gpu0), job(raw, gpu0+1<<30), job(b, gpu0+2<<30), job(a, gpu0+3<<30)}
	const scratch, stream = gpu0 + 4<<30, 0xabc

	n, err := e.ScratchBytes(jobs)
	if err != nil {
		t.Fatal(err)
	}
	slots := 2*a.places[6].slot + b.places[3].slot
	bytes := 2*a.places[6].buffer + b.places[3].buffer
	layout := alignUp(alignUp(60*slots, 256)+bytes, 256)
	if want := layout + 3*bytes + 7000*slots + 1; n != want {
		t.Errorf("%d bytes of scratch, expected %d", n, want)
	}
	asked := fmt.Sprintf("temp of %d slots, %d largest, %d bytes stream 0", slots, max(a.largest, b.largest), bytes)
	if got := calls(); len(got) != 1 || got[0] != asked {
		t.Errorf("calls %q, expected %q", got, asked)
	}
	decompress := fmt.Sprintf("decompress %d slots, scratch %x to %x stream %x", slots, scratch, scratch+uintptr(n), stream)
	steps := []string{"crc32c_check", "zstd_gather", "zstd_gather", "decompress", "zstd_join", "zstd_join", "raw_decode"}
	for range 2 {
		if err := e.Reconstruct(jobs, scratch, n, stream); err != nil {
			t.Fatal(err)
		}
		got := calls()
		if !slices.Equal(names(got), steps) || !slices.Contains(got, decompress) {
			t.Errorf("calls %.300q, expected %v and %q", got, steps, decompress)
		}
	}
	for i := range jobs {
		jobs[i].Verified = true
	}
	if err := e.Reconstruct(jobs, scratch, n, stream); err != nil {
		t.Fatal(err)
	}
	if got := names(calls()); !slices.Equal(got, steps[1:]) {
		t.Errorf("verified: calls %v, expected %v", got, steps[1:])
	}

	for what, call := range map[string]func() error{
		"too little": func() error { return e.Reconstruct(jobs, scratch, n-1, stream) },
		"none":       func() error { return e.Reconstruct(jobs, 0, n, stream) },
		"misaligned": func() error { return e.Reconstruct(jobs, scratch+8, n, stream) },
	} {
		if err := call(); !errors.Is(err, status.ErrArgument) || len(calls()) != 0 {
			t.Errorf("scratch %s: %v, or something was launched", what, err)
		}
	}
	e.zstd.open = func() (*nvcomp.Library, error) { return nil, status.ErrUnsupported }
	if err := e.Reconstruct(jobs, scratch, n, stream); err != status.ErrUnsupported || len(calls()) != 0 {
		t.Errorf("without nvCOMP: %v, or something was launched", err)
	}
	if n, err := e.ScratchBytes(jobs[1:2]); n != 0 || err != nil {
		t.Errorf("raw alone takes %d bytes of scratch: %v", n, err)
	}
}

// Tensors in which nothing changed need neither nvCOMP nor scratch memory.
func TestZstdUnchanged(t *testing.T) {
	e, calls := openFake(t)
	p := prepare(t, codec.Zstd, dtype.BF16, residual.Bit, 2500)
	x := *p.index
	x.Records = slices.Clone(x.Records)
	for i := range x.Records {
		x.Records[i].Deltas, x.Records[i].CompressedBytes, x.Records[i].DataOffset = 0, 0, 0
	}
	x.BlobBytes = 0
	p, err := Prepare(x.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	jobs := []Job{job(p, gpu0)}
	if n, err := e.ScratchBytes(jobs); n != 0 || err != nil {
		t.Errorf("%d bytes of scratch, %v", n, err)
	}
	if err := e.Reconstruct(jobs, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	if got := names(calls()); !slices.Equal(got, []string{"crc32c_check", "zstd_join"}) {
		t.Errorf("calls %v", got)
	}
}

// TestScratchBound asks the real nvCOMP: however the cost of a wave is split
// between slots and buffers, scratch memory stays below what the documentation
// says.
func TestScratchBound(t *testing.T) {
	dl.SetSearch(dltest.SitePackages(t))
	lib, err := nvcomp.Open()
	if err != nil {
		t.Skip(err)
	}
	var z zstdState
	for slots := uint64(1); slots*slotBytes < waveCost; slots *= 2 {
		w := wave{slots: slots, largest: 65536, bytes: waveCost - slots*slotBytes}
		n, temp, err := z.scratch(lib, &w, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n > 2300<<20 || temp < w.bytes {
			t.Errorf("%d slots and %d bytes of buffers take %d bytes of scratch, %d for nvCOMP", slots, w.bytes, n, temp)
		}
	}
}
