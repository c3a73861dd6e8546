package container

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// Limits of the format. They bound what a reader allocates, whatever an index
// claims.
const (
	MaxDims       = 32
	MaxChunkBytes = 32 << 20 // uncompressed bytes of one chunk
	MaxTableBytes = 64 << 10 // codec tables of one tensor
)

// Version is the format version that this package writes, and the only one
// that it reads.
const Version = 1

const (
	magic      = "TPDEIDX\x00"
	fixedBytes = 88 // everything before the shape
	crcOffset  = 52

	flagBase = 1 // the tensor was coded against a base
)

// Index describes one packed tensor.
type Index struct {
	Type         dtype.Type
	Codec        codec.ID
	Residual     residual.Kind
	HasBase      bool
	Shape        []uint64 // in elements
	Words        uint64   // words of the tensor, see package dtype
	ChunkWords   uint64   // words of every chunk but the last; 0 if there are none
	BlobBytes    uint64
	BaseDigest   digest.Sum // zero without a base
	TargetDigest digest.Sum
	Tables       []byte // what the codec needs to know of the whole tensor
	Records      []Record
}

// TargetBytes returns the size of the tensor in bytes.
func (x *Index) TargetBytes() uint64 { return x.Words * uint64(x.Type.WordBytes()) }

// Deltas returns the number of words that the chunks store.
func (x *Index) Deltas() uint64 {
	var n uint64
	for i := range x.Records {
		n += uint64(x.Records[i].Deltas)
	}
	return n
}

// ChunkCount returns how many chunks of chunkWords words cover words words.
func ChunkCount(words, chunkWords uint64) uint64 {
	if words == 0 {
		return 0
	}
	return (words-1)/chunkWords + 1
}

// MaxChunkBlobBytes returns the most bytes that a chunk of the given number of
// words may take in a blob: positions and values of every word twice, once as
// deltas and once as exceptions, and some room for codec headers.
func MaxChunkBlobBytes(t dtype.Type, words uint64) uint64 {
	return 2*words*uint64(4+t.WordBytes()) + 1024
}

// Append appends the index in its file form to dst.
func (x *Index) Append(dst []byte) []byte {
	start := len(dst)
	var flags uint8
	if x.HasBase {
		flags |= flagBase
	}
	records := appendRecords(nil, x.Records)

	le := binary.LittleEndian
	dst = append(dst, magic...)
	dst = le.AppendUint16(dst, Version)
	dst = append(dst, byte(x.Type), byte(x.Codec), byte(x.Residual), flags, byte(len(x.Shape)), 0)
	dst = le.AppendUint64(dst, x.Words)
	dst = le.AppendUint64(dst, x.BlobBytes)
	dst = le.AppendUint64(dst, x.ChunkWords)
	dst = le.AppendUint32(dst, uint32(len(x.Records)))
	dst = le.AppendUint32(dst, uint32(len(x.Tables)))
	dst = le.AppendUint32(dst, uint32(len(records)))
	dst = le.AppendUint32(dst, 0) // checksum, below
	dst = append(dst, x.BaseDigest[:]...)
	dst = append(dst, x.TargetDigest[:]...)
	for _, d := range x.Shape {
		dst = le.AppendUint64(dst, d)
	}
	dst = append(dst, x.Tables...)
	dst = append(dst, records...)
	le.PutUint32(dst[start+crcOffset:], crc32.Checksum(dst[start:], castagnoli))
	return dst
}

