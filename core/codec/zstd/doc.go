// Package zstd codes residuals as byte planes, each plane its own zstd frame.
//
// A chunk holds the gaps between changed words and their residuals (sparse),
// or the residuals of all words (dense). Either way the integers are cut into
// planes, the first bytes of all of them, then the second bytes, and so on:
// the planes have little in common, and a Huffman table that they shared would
// fit none. FORMAT.md gives the bytes.
//
// Any zstd decoder can read the frames. They carry their content size, no
// dictionary and no checksum (the index has one), and start at multiples of 8
// bytes, because nvCOMP's batched decoder wants it so. Two encoders write them
// and the smaller result counts: klauspost's zstd, and one of our own that
// only entropy-codes (frame.go), which is smaller and several times faster
// where float bits leave no matches to find.
package zstd

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Codec is the codec. It has no tables.
var Codec codec.Codec = zstdCodec{}

func init() { codec.Register(Codec) }

type zstdCodec struct{}

func (zstdCodec) ID() codec.ID { return codec.Zstd }

func (zstdCodec) Plan(t dtype.Type, samples []codec.Block, _ uint64, level codec.Level) codec.Encoder {
	return newEncoder(t, samples, level)
}

func (zstdCodec) NewDecoder(t dtype.Type, tables []byte) (codec.Decoder, error) {
	if len(tables) != 0 {
		return nil, status.Errorf(status.ErrCorrupt, "zstd codec with %d bytes of tables, expected none", len(tables))
	}
	return decoder{}, nil
}

// A chunk starts with one directory entry of 4 bytes per plane: the kind in
// the top two bits, and in the others the size of the stream or, for fill, the
// byte.
const (
	entryBytes = 4

	kindStored = 0
	kindZstd   = 1
	kindFill   = 2

	kindShift = 30
	valueMask = 1<<kindShift - 1
)

// gapBytes returns how many bytes the gaps between changed words take in a
// chunk of that many words.
func gapBytes(words int) int {
	switch {
	case words <= 1<<8:
		return 1
	case words <= 1<<16:
		return 2
	}
	return 4
}

// pad rounds n up to the alignment of streams.
func pad(n int) int { return (n + 7) &^ 7 }
