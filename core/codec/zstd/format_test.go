package zstd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// block makes a BF16 block without a base.
func block(residual ...uint16) codec.Block {
	return codec.Block{Type: dtype.BF16, Base: make([]byte, 2*len(residual)), Residual: word.Bytes(residual)}
}

// example is the example of FORMAT.md.
var example = []byte{
	1, 0, 0, 0x80, 2, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0,
	10, 1, 0, 0, 0, 0, 0, 0,
}

func TestExample(t *testing.T) {
	want := block(0, 5, 0, 0xFFFF)
	e := &encoder{typ: dtype.BF16, layout: sparse}
	data, deltas, err := e.Encode(nil, want)
	if err != nil || deltas != 2 || !bytes.Equal(data, example) {
		t.Errorf("%x with %d deltas (%v), expected %x with 2", data, deltas, err, example)
	}
	got := block(9, 9, 9, 9)
	if err := (decoder{}).Decode(got, example, 2); err != nil || !bytes.Equal(got.Residual, want.Residual) {
		t.Errorf("%x (%v), expected %x", got.Residual, err, want.Residual)
	}
}

// skewed returns bytes that Huffman codes shorten and matches do not.
func skewed(n int) []byte {
	rng := rand.New(rand.NewPCG(uint64(n), 1))
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.ExpFloat64() * 3)
	}
	return p
}

// TestEntropyFrames reads frames of our own with klauspost's decoder, at the
// sizes where header fields grow and blocks end.
func TestEntropyFrames(t *testing.T) {
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var w work
	for _, n := range []int{24, 255, 256, 257, 1023, 1024, 1025, 16383, 16384, 16385, 65791, 65792, 131071, 131072, 131073, 300000} {
		noise := make([]byte, n)
		for i := range noise {
			noise[i] = byte(i * i >> 3)
		}
		halfZero := append(make([]byte, n/2), skewed(n-n/2)...)
		for what, p := range map[string][]byte{"skewed": skewed(n), "zero": make([]byte, n), "noise": noise, "half zero": halfZero} {
			f := appendEntropyFrame(nil, p, &w.huff)
			if err := checkFrame(f, n); err != nil {
				t.Errorf("%d bytes, %s: %v", n, what, err)
			}
			if got, err := d.DecodeAll(f, nil); err != nil || !bytes.Equal(got, p) {
				t.Errorf("%d bytes, %s: not decoded (%v)", n, what, err)
			}
			if what == "skewed" && n > 1000 && len(f) > n/2 {
				t.Errorf("%d skewed bytes take %d, expected at most half", n, len(f))
			}
		}
	}
}

