package checkpoint

import (
	"context"
	"encoding/binary"
	"math"
	"sync"
	"unsafe"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/status"
)

// Parts is what the tensors of a source are made of, byte for byte as it is
// stored: for a reader that rebuilds tensors by itself, on a GPU. Parts are
// numbered; the source must outlive them. It is safe for concurrent use.
type Parts struct {
	rows   []partsRow
	parts  []*rawPart
	number map[partKey]int
}

// rawPart is a piece of memory or of a mapped file.
type rawPart struct {
	data     []byte
	nested   *quant.Nested          // if there are any, the part is the scales that they stand for
	n        uint64                 // bytes
	want     digest.Sum             // zero: not checked
	mismatch func(digest.Sum) error // what is wrong if the bytes have another one

	mu     sync.Mutex
	tree   *digest.Tree // of the pages that were read
	hashed []bool       // by page
	left   int          // pages that were not
	good   bool         // it has the digest
}

// partKey tells parts apart: the same memory, if the same is expected of it.
type partKey struct {
	at   *byte
	n    uint64
	want digest.Sum
}

type partsRow struct {
	Name      string          `json:"name"`
	Dtype     string          `json:"dtype"`
	Shape     []uint64        `json:"shape"`
	Bytes     uint64          `json:"bytes"`
	SameAs    string          `json:"same_as,omitempty"`
	Base      *partRef        `json:"base"`
	Quantised *partsQuantised `json:"quantised,omitempty"`
	Layers    []partLayer     `json:"layers"`
}

// partsQuantised is a quantised base: how it is, and the parts that it has.
type partsQuantised struct {
	Kind      string   `json:"kind"`
	Bits      uint8    `json:"bits"`
	GroupSize uint64   `json:"group_size"`
	ScaleType string   `json:"scale_dtype"`
	Packed    partRef  `json:"packed"`
	Scale     partRef  `json:"scale"`
	Zero      *partRef `json:"zero"`
	Code      *partRef `json:"code"` // float32
}

type partRef struct {
	Part  int    `json:"part"`
	Bytes uint64 `json:"bytes"`
}

type partLayer struct {
	Delta string  `json:"delta"`
	Index partRef `json:"index"`
	Blob  partRef `json:"blob"`
}

// Span is bytes [Offset, Offset+Bytes) of a part, and where they go.
type Span struct {
	Part, Offset, Bytes, To uint64
}

// Parts lists what the tensors of s are made of, in file order.
func (s *Source) Parts() (*Parts, error) {
	if err := s.layout(); err != nil {
		return nil, err
	}
	p := &Parts{number: map[partKey]int{}}
	first := map[any]string{} // the tensor that has a content first
	for _, t := range s.tensors {
		row := partsRow{Name: t.name, Dtype: t.desc.Type.String(), Shape: notNil(t.desc.Shape), Bytes: t.data.size(), Layers: []partLayer{}}
		key := contentKey(t.data)
		if same, ok := first[key]; ok && row.Bytes > 0 {
			row.SameAs = same
		} else if err := p.describe(&row, t.data, t.digest); err != nil {
			return nil, status.InTensor(err, t.name)
		} else {
			first[key] = t.name
		}
		p.rows = append(p.rows, row)
	}
	return p, nil
}

// contentKey identifies a content.
func contentKey(c content) any {
	if v, ok := c.(plain); ok {
		return partKey{at: unsafe.SliceData(v), n: uint64(len(v))}
	}
	return c // a pointer
}

// describe goes down the chain from c, which should have a digest, to where it
// starts.
func (p *Parts) describe(row *partsRow, c content, want digest.Sum) error {
	for {
		switch v := c.(type) {
		case *rebuilt:
			layer := partLayer{Delta: v.delta, Index: p.add(v.index, digest.Sum{}, nil), Blob: p.add(v.blob, digest.Sum{}, nil)}
			row.Layers = append([]partLayer{layer}, row.Layers...)
			if v.base == nil {
				return nil
			}
			c, want = v.base, v.r.BaseDigest()
		case *leaf:
			b, ok := v.content.(plain)
			if q, quantised := v.content.(*quantised); quantised {
				row.Quantised = p.quantised(q)
				return nil
			}
			if !ok {
				return status.Errorf(status.ErrUnsupported, "its base is made by deltas itself, expected all deltas in one chain")
			}
			ref := p.add(b, v.want, v.mismatch)
			row.Base = &ref
			return nil
		case plain:
			ref := p.add(v, want, func(got digest.Sum) error {
				return status.InTensor(status.Errorf(status.ErrTargetMismatch, "it is stored with digest %v, expected %v", got, want), row.Name)
			})
			row.Base = &ref
			return nil
		default:
			return status.Errorf(status.ErrInternal, "%T is no part", c)
		}
	}
}

// quantised adds the parts of a quantised base. That it is the right one, only
// the digest of what it stands for could tell, for which all of it would have
// to be dequantised.
func (p *Parts) quantised(q *quantised) *partsQuantised {
	out := &partsQuantised{
		Kind: q.scheme.Kind.String(), Bits: q.scheme.Bits, GroupSize: q.scheme.Group, ScaleType: q.scheme.Scale.String(),
		Packed: p.add(q.data.Packed, digest.Sum{}, nil),
	}
	if q.nested != nil {
		out.Scale = p.put(unsafe.SliceData(q.nested.Codes), &rawPart{nested: q.nested, n: 4 * uint64(len(q.nested.Codes))})
	} else {
		out.Scale = p.add(q.data.Scale, digest.Sum{}, nil)
	}
	if q.scheme.Zero {
		zero := p.add(q.data.Zero, digest.Sum{}, nil)
		out.Zero = &zero
	}
	if q.scheme.Kind == quant.Codebook {
		var book []byte
		for _, v := range q.scheme.Code {
			book = binary.LittleEndian.AppendUint32(book, math.Float32bits(v))
		}
		code := p.add(book, digest.Sum{}, nil)
		out.Code = &code
	}
	return out
}

