// Package rice codes which words changed by their distance in rank, with
// Golomb-Rice codes whose parameters depend on the base, and how they changed
// by one sign bit or an interval code. It is the codec for sparse changes.
// FORMAT.md beside this file specifies the bytes.
//
// What makes it small: how often a weight changes depends on its exponent,
// which the decoder reads off the base. Words whose bases change about equally
// often form a class, and the distance from one changed word to the next counts
// only unchanged words of the same class. Within a class changes are nearly
// independent, so the distances are geometric, and a Golomb-Rice code is nearly
// ideal for those: the information that the base gives is used without an
// arithmetic coder. Where nearly every word changes, each has a value instead.
//
// What makes it parallel: a chunk is a sequence of sections whose starts follow
// from a few counts. Low bits and signs have fixed widths, all quotients lie in
// one bitmap, and the values are dealt to up to 32 lanes.
//
// # How it is taken apart
//
// tables.go has what holds for a tensor; plan.go chooses it from what stats.go
// counts, with the interval codes of share.go; classify.go maps base words to
// classes. An encoder finds the events, which are the words that a chunk codes
// (scan.go), and writes the sections (encode.go, head.go, exceptions.go). A
// decoder expands distances to ranks (ranks.go), finds the words of those ranks
// (locate.go), reads their values (values.go), and then either fills a residual
// or patches a copy of the base (decode.go). groups_amd64.s scans and locates 64
// words at a time on machines with AVX-512; the plain Go beside it does the
// same, and all of it where there is none, or with the build tag purego.
//
// Sources: S. W. Golomb, "Run-length encodings", 1966; R. F. Rice, "Some
// practical universal noiseless coding techniques", 1979.
package rice

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
)

const (
	maxContexts = 64
	maxGaps     = 7       // gap classes
	dense       = maxGaps // the class in which every word has a value
	classes     = maxGaps + 1
	maxKeyBits  = 12
	maxLowBits  = 24 // of a Golomb-Rice code
	maxOrder    = 24 // of the exp-Golomb code of a count
	maxMean     = 1 << 25
	maxLanes    = 32
	laneValues  = 64      // of a lane at most, unless that takes more than maxLanes
	shortWords  = 1 << 16 // positions in chunks of at most so many words take 2 bytes
)

func init() { codec.Register(factory{}) }

type factory struct{}

func (factory) ID() codec.ID { return codec.Rice }

func (factory) Plan(t dtype.Type, samples []codec.Block, words uint64, level codec.Level) codec.Encoder {
	switch t.WordBytes() {
	case 1:
		return newEncoder[uint8](planTables[uint8](t, samples, words, level))
	case 2:
		return newEncoder[uint16](planTables[uint16](t, samples, words, level))
	case 4:
		return newEncoder[uint32](planTables[uint32](t, samples, words, level))
	default:
		return newEncoder[uint64](planTables[uint64](t, samples, words, level))
	}
}

func (factory) NewDecoder(t dtype.Type, data []byte) (codec.Decoder, error) {
	tab, err := parseTables(t, data)
	if err != nil {
		return nil, err
	}
	switch t.WordBytes() {
	case 1:
		return newDecoder[uint8](tab), nil
	case 2:
		return newDecoder[uint16](tab), nil
	case 4:
		return newDecoder[uint32](tab), nil
	default:
		return newDecoder[uint64](tab), nil
	}
}