// TestFramesOfKlauspost shows that every level writes headers that checkFrame
// accepts, whatever the size.
func TestFramesOfKlauspost(t *testing.T) {
	for _, level := range []codec.Level{codec.LevelFast, codec.LevelDefault, codec.LevelSmall} {
		for _, n := range []int{minFrame, 100, 255, 256, 1000, 1024, 1025, 65791, 65792, 300000} {
			var w work
			if err := checkFrame(w.frames(skewed(n), matches, level)[0], n); err != nil {
				t.Errorf("level %d, %d bytes: %v", level, n, err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	// 512 words, all changed, low bytes a zstd frame and high bytes 0.
	low := skewed(512)
	var w work
	frame := appendEntropyFrame(nil, low, &w.huff)
	chunk := func(kind uint32, stream []byte) []byte {
		data := binary.LittleEndian.AppendUint32(nil, kind<<kindShift|uint32(len(stream)))
		data = append(binary.LittleEndian.AppendUint32(data, kindFill<<kindShift), stream...)
		return append(data, make([]byte, pad(len(data))-len(data))...)
	}
	change := func(data []byte, at int, v byte) []byte {
		data = bytes.Clone(data)
		data[at] = v
		return data
	}
	withChecksum, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	valid := chunk(kindZstd, frame)
	last := len(valid) - 1
	if pad(len(frame)) == len(frame) {
		t.Fatal("the frame leaves no padding to test")
	}
	for _, c := range []struct {
		what   string
		words  int
		deltas uint32
		data   []byte
		valid  bool
	}{
		{"valid frame", 512, 512, valid, true},
		{"valid example", 4, 2, example, true},
		{"stored as it is", 512, 512, chunk(kindStored, low), true},
		{"reserved kind", 512, 512, chunk(3, frame), false},
		{"more deltas than words", 1, 2, example, false},
		{"bytes without deltas", 4, 0, make([]byte, 8), false},
		{"no room for the directory", 4, 2, example[:8], false},
		{"padding of the directory", 4, 2, change(example, 13, 1), false},
		{"padding of a stream", 512, 512, change(valid, last, 1), false},
		{"bytes left over", 512, 512, append(bytes.Clone(valid), make([]byte, 8)...), false},
		{"fill beyond a byte", 4, 2, change(example, 1, 1), false},
		{"gap beyond the chunk", 4, 2, change(example, 0, 2), false},
		{"zero value", 4, 2, change(example, 17, 0), false},
		{"stored too short", 512, 512, chunk(kindStored, low[:511]), false},
		{"frame cut short", 512, 512, chunk(kindZstd, frame[:len(frame)-1]), false},
		{"frame of another size", 512, 512, chunk(kindZstd, appendEntropyFrame(nil, low[:511], &w.huff)), false},
		{"two frames", 512, 512, chunk(kindZstd, append(bytes.Clone(frame), appendEntropyFrame(nil, low[:1], &w.huff)...)), false},
		{"skippable frame behind", 512, 512, chunk(kindZstd, append(bytes.Clone(frame), 0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0)), false},
		{"skippable frame before", 512, 512, chunk(kindZstd, append([]byte{0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0}, frame...)), false},
		{"frame checksum", 512, 512, chunk(kindZstd, withChecksum.EncodeAll(low, nil)), false},
		{"dictionary", 512, 512, chunk(kindZstd, change(frame, 4, frame[4]|1)), false},
		{"window descriptor", 512, 512, chunk(kindZstd, change(frame, 4, frame[4]&^singleSegment)), false},
		{"content size that lies", 512, 512, chunk(kindZstd, lyingFrame(512)), false},
	} {
		err := decoder{}.Decode(block(make([]uint16, c.words)...), c.data, c.deltas)
		if c.valid && err != nil || !c.valid && !errors.Is(err, status.ErrCorrupt) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := Codec.NewDecoder(dtype.BF16, []byte{0}); !errors.Is(err, status.ErrCorrupt) {
		t.Errorf("tables: %v, expected status.ErrCorrupt", err)
	}
}

// lyingFrame announces n bytes and holds 64 MiB in blocks of one repeated byte.
func lyingFrame(n int) []byte {
	f := appendFrameHeader(nil, n)
	for i := range 512 {
		f = append(appendBlockHeader(f, blockRLE, blockBytes, i == 511), 7)
	}
	return f
}

func TestChunkWords(t *testing.T) {
	for _, c := range []struct {
		typ            dtype.Type
		words, changed int
		expected       int
	}{
		{dtype.BF16, 0, 0, 1 << 16},
		{dtype.BF16, 1000, 1000, 1 << 16},
		{dtype.BF16, 1000, 501, 1 << 16},
		{dtype.BF16, 1000, 500, 1 << 17},
		{dtype.BF16, 1000, 25, 1 << 18},
		{dtype.BF16, 1000, 0, 1 << 18},
		{dtype.F32, 1000, 0, 1 << 18},
		{dtype.F64, 1000, 0, 1 << 17},
	} {
		if got := chunkWords(c.typ, c.words, c.changed); got != c.expected {
			t.Errorf("%v, %d of %d changed: chunks of %d words, expected %d", c.typ, c.changed, c.words, got, c.expected)
		}
	}
}

// TestLearns shows what the samples are for: the right layout, and no matching
// where it gains nothing.
func TestLearns(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	make16 := func(f func(i int) uint16) codec.Block {
		r := make([]uint16, 32<<10)
		for i := range r {
			r[i] = f(i)
		}
		return block(r...)
	}
	noisy := newEncoder(dtype.BF16, []codec.Block{make16(func(int) uint16 { return uint16(rng.ExpFloat64() * 30) })}, codec.LevelDefault)
	if noisy.layout != dense || noisy.dense[4] != entropy {
		t.Errorf("noise: layout %d, method %d, expected dense and entropy", noisy.layout, noisy.dense[4])
	}
	periodic := newEncoder(dtype.BF16, []codec.Block{make16(func(i int) uint16 { return uint16(i%97*31) + 1 })}, codec.LevelDefault)
	if periodic.dense[4] != matches {
		t.Errorf("a period of 97 words: method %d, expected matches", periodic.dense[4])
	}
}
