package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// quantised is a tensor that is stored in few bits and reads as what its codes
// stand for (core/quant). It is dequantised where it is read, and never kept.
type quantised struct {
	desc   tensor.Desc
	n      uint64 // elements
	scheme quant.Scheme
	data   quant.Data
	nested *quant.Nested // gives the scales; nil where data has them
	layout string        // for people: int4, nf4, ...
}

func (c *quantised) size() uint64 { return c.n * uint64(c.desc.Type.WordBytes()) }

// step is that of codes that begin and end with a byte.
func (c *quantised) step() uint64 { return 8 * uint64(c.desc.Type.WordBytes()) }

func (c *quantised) view(off, n uint64, buf *[]byte) ([]byte, error) {
	p := grow(buf, n)
	w := uint64(c.desc.Type.WordBytes())
	first, count := off/w, n/w
	if c.nested == nil {
		return p, quant.DequantizeRange(p, c.desc.Type, &c.scheme, &c.data, c.n, first)
	}
	// Only the scales that are needed are expanded: as a tensor of its own.
	group := c.scheme.Group
	from, to := first/group*group, c.n
	if end := first + count; end < to/group*group {
		to = (end + group - 1) / group * group
	}
	scales := scalePool.Get().(*[]byte)
	defer scalePool.Put(scales)
	d := quant.Data{
		Packed: c.data.Packed[from/2 : (to+1)/2], // 4 bits, and groups are even
		Scale:  grow(scales, 4*((to-from+group-1)/group)),
	}
	c.nested.Expand(d.Scale, from/group)
	return p, quant.DequantizeRange(p, c.desc.Type, &c.scheme, &d, to-from, first-from)
}

var scalePool = sync.Pool{New: func() any { return new([]byte) }}

// check validates what was read from a file, with sizes that are not trusted.
func (c *quantised) check() error {
	if !quantisable(c.desc.Type) {
		return status.Errorf(status.ErrUnsupported, "a quantised tensor of %v elements, expected F32, F16 or BF16", c.desc.Type)
	}
	bytes, err := c.desc.Type.Bytes(c.desc.Shape)
	if err != nil {
		return err
	}
	if len(c.desc.Shape) > safetensors.MaxDims {
		return status.Errorf(status.ErrLimit, "%d dimensions, expected at most %d", len(c.desc.Shape), safetensors.MaxDims)
	}
	c.n = bytes / uint64(c.desc.Type.WordBytes())
	if c.nested == nil {
		return c.scheme.Check(&c.data, c.n, c.desc.Type)
	}
	if err := c.scheme.Validate(); err != nil {
		return err
	}
	if c.scheme.Group%2 != 0 {
		return status.Errorf(status.ErrUnsupported, "groups of %d elements with nested scales, expected an even number", c.scheme.Group)
	}
	if have, want := uint64(len(c.data.Packed)), c.scheme.PackedBytes(c.n); have != want {
		return status.Errorf(status.ErrCorrupt, "packed codes have %d bytes, expected %d for %d elements", have, want, c.n)
	}
	return c.nested.Validate(c.scheme.Groups(c.n))
}

// storedBytes is what the tensor takes in its file.
func (c *quantised) storedBytes() uint64 {
	n := uint64(len(c.data.Packed) + len(c.data.Scale) + len(c.data.Zero))
	if c.nested != nil {
		n += uint64(len(c.nested.Codes) + len(c.nested.Scale))
	}
	return n
}

// quantisable reports whether core/quant has values of type t.
func quantisable(t dtype.Type) bool { return t == dtype.F32 || t == dtype.F16 || t == dtype.BF16 }

// Names in a file of quantised tensors (FORMAT.md).
const (
	quantisedFormat = "tpde.base"
	keyQuantised    = "tpde.quantized_tensors"
	packedSuffix    = ".packed"
	scaleSuffix     = ".scale"
	zeroSuffix      = ".zero"
	codeSuffix      = ".code"
)

// ElementType says as which type the tensor of a name is to be read, Invalid
// to leave it to what is stored.
type ElementType func(name string) dtype.Type

// typesOf returns the element types of the tensors of s.
func typesOf(s *Source) ElementType {
	return func(name string) dtype.Type {
		if t := s.byName[name]; t != nil {
			return t.desc.Type
		}
		return dtype.Invalid
	}
}

// OpenQuantised opens a safetensors file, or a folder of them, that holds
// quantised tensors, ours or those of bitsandbytes: its tensors are what the
// quantised ones stand for, as elements of the given types, and all others.
func OpenQuantised(path string, as ElementType) (*Source, error) {
	s, err := Open(path)
	if err != nil {
		return nil, err
	}
	if err := s.dequantise(as); err != nil {
		return nil, errors.Join(inFile(err, path), s.Close())
	}
	return s, nil
}

