package status

import (
	"errors"
	"fmt"
	"testing"
)

func TestErrorCarriesPlaceAndSentinel(t *testing.T) {
	err := InTensor(InChunk(Errorf(ErrCorrupt, "got %d", 3), 7), "w")
	if want := `tensor "w": chunk 7: corrupt: got 3`; err.Error() != want {
		t.Errorf("got %q, expected %q", err, want)
	}
	if !errors.Is(err, ErrCorrupt) || errors.Is(err, ErrChecksum) {
		t.Error("wrong sentinel")
	}
	if err := InTensor(err, "other"); err.Error() != `tensor "w": chunk 7: corrupt: got 3` {
		t.Errorf("the first name was replaced: %q", err)
	}
	if InChunk(nil, 1) != nil {
		t.Error("no error became one")
	}
}

func TestOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Code
	}{
		{nil, OK},
		{Errorf(ErrBaseMismatch, "x"), BaseMismatch},
		{fmt.Errorf("wrapped: %w", Errorf(ErrChain, "x")), Chain},
		{errors.New("anything"), Internal},
	} {
		if got := Of(c.err); got != c.want {
			t.Errorf("Of(%v) = %v, expected %v", c.err, got, c.want)
		}
	}
	if BaseMismatch.String() != "base_mismatch" || Code(12345).String() != "status 12345" {
		t.Error("names")
	}
}
