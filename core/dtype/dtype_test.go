package dtype

import (
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/status"
)

func TestParseUndoesString(t *testing.T) {
	for ty := Bool; ty.Valid(); ty++ {
		got, err := Parse(ty.String())
		if err != nil || got != ty {
			t.Errorf("Parse(%q) = %v, %v", ty.String(), got, err)
		}
		shift, width := ty.Exponent()
		if shift+width > 8*ty.WordBytes() {
			t.Errorf("%v: exponent of %d bits at bit %d of %d bytes", ty, width, shift, ty.WordBytes())
		}
	}
	for _, name := range []string{"", "bf16", "F128", "INVALID"} {
		if _, err := Parse(name); !errors.Is(err, status.ErrUnsupported) {
			t.Errorf("Parse(%q): %v", name, err)
		}
	}
}

func TestBytes(t *testing.T) {
	for _, c := range []struct {
		ty    Type
		shape []uint64
		want  uint64
		err   error
	}{
		{F32, nil, 4, nil},
		{BF16, []uint64{3, 5}, 30, nil},
		{F64, []uint64{1 << 40, 0, 1 << 40}, 0, nil},
		{F4, []uint64{3, 2}, 3, nil},
		{F6E2M3, []uint64{4}, 3, nil},
		{F4, []uint64{3}, 0, status.ErrArgument},
		{F32, []uint64{1 << 32, 1 << 32}, 0, status.ErrLimit},
		{U8, []uint64{1 << 62}, 0, status.ErrLimit},
		{Type(200), []uint64{1}, 0, status.ErrUnsupported},
	} {
		got, err := c.ty.Bytes(c.shape)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%v%v: %d, %v; expected %d, %v", c.ty, c.shape, got, err, c.want, c.err)
		}
	}
}
