package checkpoint

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/status"
)

// epochs writes checkpoints 0 to n as folders and the deltas between them.
func epochs(t *testing.T, dir string, n int) (deltas []string) {
	base, _ := model()
	for i := range n + 1 {
		hub(t, fmt.Sprintf("%s/%d", dir, i), base, fmt.Sprintf(`{"epoch":%d}`, i/2))
		for j := range base {
			if (i+j)%3 > 0 && base[j].name != "same" {
				base[j] = base[j].step(20, uint64(i))
			}
		}
		if i == 1 {
			base = append(base[:2], base[3:]...) // one is removed on the way
		}
		if i == 2 {
			base[0].shape = []uint64{96, 64} // and one reshaped
		}
	}
	for i := range n {
		d := fmt.Sprintf("%s/d%d.safetensors", dir, i+1)
		mustPack(t, open(t, fmt.Sprintf("%s/%d", dir, i)), open(t, fmt.Sprintf("%s/%d", dir, i+1)), d, PackOptions{})
		deltas = append(deltas, d)
	}
	return deltas
}

func TestChain(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 4)
	base := open(t, dir+"/0")
	for n := 1; n <= 4; n++ {
		got := fmt.Sprintf("%s/got%d", dir, n)
		mustUnpack(t, base, got, d[:n]...)
		sameTree(t, got, fmt.Sprintf("%s/%d", dir, n))
		if _, err := Verify(context.Background(), base, d[:n], open(t, fmt.Sprintf("%s/%d", dir, n)), UnpackOptions{}, nil); err != nil {
			t.Error(err)
		}
	}
	mustUnpack(t, open(t, dir+"/2"), dir+"/later", d[2:]...)
	sameTree(t, dir+"/later", dir+"/4")

	for _, c := range []struct {
		name   string
		deltas []string
	}{
		{"gap", []string{d[0], d[2]}},
		{"wrong order", []string{d[1], d[0]}},
		{"twice", []string{d[0], d[0]}},
	} {
		_, err := Unpack(context.Background(), base, c.deltas, dir+"/none", UnpackOptions{}, nil)
		wantError(t, err, status.ErrChain, c.deltas[1])
	}
	_, err := Unpack(context.Background(), base, nil, dir+"/none", UnpackOptions{}, nil)
	wantError(t, err, status.ErrArgument)
	_, err = Unpack(context.Background(), base, []string{d[1]}, dir+"/none", UnpackOptions{}, nil)
	wantError(t, err, status.ErrBaseMismatch, "tensor ", "digest")
	_, err = Unpack(context.Background(), base, []string{dir + "/d9.safetensors"}, dir+"/none", UnpackOptions{}, nil)
	wantError(t, err, status.ErrNotFound, "d9.safetensors")
	if _, err := os.Stat(dir + "/none"); err == nil {
		t.Error("something was written")
	}
	_, err = Verify(context.Background(), base, d[:2], open(t, dir+"/3"), UnpackOptions{}, nil)
	wantError(t, err, status.ErrTargetMismatch, "tensor ")
	noLitter(t, dir)
}

// What a chain makes can itself be a base or a target.
func TestPackOfRebuilt(t *testing.T) {
	dir := t.TempDir()
	d := epochs(t, dir, 4)
	base := open(t, dir+"/0")
	two, err := Apply(base, d[:2])
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	four, err := Apply(base, d)
	if err != nil {
		t.Fatal(err)
	}
	defer four.Close()
	mustPack(t, two, four, dir+"/jump.safetensors", PackOptions{})
	mustUnpack(t, open(t, dir+"/2"), dir+"/got1", dir+"/jump.safetensors")
	sameTree(t, dir+"/got1", dir+"/4")
	mustUnpack(t, two, dir+"/got2", dir+"/jump.safetensors")
	sameTree(t, dir+"/got2", dir+"/4")
}

func TestWrongBase(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	d := []string{dir + "/d.safetensors"}
	mustPack(t, memory(t, base...), memory(t, target...), d[0], PackOptions{})
	ctx := context.Background()
	for i, e := range base {
		if e.name == "none" {
			continue
		}
		for _, c := range []struct {
			what string
			with func() []tens
		}{
			{"one bit", func() []tens {
				other := append([]tens{}, base...)
				other[i].data = append([]byte{}, e.data...)
				other[i].data[len(e.data)-1] ^= 0x10
				return other
			}},
			{"missing", func() []tens { return append(append([]tens{}, base[:i]...), base[i+1:]...) }},
			{"another shape", func() []tens {
				other := append([]tens{}, base...)
				other[i].shape = append([]uint64{1}, e.shape...)
				return other
			}},
		} {
			b := memory(t, c.with()...)
			_, err := Unpack(ctx, b, d, dir+"/none", UnpackOptions{}, nil)
			// A changed tensor that is stored verbatim does not need its base.
			if err == nil && (e.name == "odd" || e.name == "scalar" || e.name == "norm") {
				os.Remove(dir + "/none")
				continue
			}
			wantError(t, err, status.ErrBaseMismatch, fmt.Sprintf("tensor %q", e.name))
			if n := strings.Count(err.Error(), "digest"); c.what == "one bit" && n < 2 {
				t.Errorf("%q does not name both digests", err)
			}
			s, err := Apply(b, d)
			if c.what != "one bit" {
				wantError(t, err, status.ErrBaseMismatch, e.name)
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			dst := make([]byte, len(e.data))
			wantError(t, s.ReadTensor(ctx, e.name, dst, 0), status.ErrBaseMismatch, e.name)
			for _, x := range dst {
				if x != 0 {
					t.Fatalf("%s: something was written in spite of the wrong base", e.name)
				}
			}
			s.Close()
		}
	}
	noLitter(t, dir)
}
