package container

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/status"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// RecordBytes is the size of a flat chunk record.
const RecordBytes = 32

// minRecordBytes is the least that a compact record takes.
const minRecordBytes = 4 + 1 + 1

// Record describes one chunk. In memory, and for a GPU, records form a flat
// array of 32 bytes each; in a file they are stored compactly (FORMAT.md).
type Record struct {
	DataOffset        uint64 // of the chunk in the blob
	CompressedBytes   uint32
	UncompressedBytes uint32
	Deltas            uint32 // words that the chunk stores
	Checksum          uint32 // see Record.Sum
	OutputWord        uint64 // where the chunk starts in the tensor
}

// AppendFlat appends the 32-byte form to dst.
func (r *Record) AppendFlat(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, r.DataOffset)
	dst = le.AppendUint32(dst, r.CompressedBytes)
	dst = le.AppendUint32(dst, r.UncompressedBytes)
	dst = le.AppendUint32(dst, r.Deltas)
	dst = le.AppendUint32(dst, r.Checksum)
	return le.AppendUint64(dst, r.OutputWord)
}

// Sum returns the checksum that the record of a chunk with this data must
// carry: CRC-32C of the flat record with a zero checksum, then the data. It
// covers all that a reader needs to trust before it decodes the chunk.
func (r *Record) Sum(data []byte) uint32 {
	bare := *r
	bare.Checksum = 0
	var flat [RecordBytes]byte
	return crc32.Update(crc32.Checksum(bare.AppendFlat(flat[:0]), castagnoli), castagnoli, data)
}

// Check returns status.ErrChecksum unless data is what the record was made for.
func (r *Record) Check(data []byte) error {
	if sum := r.Sum(data); sum != r.Checksum {
		return status.Errorf(status.ErrChecksum, "chunk data has checksum %08x, expected %08x", sum, r.Checksum)
	}
	return nil
}

// appendRecords appends the compact form: what cannot be computed from the
// header and the records before.
func appendRecords(dst []byte, records []Record) []byte {
	for i := range records {
		r := &records[i]
		dst = binary.LittleEndian.AppendUint32(dst, r.Checksum)
		dst = binary.AppendUvarint(dst, uint64(r.CompressedBytes/codec.Align))
		dst = binary.AppendUvarint(dst, uint64(r.Deltas))
	}
	return dst
}

// parseRecords rebuilds the flat records. The header has been validated, so
// chunk sizes and offsets in the tensor are safe to compute.
func (x *Index) parseRecords(data []byte, chunks uint64) error {
	if chunks > uint64(len(data))/minRecordBytes {
		return status.Errorf(status.ErrCorrupt, "%d chunk records in %d bytes, expected at least %d bytes each", chunks, len(data), minRecordBytes)
	}
	wordBytes := uint64(x.Type.WordBytes())
	x.Records = make([]Record, chunks)
	var offset uint64
	for i := range x.Records {
		if len(data) < minRecordBytes {
			return status.InChunk(status.Errorf(status.ErrCorrupt, "chunk record is cut short"), i)
		}
		r := &x.Records[i]
		r.Checksum = binary.LittleEndian.Uint32(data)
		units, rest, ok1 := uvarint(data[4:])
		deltas, rest, ok2 := uvarint(rest)
		if !ok1 || !ok2 {
			return status.InChunk(status.Errorf(status.ErrCorrupt, "chunk record holds a malformed variable-length integer"), i)
		}
		data = rest
		first := uint64(i) * x.ChunkWords
		words := min(x.ChunkWords, x.Words-first)
		if limit := MaxChunkBlobBytes(x.Type, words); units > limit/codec.Align {
			return status.InChunk(status.Errorf(status.ErrCorrupt, "%d units of %d compressed bytes, expected at most %d bytes", units, codec.Align, limit), i)
		}
		if deltas > words {
			return status.InChunk(status.Errorf(status.ErrCorrupt, "%d deltas in %d words", deltas, words), i)
		}
		r.DataOffset = offset
		r.CompressedBytes = uint32(units * codec.Align)
		r.UncompressedBytes = uint32(words * wordBytes)
		r.Deltas = uint32(deltas)
		r.OutputWord = first
		offset += uint64(r.CompressedBytes)
	}
	if len(data) != 0 {
		return status.Errorf(status.ErrCorrupt, "%d bytes after the last chunk record", len(data))
	}
	if offset != x.BlobBytes {
		return status.Errorf(status.ErrCorrupt, "chunks take %d bytes, expected the %d bytes of the blob", offset, x.BlobBytes)
	}
	return nil
}

// uvarint reads a LEB128 integer in its shortest form.
func uvarint(data []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(data)
	if n <= 0 || n > 1 && data[n-1] == 0 {
		return 0, nil, false
	}
	return v, data[n:], true
}
