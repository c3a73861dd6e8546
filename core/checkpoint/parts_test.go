package checkpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// listed is what Parts.List says.
type listed struct {
	Tensors []struct {
		Name      string
		Dtype     string
		Bytes     uint64
		SameAs    string `json:"same_as"`
		Base      *partRef
		Quantised *partsQuantised
		Layers    []partLayer
	}
}

func partsOf(t *testing.T, s *Source) (*Parts, listed) {
	t.Helper()
	p, err := s.Parts()
	if err != nil {
		t.Fatal(err)
	}
	text, err := p.List()
	if err != nil {
		t.Fatal(err)
	}
	var l listed
	if err := json.Unmarshal(text, &l); err != nil {
		t.Fatal(err)
	}
	return p, l
}

// gather reads a part in a few spans of whole pages, out of order.
func gather(t *testing.T, p *Parts, ref partRef, workers int) []byte {
	t.Helper()
	dst := make([]byte, ref.Bytes)
	var spans []Span
	for off := uint64(0); off < ref.Bytes; off += 8192 {
		spans = append(spans, Span{uint64(ref.Part), off, min(8192, ref.Bytes-off), off})
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(spans), func(i, j int) { spans[i], spans[j] = spans[j], spans[i] })
	if err := p.Gather(context.Background(), dst, spans, workers); err != nil {
		t.Fatal(err)
	}
	return dst
}

// TestParts rebuilds every tensor of a chain from its parts, as a GPU does.
func TestParts(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 4)
	for n := 1; n <= 4; n++ {
		target, err := Apply(open(t, dir+"/0"), d[:n])
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		p, list := partsOf(t, target)
		if len(list.Tensors) != len(target.tensors) {
			t.Fatalf("%d tensors, expected %d", len(list.Tensors), len(target.tensors))
		}
		made := map[string][]byte{}
		for i, row := range list.Tensors {
			var got []byte
			switch {
			case row.SameAs != "":
				got = made[row.SameAs]
			case row.Base != nil:
				got = gather(t, p, *row.Base, i%3)
			}
			for k, layer := range row.Layers {
				r, err := tensor.Open(gather(t, p, layer.Index, 1), gather(t, p, layer.Blob, 2))
				if err != nil {
					t.Fatal(err)
				}
				next := make([]byte, row.Bytes)
				if err := r.Reconstruct(context.Background(), next, got, tensor.ReconstructOptions{}); err != nil {
					t.Fatalf("%s, layer %d: %v", row.Name, k, err)
				}
				if layer.Delta == "" {
					t.Errorf("%s, layer %d names no delta", row.Name, k)
				}
				got = next
			}
			want := make([]byte, row.Bytes)
			if err := target.ReadTensor(context.Background(), row.Name, want, 1); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%d deltas: %s is not rebuilt", n, row.Name)
			}
			made[row.Name] = want
		}
	}
}

