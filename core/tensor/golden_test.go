package tensor

import (
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/word"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files in testdata")

const formatFile = "../container/FORMAT.md"

// exampleWords reads a line of the worked example: a label and hexadecimal words.
func exampleWords(t *testing.T, text, label string) []byte {
	t.Helper()
	m := regexp.MustCompile(`(?m)^    ` + label + ` +([0-9a-f ]+)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no line %q in %s", label, formatFile)
	}
	var words []uint16
	for _, f := range strings.Fields(m[1]) {
		v, err := strconv.ParseUint(f, 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, uint16(v))
	}
	return word.Bytes(words)
}

// exampleBytes reads the dump under a heading: offset, bytes, two spaces, comment.
func exampleBytes(t *testing.T, text, heading string) []byte {
	t.Helper()
	_, text, ok := strings.Cut(text, "\n"+heading+":\n\n")
	if !ok {
		t.Fatalf("no heading %q in %s", heading, formatFile)
	}
	text, _, _ = strings.Cut(text, "\n\n")
	var out []byte
	for line := range strings.Lines(text) {
		m := regexp.MustCompile(`^    ([0-9a-f]{2}): ((?:[0-9a-f]{2} ?)+)`).FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not a line of a dump: %q", line)
		}
		if at, _ := strconv.ParseUint(m[1], 16, 16); int(at) != len(out) {
			t.Fatalf("offset %s, expected %02x", m[1], len(out))
		}
		b, err := hex.DecodeString(strings.ReplaceAll(m[2], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// TestWorkedExample holds FORMAT.md to its word.
func TestWorkedExample(t *testing.T) {
	data, err := os.ReadFile(formatFile)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	base, target := exampleWords(t, text, "base"), exampleWords(t, text, "target")
	wantIndex, wantBlob := exampleBytes(t, text, "Index"), exampleBytes(t, text, "Blob")
	index, blob := mustEncode(t, Desc{dtype.BF16, []uint64{4, 4}}, base, target, Options{Codec: codec.Raw})
	if !bytes.Equal(index, wantIndex) {
		t.Errorf("index is\n%sexpected\n%s", hex.Dump(index), hex.Dump(wantIndex))
	}
	if !bytes.Equal(blob, wantBlob) {
		t.Errorf("blob is\n%sexpected\n%s", hex.Dump(blob), hex.Dump(wantBlob))
	}
	dst := make([]byte, len(target))
	if err := mustOpen(t, wantIndex, wantBlob).Reconstruct(context.Background(), dst, base, ReconstructOptions{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dst, target) {
		t.Errorf("rebuilt %x, expected %x", dst, target)
	}
}

// TestGoldenFiles rebuilds tensors that were packed when the format was fixed,
// so that old files stay readable, and packs them again: to the same bytes,
// unless zstd, whose encoder may change, was used.
func TestGoldenFiles(t *testing.T) {
	for _, c := range []struct {
		codec codec.ID
		kind  residual.Kind
		dt    dtype.Type
	}{
		{codec.Raw, residual.Bit, dtype.BF16},
		{codec.Raw, residual.Add, dtype.F32},
		{codec.Zstd, residual.Bit, dtype.BF16},
		{codec.Zstd, residual.Add, dtype.F16},
		{codec.Elias, residual.Bit, dtype.BF16},
		{codec.Elias, residual.Bit, dtype.F64},
		{codec.Elias, residual.Bit, dtype.I8},
		{codec.Elias, residual.Add, dtype.F32},
		{codec.Prefix, residual.Bit, dtype.BF16},
		{codec.Prefix, residual.Bit, dtype.F64},
		{codec.Prefix, residual.Bit, dtype.I32},
		{codec.Prefix, residual.Add, dtype.F32},
		{codec.Rice, residual.Bit, dtype.BF16},
		{codec.Rice, residual.Bit, dtype.F64},
		{codec.Rice, residual.Bit, dtype.I8},
		{codec.Rice, residual.Add, dtype.F32},
	} {
		name := c.codec.String() + "-" + c.kind.String() + "-" + strings.ToLower(c.dt.String())
		path := filepath.Join("testdata", name)
		base, target := goldenPair(c.dt)
		d := Desc{c.dt, shapeOf(c.dt, len(target)/c.dt.WordBytes())}
		newIndex, newBlob := mustEncode(t, d, base, target, Options{Codec: c.codec, Residual: c.kind, NumChunks: 3})
		if *rewrite {
			for ext, data := range map[string][]byte{".tpde-index": newIndex, ".tpde-blob": newBlob} {
				if err := os.WriteFile(path+ext, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		index, err := os.ReadFile(path + ".tpde-index")
		if err != nil {
			t.Fatal(err)
		}
		blob, err := os.ReadFile(path + ".tpde-blob")
		if err != nil {
			t.Fatal(err)
		}
		dst := word.Bytes(make([]uint64, (len(target)+7)/8))[:len(target)]
		if err := mustOpen(t, index, blob).Reconstruct(context.Background(), dst, base, ReconstructOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(dst, target) {
			t.Errorf("%s: rebuilt bits differ", name)
		}
		if c.codec != codec.Zstd && (!bytes.Equal(index, newIndex) || !bytes.Equal(blob, newBlob)) {
			t.Errorf("%s: packing gives other bytes than before: if that is meant, raise the version", name)
		}
	}
}

// goldenPair makes the golden tensors with arithmetic that no library changes.
func goldenPair(t dtype.Type) (base, target []byte) {
	const words = 3000
	w := t.WordBytes()
	base = word.Bytes(make([]uint64, words*w/8))
	state := uint64(42)
	next := func() uint64 { // Knuth's MMIX generator
		state = state*6364136223846793005 + 1442695040888963407
		return state >> 33
	}
	for i := range base {
		base[i] = byte(next())
	}
	target = word.Bytes(make([]uint64, words*w/8))
	copy(target, base)
	for i := range words {
		switch x := next(); {
		case x%50 < 4:
			target[i*w]++
		case x%50 < 8:
			target[i*w]--
		case x%50 == 8:
			target[i*w+w-1] = byte(next())
		}
	}
	return base, target
}
