//go:build gpu

package gputest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/engine"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/tensor"
)

var (
	driver *cuda.Driver
	eng    *engine.Engine
)

// TestMain works in the primary context of GPU 0, as torch would.
func TestMain(m *testing.M) {
	dl.SetSearch(filepath.SplitList(os.Getenv("TPDE_SITE_PACKAGES")))
	os.Exit(run(m))
}

func run(m *testing.M) int {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, err); return 1 }
	var err error
	if driver, err = cuda.Open(); err != nil {
		return fail(err)
	}
	if eng, err = engine.Open(); err != nil {
		return fail(err)
	}
	return m.Run()
}

// onGPU runs f with the primary context of GPU 0 current.
func onGPU(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v, err := driver.Device(0)
	must(t, err)
	c, err := driver.Primary(v)
	must(t, err)
	must(t, driver.With(c, func() error { f(); return nil }))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// guard surrounds every buffer, to show writes outside of it.
const guard = 256

// buffer is device memory with a guard in front and behind. It is allocated
// exactly, so that compute-sanitizer sees what goes further.
type buffer struct {
	start, p uintptr
	n        int
}

func upload(t testing.TB, data []byte) *buffer {
	t.Helper()
	all := bytes.Repeat([]byte{0xa5}, guard+len(data)+guard)
	copy(all[guard:], data)
	start, err := driver.Alloc(len(all))
	must(t, err)
	b := &buffer{start, start + guard, len(data)}
	must(t, driver.Upload(b.start, all))
	t.Cleanup(func() { onGPU(t, func() { driver.Free(b.start) }) })
	return b
}

// download returns the contents and checks the guards.
func (b *buffer) download(t testing.TB, what string) []byte {
	t.Helper()
	all := make([]byte, guard+b.n+guard)
	must(t, driver.Download(all, b.start))
	for i, x := range all {
		if x != 0xa5 && (i < guard || i >= guard+b.n) {
			t.Fatalf("%s: byte %d was written, outside of %d bytes", what, i-guard, b.n)
		}
	}
	return all[guard : guard+b.n]
}

// sample is a packed tensor on the host.
type sample struct {
	name                      string
	base, target, index, blob []byte
	prepared                  *engine.Prepared
}

type options struct {
	id         codec.ID
	dt         dtype.Type
	kind       residual.Kind
	words      int
	chunkWords uint64
	base       bool
	density    float64 // part of the words that changed
	level      codec.Level
}

// pack makes a tensor of floats of normal size and changes some of its words,
// most by one, some entirely.
func pack(t testing.TB, o options) *sample {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(o.words), uint64(o.dt)))
	size := o.dt.WordBytes()
	shift, width := o.dt.Exponent()
	words := make([]byte, o.words*size)
	changed := make([]byte, len(words))
	for i := range o.words {
		w := r.Uint64()
		if width > 0 { // exponents around 1
			w &^= (1<<width - 1) << shift
			w |= uint64(1<<(width-1)-1-min(r.IntN(20), 1<<(width-1)-2)) << shift
		}
		v := w
		if r.Float64() < o.density {
			switch r.IntN(16) {
			case 0:
				v = r.Uint64()
			case 1:
				v = w - 1
			default:
				v = w + 1
			}
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], w)
		copy(words[i*size:], b[:size])
		binary.LittleEndian.PutUint64(b[:], v)
		copy(changed[i*size:], b[:size])
	}
	s := &sample{name: fmt.Sprintf("%+v", o), target: changed}
	if o.base {
		s.base = words
	}
	s.encode(t, o.dt, tensor.Options{Codec: o.id, Residual: o.kind, ChunkWords: o.chunkWords, Level: o.level})
	return s
}

// encode packs the target.
func (s *sample) encode(t testing.TB, dt dtype.Type, o tensor.Options) {
	t.Helper()
	var out bytes.Buffer
	var err error
	d := tensor.Desc{Type: dt, Shape: []uint64{uint64(8 * len(s.target) / dt.Bits())}}
	s.index, err = tensor.Encode(context.Background(), &out, d, s.base, s.target, o)
	must(t, err)
	s.blob = out.Bytes()
	s.prepared, err = engine.Prepare(s.index)
	must(t, err)
}

// onCPU rebuilds the target on the CPU.
func (s *sample) onCPU(t testing.TB) ([]byte, error) {
	t.Helper()
	reader, err := tensor.Open(s.index, s.blob)
	must(t, err)
	words := make([]byte, len(s.target))
	err = reader.Reconstruct(context.Background(), words, s.base, tensor.ReconstructOptions{SkipTargetDigest: true})
	return words, err
}

// placed is a sample on the GPU.
type placed struct {
	*sample
	base, dst, blob, image, status *buffer // base is nil without one
}

func place(t testing.TB, s *sample) *placed {
	t.Helper()
	return placeBlob(t, s, s.blob)
}

func placeBlob(t testing.TB, s *sample, blob []byte) *placed {
	t.Helper()
	p := &placed{sample: s}
	if s.base != nil {
		p.base = upload(t, s.base)
	}
	p.dst = upload(t, bytes.Repeat([]byte{0x5a}, len(s.target)))
	p.blob = upload(t, blob)
	p.image = upload(t, s.prepared.Image())
	p.status = upload(t, bytes.Repeat([]byte{0xff}, 4*len(s.prepared.Index().Records)))
	return p
}

func (p *placed) job() engine.Job {
	j := engine.Job{P: p.prepared, Dst: p.dst.p, Blob: p.blob.p, Image: p.image.p, Status: p.status.p}
	if p.base != nil {
		j.Base = p.base.p
	}
	return j
}

// statuses returns the status words.
func (p *placed) statuses(t testing.TB) []uint32 {
	t.Helper()
	data := p.status.download(t, p.name+": status")
	out := make([]uint32, len(data)/4)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(data[4*i:])
	}
	return out
}

// check compares the result with the target, bit for bit.
func (p *placed) check(t testing.TB, dst *buffer) {
	t.Helper()
	for i, s := range p.statuses(t) {
		if s != 0 {
			t.Fatalf("%s: chunk %d has status %d", p.name, i, s)
		}
	}
	got := dst.download(t, p.name+": dst")
	for i := range got {
		if got[i] != p.target[i] {
			t.Fatalf("%s: byte %d of %d is %#x, expected %#x", p.name, i, len(got), got[i], p.target[i])
		}
	}
	if p.base != nil && dst != p.base && !bytes.Equal(p.base.download(t, p.name+": base"), p.sample.base) {
		t.Fatalf("%s: the base was changed", p.name)
	}
}