func TestPartsOfAnotherBase(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 1)
	found, _ := filepath.Glob(dir + "/0/*.safetensors")
	for _, path := range found {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)-1] ^= 1 // of the last tensor
		write(t, path, data)
	}
	target, err := Apply(open(t, dir+"/0"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p, list := partsOf(t, target)
	failures := 0
	for _, row := range list.Tensors {
		if row.Base == nil || row.SameAs != "" {
			continue
		}
		err := p.Gather(context.Background(), make([]byte, row.Bytes), []Span{{uint64(row.Base.Part), 0, row.Bytes, 0}}, 0)
		if err != nil {
			wantError(t, err, status.ErrBaseMismatch, row.Name)
			failures++
		}
	}
	if failures == 0 || failures > len(found) {
		t.Errorf("%d tensors of the base were refused, expected 1 to %d", failures, len(found))
	}
}

// Tensors that are stored as they are have no chunks with checksums, but a
// digest.
func TestPartsOfDamagedDelta(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 3)
	target, err := Apply(open(t, dir+"/0"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p, list := partsOf(t, target)
	found := false
	for _, row := range list.Tensors {
		if row.Base == nil || row.Base.Bytes == 0 {
			continue
		}
		part := p.parts[row.Base.Part]
		if !part.checked() {
			t.Errorf("%s: what it starts from is not checked", row.Name)
		}
		part.data = bytes.Clone(part.data)
		part.data[len(part.data)/2] ^= 4
		part.good = false
		err := p.Gather(context.Background(), make([]byte, row.Bytes), []Span{{uint64(row.Base.Part), 0, row.Bytes, 0}}, 1)
		if err == nil {
			t.Errorf("%s: damage is not found", row.Name)
		}
		found = true
	}
	if !found {
		t.Error("no tensor starts from anything")
	}
}

func TestGatherRefuses(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 1)
	target, err := Apply(open(t, dir+"/0"), d)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	p, list := partsOf(t, target)
	var base partRef
	for _, row := range list.Tensors {
		if row.Base != nil && row.Base.Bytes > base.Bytes && p.parts[row.Base.Part].checked() {
			base = *row.Base
		}
	}
	if base.Bytes < 5000 {
		t.Fatalf("the largest base has %d bytes", base.Bytes)
	}
	part := uint64(base.Part)
	for _, c := range []struct {
		span Span
		want error
	}{
		{Span{uint64(len(p.parts)), 0, 1, 0}, status.ErrArgument},
		{Span{part, base.Bytes + 1, 0, 0}, status.ErrArgument},
		{Span{part, 0, base.Bytes + 1, 0}, status.ErrArgument},
		{Span{part, 1 << 63, 1 << 63, 0}, status.ErrArgument},
		{Span{part, 0, 4096, base.Bytes - 4095}, status.ErrShortBuffer},
		{Span{part, 0, 4096, 1<<64 - 1}, status.ErrShortBuffer},
		{Span{part, 8, 4096, 0}, status.ErrArgument},
		{Span{part, 0, 4095, 0}, status.ErrArgument},
	} {
		wantError(t, p.Gather(context.Background(), make([]byte, base.Bytes), []Span{c.span}, 1), c.want)
	}
	if err := p.Gather(context.Background(), nil, nil, 1); err != nil {
		t.Error(err)
	}
}

// supplyAll gives the tensors that deltas rebuild, in order.
func supplyAll(t *testing.T, s *Supply, target *Source) {
	_, list := partsOf(t, target)
	rebuiltTensors := map[string]bool{}
	for _, row := range list.Tensors {
		rebuiltTensors[row.Name] = len(row.Layers) > 0 || rebuiltTensors[row.SameAs]
	}
	for _, row := range list.Tensors {
		if !rebuiltTensors[row.Name] {
			continue
		}
		data := make([]byte, row.Bytes)
		if err := target.ReadTensor(context.Background(), row.Name, data, 1); err != nil {
			t.Error(err)
		}
		taken, err := s.Give(row.Name, data)
		if err != nil || !taken {
			t.Errorf("%s: %v, %v", row.Name, taken, err)
		}
		clear(data) // it is needed no more
	}
}

func TestSupply(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 4)
	for _, workers := range []int{1, 4} {
		base := open(t, dir+"/0")
		target, err := Apply(base, d)
		if err != nil {
			t.Fatal(err)
		}
		defer target.Close()
		s := NewSupply()
		done := make(chan error)
		out := fmt.Sprintf("%s/out%d", dir, workers)
		go func() {
			_, err := Unpack(context.Background(), base, d, out, UnpackOptions{Workers: workers, Supply: s}, nil)
			s.End()
			done <- err
		}()
		supplyAll(t, s, target)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		sameTree(t, out, dir+"/4")
	}
}

func TestSupplyRefuses(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 1)
	base := open(t, dir+"/0")
	target, err := Apply(base, d)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	_, list := partsOf(t, target)
	var first string
	var size uint64
	for _, row := range list.Tensors {
		if len(row.Layers) > 0 && first == "" {
			first, size = row.Name, row.Bytes
		}
	}
	run := func(give func(ctx context.Context, s *Supply)) error {
		s := NewSupply()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() {
			_, err := Unpack(ctx, base, d, dir+"/out", UnpackOptions{Supply: s}, nil)
			s.End()
			done <- err
		}()
		give(ctx, s)
		cancel()
		err := <-done
		if taken, _ := s.Give("anything", nil); taken {
			t.Error("something was taken after the end")
		}
		if _, err := os.Stat(dir + "/out"); err == nil {
			t.Error("something was written")
		}
		return err
	}
	wantError(t, run(func(context.Context, *Supply) {}), status.ErrCanceled) // nothing is given
	run(func(_ context.Context, s *Supply) {
		_, err := s.Give("nonsense", nil)
		wantError(t, err, status.ErrArgument, first)
		_, err = s.Give(first, make([]byte, size-1))
		wantError(t, err, status.ErrShortBuffer, first)
	})
	// Other bytes than those that were packed do not become a file.
	err = run(func(_ context.Context, s *Supply) {
		for _, name := range func() []string { <-s.known; return s.order }() {
			taken, err := s.Give(name, make([]byte, s.tensors[name].n))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !taken { // a file before it was refused
				break
			}
		}
		<-s.ended
	})
	wantError(t, err, status.ErrTargetMismatch, "sha256")
	noLitter(t, dir)
}

// Unpack takes the last tensor and may have returned before Give looks: it was
// taken all the same.
func TestSupplyTakenLast(t *testing.T) {
	for range 64 { // select chooses among what is ready
		s := NewSupply()
		c := &supplied{name: "last", n: 1, ready: make(chan struct{}), taken: make(chan struct{})}
		s.order, s.tensors["last"] = []string{"last"}, c
		close(s.known)
		close(c.taken)
		s.End()
		if taken, err := s.Give("last", []byte{1}); err != nil || !taken {
			t.Fatalf("taken %v, %v", taken, err)
		}
	}
}
