package container

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"reflect"
	"testing"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

func sampleIndex() *Index {
	return &Index{
		Type: dtype.BF16, Codec: codec.Raw, HasBase: true, Shape: []uint64{10, 25}, Words: 250, ChunkWords: 100,
		BlobBytes: 1000, BaseDigest: digest.Sum{1}, TargetDigest: digest.Sum{2}, Tables: []byte("tables"),
		Records: []Record{
			{DataOffset: 0, CompressedBytes: 800, UncompressedBytes: 200, Deltas: 100, Checksum: 0xdeadbeef, OutputWord: 0},
			{DataOffset: 800, CompressedBytes: 0, UncompressedBytes: 200, Deltas: 0, Checksum: 1, OutputWord: 100},
			{DataOffset: 800, CompressedBytes: 200, UncompressedBytes: 100, Deltas: 50, Checksum: 2, OutputWord: 200},
		},
	}
}

// seal makes the checksum of an index right.
func seal(data []byte) []byte {
	binary.LittleEndian.PutUint32(data[crcOffset:], 0)
	binary.LittleEndian.PutUint32(data[crcOffset:], crc32.Checksum(data, castagnoli))
	return data
}

func TestIndexRoundTrip(t *testing.T) {
	empty := &Index{Type: dtype.F64, Codec: codec.Zstd, Shape: []uint64{3, 0, 7}, Tables: []byte{}, Records: []Record{}}
	scalar := &Index{
		Type: dtype.F32, Codec: codec.Elias, Residual: residual.Add, Shape: []uint64{}, Words: 1, ChunkWords: 1, BlobBytes: 8, Tables: []byte{},
		Records: []Record{{CompressedBytes: 8, UncompressedBytes: 4, Deltas: 1}},
	}
	for _, x := range []*Index{sampleIndex(), empty, scalar} {
		data := x.Append([]byte("before"))[len("before"):]
		got, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, x) {
			t.Errorf("got\n%+v\nexpected\n%+v", got, x)
		}
		if !bytes.Equal(got.Append(nil), data) {
			t.Error("a parsed index is written differently")
		}
	}
}

func TestParseRefuses(t *testing.T) {
	le := binary.LittleEndian
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint64(b[at:], v); return b }
	}
	put8 := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	put32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { le.PutUint32(b[at:], v); return b }
	}
	records := fixedBytes + 2*8 + len("tables")
	for _, c := range []struct {
		name string
		edit func([]byte) []byte
		want error
	}{
		{"short", func(b []byte) []byte { return b[:87] }, status.ErrCorrupt},
		{"magic", put8(0, 'X'), status.ErrCorrupt},
		{"version", put8(8, 2), status.ErrVersion},
		{"dtype", put8(10, 99), status.ErrUnsupported},
		{"residual", put8(12, 2), status.ErrUnsupported},
		{"add of integers", func(b []byte) []byte { b[10], b[12] = byte(dtype.I16), 1; return b }, status.ErrCorrupt},
		{"flags", put8(13, 3), status.ErrCorrupt},
		{"digest without base", put8(13, 0), status.ErrCorrupt},
		{"reserved", put8(15, 1), status.ErrCorrupt},
		{"dims", put8(14, 33), status.ErrLimit},
		{"fewer dims", put8(14, 1), status.ErrCorrupt},
		{"words", put64(16, 251), status.ErrCorrupt},
		{"words overflow", put64(16, 1<<63+250), status.ErrCorrupt},
		{"blob bytes", put64(24, 1004), status.ErrCorrupt},
		{"no chunk words", put64(32, 0), status.ErrLimit},
		{"huge chunks", put64(32, 1<<24+1), status.ErrLimit},
		{"chunk words", put64(32, 125), status.ErrCorrupt},
		{"chunks", put32(40, 4), status.ErrCorrupt},
		{"many chunks", func(b []byte) []byte { return put32(40, 250)(put64(32, 1)(b)) }, status.ErrCorrupt},
		{"tables", put32(44, MaxTableBytes+1), status.ErrLimit},
		{"records", put32(48, 0xffffffff), status.ErrCorrupt},
		{"trailing", func(b []byte) []byte { return append(b, 0) }, status.ErrCorrupt},
		{"shape overflow", put64(88, 1<<62), status.ErrLimit},
		{"shape", put64(88, 11), status.ErrCorrupt},
		{"empty with chunks", func(b []byte) []byte { return put64(16, 0)(put64(88, 0)(b)) }, status.ErrCorrupt},
		{"chunk too large", put8(records+4, 0xff), status.ErrCorrupt},
		{"long integer", func(b []byte) []byte { b[records+4], b[records+5] = 0x80, 0; return b }, status.ErrCorrupt},
		{"deltas", put8(records+6, 101), status.ErrCorrupt},
	} {
		data := sampleIndex().Append(nil)
		_, err := Parse(data)
		if err != nil {
			t.Fatal(err)
		}
		data = c.edit(data)
		if len(data) >= fixedBytes {
			seal(data)
		}
		if _, err := Parse(data); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, expected %v", c.name, err, c.want)
		}
	}
	data := sampleIndex().Append(nil)
	data[90] ^= 1
	if _, err := Parse(data); !errors.Is(err, status.ErrChecksum) {
		t.Errorf("checksum: got %v", err)
	}
}

func TestRecordChecksumCoversRecordAndData(t *testing.T) {
	r := sampleIndex().Records[0]
	data := []byte("some chunk data")
	r.Checksum = r.Sum(data)
	if err := r.Check(data); err != nil {
		t.Fatal(err)
	}
	for i, edit := range []func(*Record){
		func(r *Record) { r.DataOffset++ }, func(r *Record) { r.CompressedBytes++ }, func(r *Record) { r.UncompressedBytes++ },
		func(r *Record) { r.Deltas++ }, func(r *Record) { r.OutputWord++ }, func(r *Record) { r.Checksum++ },
	} {
		bad := r
		edit(&bad)
		if err := bad.Check(data); !errors.Is(err, status.ErrChecksum) {
			t.Errorf("field %d is not covered: %v", i, err)
		}
	}
	if err := r.Check([]byte("some chunk datA")); !errors.Is(err, status.ErrChecksum) {
		t.Errorf("the data is not covered: %v", err)
	}
}

// FuzzParse: no index makes Parse panic, what it accepts is consistent, and
// there is one encoding of it. The checksum is made right so that the fuzzer
// gets past it.
func FuzzParse(f *testing.F) {
	f.Add(sampleIndex().Append(nil))
	f.Add((&Index{Type: dtype.U8, Codec: codec.Raw, Shape: []uint64{0}}).Append(nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= fixedBytes {
			data = seal(bytes.Clone(data))
		}
		x, err := Parse(data)
		if err != nil {
			return
		}
		var words, bytesOfBlob uint64
		for i := range x.Records {
			r := &x.Records[i]
			if r.OutputWord != words || r.DataOffset != bytesOfBlob || uint64(r.Deltas) > x.ChunkWords {
				t.Fatalf("record %d is %+v", i, r)
			}
			words += uint64(r.UncompressedBytes) / uint64(x.Type.WordBytes())
			bytesOfBlob += uint64(r.CompressedBytes)
		}
		if words != x.Words || bytesOfBlob != x.BlobBytes {
			t.Fatalf("chunks cover %d words and %d bytes of %+v", words, bytesOfBlob, x)
		}
		if !bytes.Equal(x.Append(nil), data) {
			t.Fatal("a parsed index is written differently")
		}
	})
}
