package checkpoint

import (
	"context"
	"strings"
	"sync"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// Which tensors get a quantised base, and how it is written.
const (
	// minQuantised is the number of elements from which on a base is worth its
	// two entries in the header and a launch.
	minQuantised = 1 << 14
	// quantiseElements is about the unit of work of one goroutine.
	quantiseElements = 1 << 20
)

// quantiser writes the quantised base of a target.
type quantiser struct {
	bits       uint8
	group      uint64
	embeddings string
	workers    int
	p          *Progress

	target *Source
	s      *store
	table  map[string]quant.Description // by name
	codes  map[digest.Sum][]*tensorInfo // with these codes and scales
}

// run writes the base of target to path, a safetensors file or a set, unless
// no tensor gets one.
func (q *quantiser) run(ctx context.Context, path string, maxShardBytes uint64) error {
	q.s = newStore(path, maxShardBytes)
	q.s.format = quantisedFormat
	defer q.s.Close()
	q.table = map[string]quant.Description{}
	q.codes = map[digest.Sum][]*tensorInfo{}
	for _, t := range q.chosen() {
		if err := q.quantise(ctx, t); err != nil {
			return status.InTensor(err, t.name)
		}
	}
	if q.s.empty() {
		return nil
	}
	_, err := q.s.publish(ctx, q.metadata, false)
	return err
}

// chosen returns the tensors that get a base.
func (q *quantiser) chosen() []*tensorInfo {
	model := func(f *fileInfo) bool { return f.header != nil && f.scope == "" }
	anyModel := false
	for _, f := range q.target.files {
		anyModel = anyModel || model(f)
	}
	embeddings := q.embeddings == EmbeddingsBase || q.embeddings == EmbeddingsAuto && !q.hasHead()
	var list []*tensorInfo
	for _, f := range q.target.files {
		if anyModel && !model(f) { // copies in another layout, say, that lie beside the model
			continue
		}
		for _, t := range f.tensors {
			n := t.data.size() / uint64(t.desc.Type.WordBytes())
			if quantisable(t.desc.Type) && len(t.desc.Shape) >= 2 && n >= minQuantised && (embeddings || !isEmbedding(t.name)) {
				list = append(list, t)
			}
		}
	}
	return list
}

// Names of modules, the last part of their path.
var (
	embeddingNames = map[string]bool{
		"embed_tokens": true, "wte": true, "wpe": true, "embed_in": true, "tok_embeddings": true, "shared": true,
		"word_embeddings": true, "position_embeddings": true, "token_type_embeddings": true, "embed_positions": true,
		"embeddings": true, "token_embedding": true, "position_embedding": true, "embed": true,
	}
	headNames = map[string]bool{"lm_head": true, "embed_out": true, "output": true, "output_projection": true}
)

// module returns the last part of the path of the module that has a weight, ""
// for other names.
func module(name string) string {
	path, ok := strings.CutSuffix(name, ".weight")
	if !ok {
		return ""
	}
	return path[strings.LastIndexAny(path, ".:")+1:]
}

func isEmbedding(name string) bool { return embeddingNames[module(name)] }

// hasHead reports whether the target has an output matrix of its own; if not,
// the embedding serves as one.
func (q *quantiser) hasHead() bool {
	for _, t := range q.target.tensors {
		if path, _ := strings.CutSuffix(t.name, ".weight"); headNames[module(t.name)] && strings.Count(path, ".") <= 1 {
			return true
		}
	}
	return false
}

// pieceBuffers are what a goroutine quantises into and from.
type pieceBuffers struct{ source, packed, scale []byte }

var piecePool = sync.Pool{New: func() any { return new(pieceBuffers) }}

// quantise adds the codes and scales of t to the store, piece by piece.
func (q *quantiser) quantise(ctx context.Context, t *tensorInfo) error {
	word := uint64(t.desc.Type.WordBytes())
	n := t.data.size() / word
	scheme := quant.Scheme{Kind: quant.Linear, Bits: q.bits, Group: q.group, Scale: dtype.BF16}
	packedBytes, scaleBytes := scheme.PackedBytes(n), scheme.ScaleBytes(n)
	sh, err := q.s.room(packedBytes + scaleBytes)
	if err != nil {
		return err
	}
	packedAt := sh.bytes
	scaleAt := packedAt + packedBytes
	// A piece is whole groups, whose codes fill whole words.
	piece := max(1, quantiseElements/(32*q.group)) * 32 * q.group
	sums := make([]digest.Sum, (n+piece-1)/piece)
	err = plan.Each(ctx, q.workers, len(sums), func(ctx context.Context, i int) error {
		from := uint64(i) * piece
		count := min(piece, n-from)
		b := piecePool.Get().(*pieceBuffers)
		defer piecePool.Put(b)
		values, err := t.data.view(from*word, count*word, &b.source)
		if err != nil {
			return err
		}
		d := quant.Data{Packed: grow(&b.packed, scheme.PackedBytes(count)), Scale: grow(&b.scale, scheme.ScaleBytes(count))}
		if err := quant.Quantize(ctx, &d, &scheme, values, t.desc.Type, 1); err != nil {
			return err
		}
		packed, scale := digest.Of(d.Packed, 1), digest.Of(d.Scale, 1)
		sums[i] = digest.Of(append(packed[:], scale[:]...), 1)
		if _, err := sh.data.WriteAt(d.Packed, int64(packedAt+from*uint64(q.bits)/8)); err != nil {
			return atomicfile.Error(err)
		}
		_, err = sh.data.WriteAt(d.Scale, int64(scaleAt+scheme.ScaleBytes(from)))
		q.p.add(count * word)
		return atomicfile.Error(err)
	})
	if err != nil {
		return err
	}
	// Blobs are aligned to words of 4 bytes, which is what kernels want of codes.
	sh.append(t.name+packedSuffix, tensor.Desc{Type: dtype.U8, Shape: []uint64{packedBytes}}, packedBytes, true)
	sh.append(t.name+scaleSuffix, tensor.Desc{Type: dtype.BF16, Shape: []uint64{scaleBytes / 2}}, scaleBytes, false)
	if same, err := q.known(t, sums); err != nil || same {
		return joinUndo(err, q.s.undo(2))
	}
	q.table[t.name] = scheme.Describe(notNil(t.desc.Shape), t.desc.Type)
	return nil
}

func joinUndo(err, undo error) error {
	if err != nil {
		return err
	}
	return undo
}

// known reports whether the target has the bytes of t under a name before it:
// they are stored once in a delta, and need no second base.
func (q *quantiser) known(t *tensorInfo, sums []digest.Sum) (bool, error) {
	var all []byte
	for i := range sums {
		all = append(all, sums[i][:]...)
	}
	key := digest.Of(all, 1)
	for _, other := range q.codes[key] {
		if other.desc.Type != t.desc.Type {
			continue
		}
		if same, err := equalContents(t.data, other.data); err != nil || same {
			return same, err
		}
	}
	q.codes[key] = append(q.codes[key], t)
	return false, nil
}

// metadata returns __metadata__ of a file of the base.
func (q *quantiser) metadata(sh *shard) []safetensors.Pair {
	table := map[string]quant.Description{}
	for _, p := range sh.parts {
		if name, ok := strings.CutSuffix(p.name, packedSuffix); ok {
			table[name] = q.table[name]
		}
	}
	text, _ := marshal(table) // of strings and numbers
	return []safetensors.Pair{
		{Key: "format", Value: quantisedFormat},
		{Key: keyVersion, Value: formatVersion},
		{Key: keyTool, Value: Tool},
		{Key: keyQuantised, Value: string(text)},
	}
}
