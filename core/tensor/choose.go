package tensor

import (
	"github.com/tpde-project/tpde/core/codec"
	_ "github.com/tpde-project/tpde/core/codec/all" // registers the codecs
)

// A tensor is judged by this many runs of this many words, spread evenly; a
// tensor that is not larger is looked at whole. The runs are as long as a
// typical chunk, so that what a chunk costs counts as it will.
const (
	sampleRuns     = 4
	sampleRunWords = 32 << 10
)

// recordCost is about what a chunk record takes in a file.
const recordCost = 9

// chooseEncoder plans the codec that the user asked for or, for codec.Auto,
// every codec, and takes the one whose trial on the samples is smallest. Ties
// go to the lower number.
func chooseEncoder(s source, o Options) (codec.Encoder, codec.ID, error) {
	samples := sample(s)
	if o.Codec != codec.Auto {
		c, err := codec.Get(o.Codec)
		if err != nil {
			return nil, 0, err
		}
		return c.Plan(s.desc.Type, samples, o.Level), c.ID(), nil
	}
	var best codec.Encoder
	var bestID codec.ID
	var bestSize int
	var buf []byte
	for _, id := range codec.All() {
		c, err := codec.Get(id)
		if err != nil {
			return nil, 0, err
		}
		enc := c.Plan(s.desc.Type, samples, o.Level)
		size := len(enc.Tables())
		for _, b := range samples {
			out, _, err := enc.Encode(buf[:0], b)
			if err != nil {
				return nil, 0, err
			}
			size += len(out) + recordCost
			buf = out
		}
		if best == nil || size < bestSize {
			best, bestID, bestSize = enc, id, size
		}
	}
	return best, bestID, nil
}

// sample computes the residual of the sampled runs.
func sample(s source) []codec.Block {
	w := uint64(s.desc.Type.WordBytes())
	words := uint64(len(s.target)) / w
	runs, runWords := uint64(sampleRuns), uint64(sampleRunWords)
	if words <= runs*runWords {
		runs = (words + runWords - 1) / runWords
	}
	blocks := make([]codec.Block, 0, runs)
	for i := range runs {
		first := i * runWords
		if words > runs*runWords {
			first = (words - runWords) / (runs - 1) * i
		}
		b, _ := s.block(new(scratch), first*w, min(first+runWords, words)*w)
		blocks = append(blocks, b)
	}
	return blocks
}
