package engine

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/device/nvcomp"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// gpu0 and gpu1 are where the memory of the fake GPUs begins.
const (
	gpu0 = uintptr(1) << 40
	gpu1 = uintptr(2) << 40
)

// openFake returns an engine on the fake driver, and a function that returns
// what was called since the last time.
func openFake(t *testing.T) (*Engine, func() []string) {
	t.Helper()
	compiler := openCompiler(t)
	source, err := os.ReadFile("testdata/fakecuda.c")
	if err != nil {
		t.Fatal(err)
	}
	// Not under the name of the real driver: NVRTC would find it and use it.
	path, log := filepath.Join(t.TempDir(), "fake.so"), filepath.Join(t.TempDir(), "log")
	dltest.Build(t, path, string(source), "-DLOG=\""+log+"\"")
	driver, err := cuda.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if source, err = os.ReadFile("testdata/fakenvcomp.c"); err != nil {
		t.Fatal(err)
	}
	frames := filepath.Join(t.TempDir(), "fakenvcomp.so")
	dltest.Build(t, frames, string(source), "-DLOG=\""+log+"\"")
	t.Setenv("TPDE_CACHE", t.TempDir())
	e := &Engine{driver: driver, compiler: compiler}
	e.zstd.open = func() (*nvcomp.Library, error) { return nvcomp.OpenFile(frames) }
	return e, func() []string {
		data, _ := os.ReadFile(log)
		os.Truncate(log, 0)
		return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' })
	}
}

func TestRun(t *testing.T) {
	e, calls := openFake(t)
	a := prepare(t, codec.Elias, dtype.BF16, residual.Bit, 5500)
	b := prepare(t, codec.Raw, dtype.F32, residual.Add, 2500)
	jobs := []Job{job(a, gpu0), job(b, gpu0+1<<30), job(a, gpu0+2<<30)}
	const stream = 0xabc
	expect := func(what string, loads int, launches ...string) {
		t.Helper()
		got := calls()
		if len(got) != loads+len(launches) {
			t.Fatalf("%s: %d calls, expected %d loads and %v:\n%.200q", what, len(got), loads, launches, got)
		}
		i := 0
		for _, line := range got {
			if strings.HasPrefix(line, "load context c0") && loads > 0 {
				loads--
				continue
			}
			if !strings.HasPrefix(line, launches[i]) {
				t.Errorf("%s: %.200s, expected %s", what, line, launches[i])
			}
			i++
		}
	}
	launch := func(k kernelID, blocks int) string {
		return fmt.Sprintf("launch %s context c0 grid %d 1 1 block %d 1 1 shared 0 stream %x early 1 arguments ", k.name(), blocks, k.launch().threads, stream)
	}
	elias := launch(a.kernel, 2*int(a.kernel.blocks(uint64(a.chunks()), 0)))
	raw := launch(b.kernel, 3)             // chunks of a tile
	for i, loads := range []int{2, 0, 0} { // compiled and loaded at the first call alone
		if err := e.Reconstruct(jobs, 0, 0, stream); err != nil {
			t.Fatal(err)
		}
		expect(fmt.Sprintf("call %d", i), loads, elias+"02000000", raw+"01000000")
	}
	check := newKernelID(crc32cCheck, 0)
	blocks := 0
	for _, j := range jobs {
		blocks += int(check.blocks(uint64(j.P.chunks()), 0))
	}
	if err := e.Verify(jobs, stream); err != nil {
		t.Fatal(err)
	}
	expect("verify", 1, launch(check, blocks)+"03000000")

	if err := e.Reconstruct(nil, 0, 0, stream); err != nil {
		t.Error(err)
	}
	expect("nothing", 0)
}