func (p *Parts) add(data []byte, want digest.Sum, mismatch func(digest.Sum) error) partRef {
	pages := (len(data) + digest.PageBytes - 1) / digest.PageBytes
	return p.put(unsafe.SliceData(data), &rawPart{data: data, n: uint64(len(data)), want: want, mismatch: mismatch, left: pages})
}

// put adds a part, unless it is there; at tells where it begins.
func (p *Parts) put(at *byte, part *rawPart) partRef {
	key := partKey{at, part.n, part.want}
	i, ok := p.number[key]
	if !ok {
		i = len(p.parts)
		p.number[key] = i
		p.parts = append(p.parts, part)
	}
	return partRef{i, part.n}
}

// List returns, as JSON, {"tensors": [{"name", "dtype", "shape", "bytes",
// "same_as", "base", "quantised", "layers"}, ...]} in file order. A tensor with
// "same_as" has the bytes of that other one. Any other one starts from the bytes
// of "base" (a part), from what the parts of "quantised" stand for, or from
// nothing; to that "layers" are applied in order, each an index and a blob.
func (p *Parts) List() ([]byte, error) {
	return marshal(struct {
		Tensors []partsRow `json:"tensors"`
	}{notNil(p.rows)})
}

const gatherBytes = 1 << 20 // unit of work of one goroutine

// Gather copies spans to dst, on up to workers goroutines. Spans must not
// overlap in dst. Those of a "base" begin at a multiple of digest.PageBytes and
// end at one or at the end of the part; once all of it was read, its digest is
// compared with what the delta expects, and the call that read the last page
// fails if it differs. (Of a blob, chunks have checksums of their own.)
func (p *Parts) Gather(ctx context.Context, dst []byte, spans []Span, workers int) error {
	if err := checkWorkers(workers); err != nil {
		return err
	}
	var tasks []Span
	for i, s := range spans {
		if err := p.check(i, s, uint64(len(dst))); err != nil {
			return err
		}
		for off := uint64(0); off < s.Bytes; off += gatherBytes {
			tasks = append(tasks, Span{s.Part, s.Offset + off, min(gatherBytes, s.Bytes-off), s.To + off})
		}
	}
	err := plan.Each(ctx, workers, len(tasks), func(_ context.Context, i int) error {
		t := tasks[i]
		return p.parts[t.Part].read(dst[t.To:t.To+t.Bytes], t.Offset)
	})
	return atomicfile.Error(err)
}

func (p *Parts) check(i int, s Span, room uint64) error {
	if s.Part >= uint64(len(p.parts)) {
		return status.Errorf(status.ErrArgument, "span %d is of part %d, expected 0 to %d", i, s.Part, len(p.parts)-1)
	}
	size := p.parts[s.Part].n
	if s.Offset > size || s.Bytes > size-s.Offset {
		return status.Errorf(status.ErrArgument, "span %d is bytes %d and %d more of part %d, which has %d", i, s.Offset, s.Bytes, s.Part, size)
	}
	if s.To > room || s.Bytes > room-s.To {
		return status.Errorf(status.ErrShortBuffer, "span %d goes to byte %d and %d more of a destination of %d bytes", i, s.To, s.Bytes, room)
	}
	end := s.Offset + s.Bytes
	if p.parts[s.Part].nested != nil && (s.Offset%4 != 0 || s.Bytes%4 != 0) {
		return status.Errorf(status.ErrArgument, "span %d is bytes %d to %d of float32 scales, expected whole ones", i, s.Offset, end)
	}
	if p.parts[s.Part].checked() && (s.Offset%digest.PageBytes != 0 || end%digest.PageBytes != 0 && end != size) {
		return status.Errorf(status.ErrArgument, "span %d is bytes %d to %d of a tensor of %d, expected whole pages of %d", i, s.Offset, end, size, digest.PageBytes)
	}
	return nil
}

// checked reports whether the part must have a digest.
func (p *rawPart) checked() bool { return p.want != digest.Sum{} }

func (p *rawPart) copyTo(dst []byte, off uint64) {
	if p.nested != nil {
		p.nested.Expand(dst, off/4)
		return
	}
	copy(dst, p.data[off:])
}

// read copies bytes from off on and hashes what was copied.
func (p *rawPart) read(dst []byte, off uint64) error {
	if err := fault.Guard(func() error { p.copyTo(dst, off); return nil }); err != nil || !p.checked() {
		return err
	}
	p.mu.Lock()
	good := p.good
	if p.tree == nil {
		p.tree = digest.NewTree(p.n)
		p.hashed = make([]bool, p.left)
	}
	p.mu.Unlock()
	if good { // it is read once more
		return nil
	}
	p.tree.Add(off, dst)
	p.mu.Lock()
	defer p.mu.Unlock()
	for page := off / digest.PageBytes; page*digest.PageBytes < off+uint64(len(dst)); page++ {
		if !p.hashed[page] {
			p.hashed[page] = true
			p.left--
		}
	}
	if p.left > 0 {
		return nil
	}
	if got := p.tree.Sum(); got != p.want {
		return p.mismatch(got)
	}
	p.good = true
	return nil
}