// dequantise replaces the parts of quantised tensors by what they stand for.
// The files keep the parts.
func (s *Source) dequantise(as ElementType) error {
	r := &dequantiser{s: s, as: as, part: map[*tensorInfo]bool{}, made: map[*tensorInfo]*tensorInfo{}}
	for _, f := range s.files {
		if f.header == nil {
			continue
		}
		if err := r.ours(f); err != nil {
			return err
		}
		if err := r.bitsandbytes(f); err != nil {
			return err
		}
	}
	var tensors []*tensorInfo
	byName := map[string]*tensorInfo{}
	for _, t := range s.tensors {
		if made := r.made[t]; made != nil {
			t = made
		} else if r.part[t] {
			continue
		}
		if byName[t.name] != nil {
			return status.InTensor(status.Errorf(status.ErrCorrupt, "it is there quantised and as it is"), t.name)
		}
		byName[t.name] = t
		tensors = append(tensors, t)
	}
	s.tensors, s.byName = tensors, byName
	return nil
}

// dequantiser finds the quantised tensors of a source.
type dequantiser struct {
	s    *Source
	as   ElementType
	part map[*tensorInfo]bool        // that are no tensors of their own
	made map[*tensorInfo]*tensorInfo // in the place of this part
}

// take returns the bytes of a part, nil if there is none. Its type must be one
// of types, if any are given.
func (r *dequantiser) take(name string, types ...dtype.Type) (*tensorInfo, []byte, error) {
	t := r.s.byName[name]
	if t == nil {
		return nil, nil, nil
	}
	ok := len(types) == 0
	for _, typ := range types {
		ok = ok || t.desc.Type == typ
	}
	if !ok {
		return nil, nil, status.Errorf(status.ErrUnsupported, "%s is %v, expected %v", name, t.desc.Type, types)
	}
	if r.part[t] {
		return nil, nil, status.Errorf(status.ErrCorrupt, "%s is part of two quantised tensors", name)
	}
	r.part[t] = true
	return t, t.data.(plain), nil
}

// require is take for a part that has to be there.
func (r *dequantiser) require(name string, types ...dtype.Type) (*tensorInfo, []byte, error) {
	t, data, err := r.take(name, types...)
	if t == nil && err == nil {
		err = status.Errorf(status.ErrCorrupt, "%s is missing", name)
	}
	return t, data, err
}

// put makes c, whose codes are the given part, the tensor called name.
func (r *dequantiser) put(name string, codes *tensorInfo, c *quantised) error {
	if t := r.as(name); quantisable(t) {
		c.desc.Type = t
	}
	if err := c.check(); err != nil {
		if errors.Is(err, status.ErrArgument) { // of core/quant, which does not know that this is a file
			err = status.Errorf(status.ErrCorrupt, "%v", err)
		}
		return err
	}
	r.made[codes] = &tensorInfo{name: name, desc: c.desc, data: c}
	return nil
}

// ours finds the tensors that the metadata of f describe.
func (r *dequantiser) ours(f *fileInfo) error {
	text, ok := f.metadata[keyQuantised]
	if !ok {
		return nil
	}
	if v := f.metadata[keyVersion]; v != formatVersion {
		return status.Errorf(status.ErrVersion, "%s has version %q, this build reads version %s", f.path, v, formatVersion)
	}
	var table map[string]quant.Description
	if err := json.Unmarshal([]byte(text), &table); err != nil {
		return status.Errorf(status.ErrCorrupt, "%s: its metadata %s are malformed: %v", f.path, keyQuantised, err)
	}
	for _, name := range sortedKeys(table) {
		d := table[name]
		if err := r.described(f.scope+name, &d); err != nil {
			return status.InTensor(err, f.scope+name)
		}
	}
	return nil
}

func (r *dequantiser) described(name string, d *quant.Description) error {
	scheme, typ, err := d.Scheme()
	if err != nil {
		return err
	}
	c := &quantised{desc: tensor.Desc{Type: typ, Shape: d.Shape}, scheme: scheme}
	codes, packed, err := r.require(name+packedSuffix, dtype.U8)
	if err != nil {
		return err
	}
	scale, scales, err := r.require(name+scaleSuffix, dtype.F32, dtype.F16, dtype.BF16)
	if err != nil {
		return err
	}
	zero, zeros, err := r.take(name+zeroSuffix, dtype.U8)
	if err != nil {
		return err
	}
	c.scheme.Scale, c.scheme.Zero = scale.desc.Type, zero != nil
	c.data = quant.Data{Packed: packed, Scale: scales, Zero: zeros}
	if c.scheme.Kind == quant.Codebook {
		_, code, err := r.require(name+codeSuffix, dtype.F32)
		if err != nil {
			return err
		}
		if err := readFloats(c.scheme.Code[:], code); err != nil {
			return err
		}
	}
	c.layout = strings.ReplaceAll(fmt.Sprintf("%s%d", d.Kind, d.Bits), "linear", "int")
	return r.put(name, codes, c)
}
