package tensor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

func TestBaseInParts(t *testing.T) {
	for _, words := range []int{1, 5000, 700_000} {
		base, target := pair(dtype.BF16, words, 0.9, 1)
		d := Desc{dtype.BF16, shapeOf(dtype.BF16, words)}
		sum := digest.Of(base, 1)
		for _, id := range append(codec.All(), codec.Auto) {
			index, blob := mustEncode(t, d, base, target, Options{Codec: id})
			o := Options{Codec: id, Workers: 3, BaseDigest: &sum}
			o.BaseAt = func(dst []byte, off uint64) error {
				copy(dst, base[off:])
				return nil
			}
			index2, blob2 := mustEncode(t, d, nil, target, o)
			if !bytes.Equal(index, index2) || !bytes.Equal(blob, blob2) {
				t.Errorf("%d words, %v: a base in parts gives other bytes", words, id)
			}
		}
	}
}

func TestBaseInPartsFails(t *testing.T) {
	base, target := pair(dtype.F32, 100_000, 0.5, 1)
	d := Desc{dtype.F32, shapeOf(dtype.F32, 100_000)}
	sum := digest.Of(base, 1)
	broken := status.Errorf(status.ErrIO, "the base went away")
	reads := 0
	for _, allowed := range []int{0, 1, 17} {
		left := allowed
		o := Options{BaseDigest: &sum, Workers: 1, BaseAt: func(dst []byte, off uint64) error {
			if reads++; left == 0 {
				return broken
			}
			left--
			copy(dst, base[off:])
			return nil
		}}
		if _, err := Encode(context.Background(), io.Discard, d, nil, target, o); !errors.Is(err, status.ErrIO) {
			t.Errorf("after %d reads: got %v", allowed, err)
		}
		if _, err := Encode(context.Background(), io.Discard, d, base, target, o); !errors.Is(err, status.ErrArgument) {
			t.Errorf("two bases: got %v", err)
		}
		o.BaseDigest = nil
		if _, err := Encode(context.Background(), io.Discard, d, nil, target, o); !errors.Is(err, status.ErrArgument) {
			t.Errorf("no digest: got %v", err)
		}
	}
}
