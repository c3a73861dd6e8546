package elias

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// TestDeviceTables checks every field against kernels/elias.cuh. F8_E4M3 has
// 16 contexts, so that the sign bit above the exponent must make no difference.
func TestDeviceTables(t *testing.T) {
	stored := []byte{
		2, 9, 4, // two gap classes
		7 | 0<<5, 0xfe, // contexts 0-7: class 0, sign
		3 | 1<<5, 5, // contexts 8-11: class 1, k = 5
		3 | 3<<5, 0xff, // contexts 12-15: dense, verbatim
	}
	out, err := DeviceTables(dtype.F8E4M3, stored)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != DeviceTableBytes {
		t.Fatalf("%d bytes", len(out))
	}
	at := func(i int) uint32 { return binary.LittleEndian.Uint32(out[4*i:]) }
	for i := range 32 {
		step, code := uint32(1), uint32(0xfe|0<<8|9<<16)
		switch c := i & 15; {
		case c >= 12:
			step, code = 1<<24, 0xff|3<<8
		case c >= 8:
			step, code = 1<<8, 5|1<<8|4<<16
		}
		if at(i) != step || at(32+i) != code {
			t.Errorf("context %d: step %#x, code %#x, expected %#x, %#x", i, at(i), at(32+i), step, code)
		}
	}
	for i, want := range []uint32{9, 4, 0, 2, 3, 0, 0, 0} { // gaps, classes, shift, reserved
		if got := at(64 + i); got != want {
			t.Errorf("word %d is %d, expected %d", 64+i, got, want)
		}
	}
	if _, err := DeviceTables(dtype.BF16, stored); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("tables of another dtype: %v", err)
	}
}
