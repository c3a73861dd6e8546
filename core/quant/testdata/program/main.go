// Command program quantises a file of words and writes codes, scales, zero
// points, what they are worth, and the descriptor but for its pointers: what
// tests/test_quant.py compares with torch.
//
//	program SOURCE DTYPE BITS GROUP SCALE ZERO(0|1) OUT
package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 7 {
		return fmt.Errorf("%d arguments, expected SOURCE DTYPE BITS GROUP SCALE ZERO OUT", len(args))
	}
	src, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	t, err := dtype.Parse(args[1])
	if err != nil {
		return err
	}
	scale, err := dtype.Parse(args[4])
	if err != nil {
		return err
	}
	bits, err := strconv.ParseUint(args[2], 10, 8)
	if err != nil {
		return err
	}
	group, err := strconv.ParseUint(args[3], 10, 64)
	if err != nil {
		return err
	}
	s := quant.Scheme{Kind: quant.Linear, Bits: uint8(bits), Group: group, Scale: scale, Zero: args[5] == "1"}
	n := uint64(len(src) / t.WordBytes())
	d := quant.Data{
		Packed: make([]byte, s.PackedBytes(n)), Scale: make([]byte, s.ScaleBytes(n)), Zero: make([]byte, s.ZeroBytes(n)),
	}
	ctx := context.Background()
	if err := quant.Quantize(ctx, &d, &s, src, t, 0); err != nil {
		return err
	}
	dst := make([]byte, len(src))
	if err := quant.Dequantize(ctx, dst, t, &s, &d, 0); err != nil {
		return err
	}
	p := quant.Pointers{Packed: 4, Scale: 4}
	if s.Zero {
		p.Zero = 4
	}
	descriptor, err := s.Descriptor(p, n)
	if err != nil {
		return err
	}
	out := bytes.Join([][]byte{d.Packed, d.Scale, d.Zero, dst, descriptor[24:]}, nil)
	return os.WriteFile(args[6], out, 0o644)
}
