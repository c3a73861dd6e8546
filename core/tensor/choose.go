package tensor

import (
	"context"

	"github.com/tpde-project/tpde/core/codec"
	_ "github.com/tpde-project/tpde/core/codec/all" // registers the codecs
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/residual"
)

// A codec is planned from a quarter of a tensor's words, but no less than 64 Ki
// and no more than 256 Ki, in this many runs, spread evenly; a tensor that is
// not larger is looked at whole. Codecs are compared on a sixteenth of that.
const (
	sampleRuns     = 16
	sampleShare    = 4
	minSampleWords = 64 << 10
	maxSampleWords = 256 << 10
	trialShare     = 16
	minTrialWords  = 8 << 10
)

// manyWords is from where on rice makes no less than prefix of densely changed
// words, within half a percent.
const manyWords = 16 << 10

// recordCost is about what a chunk record takes in a file.
const recordCost = 9

// tried are the codecs that codec.Auto compares. Elias is not among them: rice
// has the same model of sparse changes without the cost of 32 bit strings a
// chunk, and was smaller on every tensor that was looked at.
var tried = []codec.ID{codec.Raw, codec.Zstd, codec.Rice, codec.Prefix}

// chooseEncoder plans the codec that the user asked for or, for codec.Auto,
// the one that is smallest in a trial.
func chooseEncoder(ctx context.Context, s source, o Options) (codec.Encoder, codec.ID, error) {
	room := getScratch()
	defer putScratch(room)
	all, err := sample(s, room)
	if err != nil {
		return nil, 0, err
	}
	if o.Codec == codec.Auto {
		return choose(ctx, s, all, o)
	}
	enc, err := planned(s, all, o.Codec, o)
	return enc, o.Codec, err
}

// planned returns the encoder that a codec plans from samples.
func planned(s source, samples codec.Block, id codec.ID, o Options) (codec.Encoder, error) {
	c, err := codec.Get(id)
	if err != nil {
		return nil, err
	}
	return c.Plan(s.desc.Type, runs(samples), s.words(), o.Level), nil
}

// choose returns the codec that is smallest on a part of the sample, but prefix
// if that is nearly as small as rice: it packs and unpacks densely changed
// tensors several times faster. Ties go to the one that is tried first.
func choose(ctx context.Context, s source, all codec.Block, o Options) (codec.Encoder, codec.ID, error) {
	room := getScratch()
	defer putScratch(room)
	trial := thin(all, room)
	changed := residual.CountChanged(trial.Residual, s.desc.Type.WordBytes())
	// A code for every word takes a bit of it, which is more than rice needs for
	// few changes. Of many changes in many words rice makes no less than prefix.
	sparse := changed < trial.Words()/8
	dense := changed > trial.Words()/2 && all.Words() >= manyWords

	var candidates []candidate
	for _, id := range tried {
		samples := trial
		switch {
		case id == codec.Prefix && sparse || id == codec.Rice && dense:
			continue
		case id == codec.Prefix && dense || id == codec.Rice && sparse:
			samples = all // it is most likely the one: planned once and for all
		}
		candidates = append(candidates, candidate{id: id, samples: samples})
	}
	err := plan.Each(ctx, o.Workers, len(candidates), func(_ context.Context, i int) (err error) {
		c := &candidates[i]
		if c.enc, err = planned(s, c.samples, c.id, o); err == nil {
			c.size, err = trialSize(s, trial, c.enc, o)
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	best := candidates[0]
	for _, c := range candidates {
		if c.size < best.size {
			best = c
		}
	}
	nearly := best.size + best.size/128
	if o.Level == codec.LevelFast {
		nearly += best.size / 32
	}
	for _, c := range candidates {
		if best.id == codec.Rice && c.id == codec.Prefix && c.size <= nearly {
			best = c
		}
	}
	if best.samples.Words() == all.Words() {
		return best.enc, best.id, nil
	}
	enc, err := planned(s, all, best.id, o)
	return enc, best.id, err
}

// candidate is a codec that is tried.
type candidate struct {
	id      codec.ID
	samples codec.Block // that it is planned from
	enc     codec.Encoder
	size    int // of the trial
}

// trialSize returns what an encoder makes of the trial, as part of a tensor.
func trialSize(s source, trial codec.Block, enc codec.Encoder, o Options) (int, error) {
	w := s.desc.Type.WordBytes()
	// In chunks of the size that they will have, so that what a chunk costs
	// counts as it will.
	words, err := chunkWords(s.desc, s.words(), enc, o)
	if err != nil {
		return 0, err
	}
	share := max(1, int(s.words())/max(trial.Words(), 1)) // of the tensor's tables
	size := len(enc.Tables()) / share
	for _, b := range split(trial, int(words)*w) {
		out, _, err := enc.Encode(nil, b)
		if err != nil {
			return 0, err
		}
		size += len(out) + recordCost
	}
	return size, nil
}

// thin returns the first part of each run of a sample, one behind the other, in
// room.
func thin(all codec.Block, room *scratch) codec.Block {
	w := all.Type.WordBytes()
	words := all.Words()
	keep := max(words/trialShare, minTrialWords)
	if keep >= words {
		return all
	}
	out := codec.Block{Type: all.Type}
	out.Base, out.Residual = resize(&room.base, keep*w)[:0], resize(&room.res, keep*w)[:0]
	for _, r := range runs(all) {
		n := min(keep/sampleRuns*w, len(r.Residual))
		out.Base = append(out.Base, r.Base[:n]...)
		out.Residual = append(out.Residual, r.Residual[:n]...)
	}
	return out
}

// sample returns the sampled runs, one behind the other, as one block in room.
func sample(s source, room *scratch) (codec.Block, error) {
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
	total := len(starts) * int(run)
	all.Base, all.Residual = resize(&room.base, total)[:0], resize(&room.res, total)[:0]
	buf := getScratch()
	defer putScratch(buf)
	for _, from := range starts {
		b, _, err := s.block(buf, from, from+run)
		if err != nil {
			return all, err
		}
		all.Base = append(all.Base, b.Base...)
		all.Residual = append(all.Residual, b.Residual...)
	}
	return all, nil
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
