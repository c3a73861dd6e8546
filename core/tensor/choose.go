package tensor

import (
	"github.com/tpde-project/tpde/core/codec"
	_ "github.com/tpde-project/tpde/core/codec/all" // registers the codecs
	"github.com/tpde-project/tpde/core/word"
)

// A tensor is judged by a sixteenth of its words, but no less than 32 Ki and no
// more than 128 Ki, in this many runs, spread evenly; a tensor that is not
// larger is looked at whole.
const (
	sampleRuns     = 4
	sampleShare    = 16
	minSampleWords = 32 << 10
	maxSampleWords = 128 << 10
)

// recordCost is about what a chunk record takes in a file.
const recordCost = 9

// chooseEncoder plans the codec that the user asked for or, for codec.Auto,
// every codec, and takes the one whose trial on the samples is smallest. Ties
// go to the lower number.
func chooseEncoder(s source, o Options) (codec.Encoder, codec.ID, error) {
	all := sample(s)
	w := s.desc.Type.WordBytes()
	if o.Codec != codec.Auto {
		c, err := codec.Get(o.Codec)
		if err != nil {
			return nil, 0, err
		}
		return c.Plan(s.desc.Type, runs(all), o.Level), c.ID(), nil
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
		enc := c.Plan(s.desc.Type, runs(all), o.Level)
		size := len(enc.Tables())
		// In chunks of the size that they will have, so that what a chunk costs
		// counts as it will.
		words, err := chunkWords(s.desc, uint64(len(s.target)/w), enc, o)
		if err != nil {
			return nil, 0, err
		}
		for _, b := range split(all, int(words)*w) {
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

// sample returns the sampled runs, one behind the other, as one block.
func sample(s source) codec.Block {
	w := uint64(s.desc.Type.WordBytes())
	size := uint64(len(s.target))
	run := min(max(size/w/sampleShare, minSampleWords), maxSampleWords) / sampleRuns * w
	starts := []uint64{0}
	if size > sampleRuns*run {
		for i := range uint64(sampleRuns - 1) {
			starts = append(starts, (size-run)/w*(i+1)/(sampleRuns-1)*w)
		}
	} else {
		run = size
	}
	all := codec.Block{Type: s.desc.Type}
	all.Base = word.Bytes(make([]uint64, (uint64(len(starts))*run+7)/8))[:0]
	all.Residual = word.Bytes(make([]uint64, (uint64(len(starts))*run+7)/8))[:0]
	buf := getScratch()
	defer putScratch(buf)
	for _, from := range starts {
		b, _ := s.block(buf, from, from+run)
		all.Base = append(all.Base, b.Base...)
		all.Residual = append(all.Residual, b.Residual...)
	}
	return all
}

// runs cuts a block into the runs that it was sampled in, about.
func runs(all codec.Block) []codec.Block {
	w := all.Type.WordBytes()
	return split(all, (all.Words()+sampleRuns-1)/sampleRuns*w)
}

// split cuts a block into blocks of at most n bytes.
func split(b codec.Block, n int) []codec.Block {
	var out []codec.Block
	for from := 0; from < len(b.Residual); from += n {
		to := min(from+n, len(b.Residual))
		out = append(out, codec.Block{Type: b.Type, Base: b.Base[from:to], Residual: b.Residual[from:to]})
	}
	return out
}
