package digest

import (
	"bytes"
	"testing"
)

// TestKnown pins the digest with values computed independently by
// testdata/reference.py (Python's xxhash and hashlib).
func TestKnown(t *testing.T) {
	ramp := make([]byte, 10000)
	for i := range ramp {
		ramp[i] = byte(i)
	}
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, "af5570f5a1810b7af78caf4bc70a660f"},
		{[]byte("tpde"), "741f9701af96937550f161632db3a0ee"},
		{ramp[:4096], "c4c0e79b4c0050d072aa6595b54d33b6"},
		{ramp, "fa5e3ddc0ec88ec8c23df50b05ea05fd"},
	} {
		if got := Of(c.data, 1).String(); got != c.want {
			t.Errorf("digest of %d bytes is %s, expected %s", len(c.data), got, c.want)
		}
	}
}

func TestWorkersAgree(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789"), 2_000_003)
	want := Of(data, 1)
	for _, w := range []int{0, 2, 5} {
		if got := Of(data, w); got != want {
			t.Errorf("%d workers: %v, expected %v", w, got, want)
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	data := make([]byte, 5000)
	seen := map[Sum]bool{Of(data, 1): true}
	for _, i := range []int{0, 4095, 4096, 4999} {
		data[i] ^= 0x10
		if s := Of(data, 1); seen[s] {
			t.Errorf("byte %d does not change the digest", i)
		} else {
			seen[s] = true
		}
		data[i] ^= 0x10
	}
	if seen[Of(data[:4999], 1)] {
		t.Error("the length does not change the digest")
	}
}