// Parse reads an index. The result refers to no memory of data but Tables.
func Parse(data []byte) (*Index, error) {
	if len(data) < fixedBytes {
		return nil, status.Errorf(status.ErrCorrupt, "index has %d bytes, expected at least %d", len(data), fixedBytes)
	}
	if string(data[:8]) != magic {
		return nil, status.Errorf(status.ErrCorrupt, "not a TPDE index: it starts with %q, expected %q", data[:8], magic)
	}
	le := binary.LittleEndian
	if v := le.Uint16(data[8:]); v != Version {
		return nil, status.Errorf(status.ErrVersion, "index has format version %d, this build reads version %d", v, Version)
	}
	if want, got := le.Uint32(data[crcOffset:]), checksumIndex(data); want != got {
		return nil, status.Errorf(status.ErrChecksum, "index has checksum %08x, expected %08x", got, want)
	}
	x := &Index{
		Type:       dtype.Type(data[10]),
		Codec:      codec.ID(data[11]),
		Residual:   residual.Kind(data[12]),
		HasBase:    data[13]&flagBase != 0,
		Words:      le.Uint64(data[16:]),
		BlobBytes:  le.Uint64(data[24:]),
		ChunkWords: le.Uint64(data[32:]),
	}
	dims := int(data[14])
	chunks, tables, records := le.Uint32(data[40:]), le.Uint32(data[44:]), le.Uint32(data[48:])
	copy(x.BaseDigest[:], data[56:])
	copy(x.TargetDigest[:], data[72:])

	switch {
	case !x.Type.Valid():
		return nil, status.Errorf(status.ErrUnsupported, "dtype code %d is unknown", data[10])
	case x.Residual > residual.Add:
		return nil, status.Errorf(status.ErrUnsupported, "residual kind %d is unknown", data[12])
	case x.Residual == residual.Add && !x.Type.HasAdd():
		return nil, status.Errorf(status.ErrCorrupt, "add residual of dtype %v, which has none", x.Type)
	case data[13]&^flagBase != 0 || data[15] != 0:
		return nil, status.Errorf(status.ErrCorrupt, "reserved bits are set: flags %#x, reserved byte %#x", data[13], data[15])
	case !x.HasBase && x.BaseDigest != digest.Sum{}:
		return nil, status.Errorf(status.ErrCorrupt, "a base digest without a base")
	case dims > MaxDims:
		return nil, status.Errorf(status.ErrLimit, "%d dimensions, expected at most %d", dims, MaxDims)
	case tables > MaxTableBytes:
		return nil, status.Errorf(status.ErrLimit, "%d bytes of codec tables, expected at most %d", tables, MaxTableBytes)
	}
	// All three are below 2^33, so the sum cannot overflow.
	want := uint64(fixedBytes) + 8*uint64(dims) + uint64(tables) + uint64(records)
	if uint64(len(data)) != want {
		return nil, status.Errorf(status.ErrCorrupt, "index has %d bytes, expected %d by its header", len(data), want)
	}
	rest := data[fixedBytes:]
	x.Shape = make([]uint64, dims)
	for i := range x.Shape {
		x.Shape[i], rest = le.Uint64(rest), rest[8:]
	}
	x.Tables, rest = rest[:tables:tables], rest[tables:]
	if err := x.checkSizes(uint64(chunks)); err != nil {
		return nil, err
	}
	if err := x.parseRecords(rest, uint64(chunks)); err != nil {
		return nil, err
	}
	return x, nil
}

// checkSizes validates the sizes of the header against each other.
func (x *Index) checkSizes(chunks uint64) error {
	size, err := x.Type.Bytes(x.Shape)
	if err != nil {
		return err
	}
	wordBytes := uint64(x.Type.WordBytes())
	if hi, lo := bits.Mul64(x.Words, wordBytes); hi != 0 || lo != size {
		return status.Errorf(status.ErrCorrupt, "%d words of %d bytes, expected the %d bytes of shape %v of %v", x.Words, wordBytes, size, x.Shape, x.Type)
	}
	if x.Words == 0 {
		if x.ChunkWords != 0 || chunks != 0 || x.BlobBytes != 0 {
			return status.Errorf(status.ErrCorrupt, "an empty tensor with %d chunks of %d words and %d bytes of data", chunks, x.ChunkWords, x.BlobBytes)
		}
		return nil
	}
	if x.ChunkWords == 0 || x.ChunkWords > MaxChunkBytes/wordBytes {
		return status.Errorf(status.ErrLimit, "chunks of %d words, expected 1 to %d for %v", x.ChunkWords, MaxChunkBytes/wordBytes, x.Type)
	}
	if n := ChunkCount(x.Words, x.ChunkWords); n != chunks {
		return status.Errorf(status.ErrCorrupt, "%d chunks, expected %d for %d words in chunks of %d", chunks, n, x.Words, x.ChunkWords)
	}
	return nil
}

func checksumIndex(data []byte) uint32 {
	sum := crc32.Checksum(data[:crcOffset], castagnoli)
	sum = crc32.Update(sum, castagnoli, []byte{0, 0, 0, 0})
	return crc32.Update(sum, castagnoli, data[crcOffset+4:])
}
