// Package codec defines what every codec does, and numbers them. The codecs
// themselves live one package each below this one and know nothing of files,
// indexes or goroutines: they turn the residual words of one chunk into bytes
// and back.
//
// # Words, residual, context
//
// A chunk is n words of 1, 2, 4 or 8 bytes, little-endian. The residual word
// is what takes the base word to the target word (package residual says how);
// zero means that the word is unchanged. The base words are context: encoder
// and decoder both have them, so a codec may choose its tables by them at no
// cost. Without a base all base words are zero.
//
// # Life of a codec
//
// An Encoder is planned once per tensor from sample blocks, fixes its tables
// and then encodes every chunk independently; a Decoder is made once per
// tensor from those tables. Both are safe for concurrent use and deterministic:
// the same input gives the same bytes on every machine.
package codec

import (
	"fmt"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// ID numbers a codec in the index format.
type ID uint8

// The codecs. Auto is never stored: it asks the packer to choose.
const (
	Auto   ID = 0
	Raw    ID = 1
	Zstd   ID = 2
	Elias  ID = 3
	Prefix ID = 4
	Rice   ID = 5
)

// Block is the words of one chunk. Base and Residual have the same length, a
// multiple of the word size, and are aligned to the word size.
type Block struct {
	Type     dtype.Type
	Base     []byte // base words; all zero where there is no base
	Residual []byte // residual words, zero where unchanged
}

// Words returns the number of words in the block.
func (b Block) Words() int { return len(b.Residual) / b.Type.WordBytes() }

// Codec makes encoders and decoders. Implementations are stateless.
type Codec interface {
	ID() ID
	// Plan fixes the tables of a tensor of so many words (0: as many as the
	// samples have) from samples of it, which may be empty. level is LevelFast,
	// LevelDefault or LevelSmall.
	Plan(t dtype.Type, samples []Block, words uint64, level Level) Encoder
	// NewDecoder validates tables that came from a file.
	NewDecoder(t dtype.Type, tables []byte) (Decoder, error)
}

// Level trades time for size.
type Level uint8

// The levels of Plan.
const (
	LevelDefault Level = 0
	LevelFast    Level = 1
	LevelSmall   Level = 2
)

// Encoder encodes the chunks of one tensor.
type Encoder interface {
	// Tables returns what the decoder needs to know of the whole tensor.
	Tables() []byte
	// ChunkWords returns how many words a chunk should have.
	ChunkWords() int
	// Encode appends the encoded block to dst and returns it with the number
	// of deltas it stores (changed words; all words where they are stored
	// densely). The number of bytes appended is a multiple of Align.
	Encode(dst []byte, b Block) (out []byte, deltas uint32, err error)
}

// Decoder decodes the chunks of one tensor.
type Decoder interface {
	// Decode fills b.Residual (every word of it) from data. It never reads
	// outside data and never writes outside b.Residual, whatever data holds;
	// data that no encoder writes is status.ErrCorrupt.
	Decode(b Block, data []byte, deltas uint32) error
}

// Rebuilder is implemented by decoders that come upon the target itself, and
// write it without going through residuals.
type Rebuilder interface {
	// Rebuild fills dst with base plus what Decode gives, modulo 2^W, under
	// the rules of Decode. dst may be base itself; what it holds after an
	// error is undefined.
	Rebuild(dst, base, data []byte, deltas uint32) error
}

// Align is the alignment in bytes of every chunk in a blob.
const Align = 4

var (
	names    = map[ID]string{Auto: "auto", Raw: "raw", Zstd: "zstd", Elias: "elias", Prefix: "prefix", Rice: "rice"}
	registry = map[ID]Codec{}
)

// String returns the name that users type.
func (id ID) String() string {
	if s, ok := names[id]; ok {
		return s
	}
	return fmt.Sprintf("codec %d", uint8(id))
}

// Parse returns the codec called name; "auto" is one of them.
func Parse(name string) (ID, error) {
	for id, s := range names {
		if s == name && (id == Auto || registry[id] != nil) {
			return id, nil
		}
	}
	return 0, status.Errorf(status.ErrArgument, "codec %q is unknown: expected auto or one of %v", name, All())
}

// Register makes a codec available; the codec packages call it from init.
func Register(c Codec) {
	if registry[c.ID()] != nil {
		panic("codec registered twice: " + c.ID().String())
	}
	registry[c.ID()] = c
}

// Get returns a registered codec.
func Get(id ID) (Codec, error) {
	if c := registry[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(status.ErrUnsupported, "%v is not in this build: expected one of %v", id, All())
}

// All returns the registered codecs in the order of their numbers.
func All() []ID {
	var ids []ID
	for id := Raw; id <= Rice; id++ {
		if registry[id] != nil {
			ids = append(ids, id)
		}
	}
	return ids
}