func TestDeviceOfPointer(t *testing.T) {
	e, calls := openFake(t)
	p := prepare(t, codec.Raw, dtype.BF16, residual.Bit, 100)
	for _, at := range []uintptr{gpu1, gpu0, gpu1} {
		if err := e.Reconstruct([]Job{job(p, at)}, 0, 0, 0); err != nil {
			// GPU 1 has a compute capability that no NVRTC knows, so it gets
			// PTX, which the fake driver does not load.
			if at == gpu1 && errors.Is(err, status.ErrUnsupported) && strings.Contains(err.Error(), "compute_90") && strings.Contains(err.Error(), "CUDA 13.2") {
				continue
			}
			t.Fatal(err)
		}
		if got := calls(); len(got) != 2 || !strings.Contains(got[1], "context c0") {
			t.Errorf("%#x: %.200q", at, got)
		}
	}
	err := e.Reconstruct([]Job{job(p, 1<<24)}, 0, 0, 0)
	if !errors.Is(err, status.ErrArgument) || !strings.Contains(err.Error(), "CUDA_ERROR_INVALID_VALUE") {
		t.Errorf("host memory: %v", err)
	}
}

func TestScatterLaunch(t *testing.T) {
	e, calls := openFake(t)
	s := Scatter{Type: dtype.F32, Dst: gpu0, Base: gpu0 + 1<<30, Elements: 8193, Indices: gpu0 + 2<<30, Values: gpu0 + 3<<30, Deltas: 257, Bad: gpu0 + 4<<30}
	arguments := func(values ...uint64) string {
		var b []byte
		for _, v := range values {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return hex.EncodeToString(b)
	}
	if err := e.ScatterAdd(&s, 7); err != nil {
		t.Fatal(err)
	}
	prefix := func(entry int, n uint64) string {
		k := newKernelID(entry, 2)
		return fmt.Sprintf("launch %s context c0 grid %d 1 1 block %d 1 1 shared 0 stream 7 early 1 arguments ", k.name(), k.blocks(n, 4), k.launch().threads)
	}
	got := calls()
	want := prefix(scatterAdd, 8193) +
		arguments(uint64(s.Dst), uint64(s.Base), 8193, uint64(s.Indices), uint64(s.Values), 257, uint64(s.Bad))
	if len(got) != 2 || got[1] != want {
		t.Errorf("got %q, expected %q", got, want)
	}
	s.Base = s.Dst
	if err := e.ScatterAdd(&s, 7); err != nil {
		t.Fatal(err)
	}
	want = prefix(scatterAddInPlace, 257) +
		arguments(uint64(s.Dst), 8193, uint64(s.Indices), uint64(s.Values), 257, uint64(s.Bad))
	if got := calls(); len(got) != 1 || got[0] != want { // the same module
		t.Errorf("got %q, expected %q", got, want)
	}
	s.Naive = true
	if err := e.ScatterAdd(&s, 7); err != nil || !strings.HasPrefix(strings.Join(calls(), ""), prefix(scatterAddNaive, 257)) {
		t.Errorf("naive: %v, or another launch", err)
	}
	s.Deltas = 0
	if err := e.ScatterAdd(&s, 7); err != nil || len(calls()) != 0 {
		t.Errorf("in place without deltas: %v, or a launch", err)
	}
}

// Drivers before CUDA 12.3 launch a kernel once what is before it has ended.
func TestEarlyLaunch(t *testing.T) {
	for version, want := range map[int]string{12020: " early 0 ", 12030: " early 1 "} {
		e, calls := openFake(t)
		e.driver.Version = version
		p := prepare(t, codec.Raw, dtype.U8, residual.Bit, 100)
		if err := e.Reconstruct([]Job{job(p, gpu0)}, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(calls(), "\n"); strings.Count(got, "launch ") != 1 || !strings.Contains(got, want) {
			t.Errorf("CUDA %d: %s, expected%s", version, got, want)
		}
	}
}

// Many goroutines that need the same kernels at once load each once.
func TestConcurrentLoad(t *testing.T) {
	e, calls := openFake(t)
	p := prepare(t, codec.Raw, dtype.U8, residual.Bit, 100)
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for range 20 {
				if err := e.Reconstruct([]Job{job(p, gpu0)}, 0, 0, 0); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if got := calls(); len(got) != 321 || !strings.HasPrefix(got[0], "load") {
		t.Errorf("%d calls: %.100q", len(got), got)
	}
}
