package zstd

import (
	"sync"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/codec"
)

// window is how far back matches may lie. Planes are hardly ever longer.
const window = 256 << 10

// Compressors and decompressors are large and slow to make. One serves one
// goroutine at a time; the pools hold as many as there are of those.
var (
	matchers = map[codec.Level]*sync.Pool{
		codec.LevelFast:    matcherPool(zstd.SpeedFastest),
		codec.LevelDefault: matcherPool(zstd.SpeedDefault),
		codec.LevelSmall:   matcherPool(zstd.SpeedBestCompression),
	}
	decompressors = sync.Pool{New: func() any {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			panic(err) // the options are constants
		}
		return d
	}}
	works = sync.Pool{New: func() any { return new(work) }}
)

func matcherPool(level zstd.EncoderLevel) *sync.Pool {
	return &sync.Pool{New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
			zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithWindowSize(window))
		if err != nil {
			panic(err) // the options are constants
		}
		return e
	}}
}

// work is the memory that coding one chunk needs.
type work struct {
	huff      huff0.Scratch
	planeMem  []byte
	wordMem   []byte // values in words
	numbers   []uint32
	planes    [][]byte
	candidate []byte
	other     []byte // the chunk in the other layout
}
