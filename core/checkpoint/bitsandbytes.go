package checkpoint

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/quant"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// The layouts of bitsandbytes in safetensors files; core/quant/FORMAT.md says
// where they were read.
const (
	bnbState  = ".quant_state.bitsandbytes__"
	bnbScale8 = ".SCB"
)

// bnbQuantState is the JSON of a quant_state tensor.
type bnbQuantState struct {
	QuantType    string   `json:"quant_type"`
	Blocksize    uint64   `json:"blocksize"`
	Dtype        string   `json:"dtype"` // as torch calls it
	Shape        []uint64 `json:"shape"`
	NestedBlock  uint64   `json:"nested_blocksize"`
	NestedDtype  string   `json:"nested_dtype"`
	NestedOffset float64  `json:"nested_offset"`
}

var torchTypes = map[string]dtype.Type{"float32": dtype.F32, "float16": dtype.F16, "bfloat16": dtype.BF16}

// bitsandbytes finds the tensors that f holds in layouts of bitsandbytes.
func (r *dequantiser) bitsandbytes(f *fileInfo) error {
	for _, t := range f.tensors {
		if name, kind, ok := strings.Cut(t.name, bnbState); ok {
			if err := r.bnb4(name, kind, t); err != nil {
				return status.InTensor(err, name)
			}
		}
		if module, ok := strings.CutSuffix(t.name, bnbScale8); ok && t.desc.Type == dtype.F32 {
			if err := r.bnb8(module); err != nil {
				return status.InTensor(err, module+".weight")
			}
		}
	}
	return nil
}

// bnb4 is an NF4 or FP4 weight: the codes are stored under its own name.
func (r *dequantiser) bnb4(name, kind string, state *tensorInfo) error {
	_, text, err := r.require(state.name, dtype.U8)
	if err != nil {
		return err
	}
	var q bnbQuantState
	if err := json.Unmarshal(text, &q); err != nil {
		return status.Errorf(status.ErrCorrupt, "its quant_state is malformed: %v", err)
	}
	if q.QuantType != kind || kind != "nf4" && kind != "fp4" {
		return status.Errorf(status.ErrUnsupported, "its quant_state is of %q and called %q, expected nf4 or fp4", q.QuantType, kind)
	}
	typ, ok := torchTypes[q.Dtype]
	if !ok {
		return status.Errorf(status.ErrUnsupported, "its dtype is %q, expected float32, float16 or bfloat16", q.Dtype)
	}
	c := &quantised{
		desc:   tensor.Desc{Type: typ, Shape: q.Shape},
		scheme: quant.Scheme{Kind: quant.Codebook, Bits: 4, Group: q.Blocksize, Scale: dtype.F32, Code: quant.NF4},
		layout: kind,
	}
	codes, packed, err := r.require(name) // of any type: quant_storage
	if err != nil {
		return err
	}
	n, err := dtype.U8.Bytes(q.Shape)
	if err != nil {
		return err
	}
	// Storage of wider words may be longer than the codes.
	want := c.scheme.PackedBytes(n)
	if have := uint64(len(packed)); have < want || have-want >= 8 {
		return status.Errorf(status.ErrCorrupt, "it has %d bytes of codes, expected %d for shape %v", have, want, q.Shape)
	}
	c.data.Packed = packed[:want]
	code, codeBytes, err := r.take(name+".quant_map", dtype.F32)
	if err != nil {
		return err
	}
	switch {
	case code != nil:
		if err := readFloats(c.scheme.Code[:], codeBytes); err != nil {
			return err
		}
	case kind != "nf4":
		return status.Errorf(status.ErrCorrupt, "%s.quant_map is missing", name)
	}
	absmax, scales, err := r.require(name+".absmax", dtype.F32, dtype.U8)
	if err != nil {
		return err
	}
	if c.data.Scale = scales; absmax.desc.Type == dtype.U8 {
		c.data.Scale = nil
		c.layout += " double"
		if c.nested, err = r.bnbNested(name, &q, scales); err != nil {
			return err
		}
	}
	return r.put(name, codes, c)
}

// bnbNested reads what double quantisation makes of absmax.
func (r *dequantiser) bnbNested(name string, q *bnbQuantState, codes []byte) (*quant.Nested, error) {
	if q.NestedDtype != "float32" {
		return nil, status.Errorf(status.ErrUnsupported, "its nested_dtype is %q, expected float32", q.NestedDtype)
	}
	offset := float32(q.NestedOffset) // it was a float32 when it was written
	x := &quant.Nested{Codes: codes, Block: q.NestedBlock, Offset: offset}
	var err error
	if _, x.Scale, err = r.require(name+".nested_absmax", dtype.F32); err != nil {
		return nil, err
	}
	_, code, err := r.require(name+".nested_quant_map", dtype.F32)
	if err != nil {
		return nil, err
	}
	return x, readFloats(x.Code[:], code)
}

// bnb8 is a weight of LLM.int8(): module.weight with a scale per row.
func (r *dequantiser) bnb8(module string) error {
	name := module + ".weight"
	if t := r.s.byName[name]; t == nil || t.desc.Type != dtype.I8 || len(t.desc.Shape) != 2 {
		return status.Errorf(status.ErrCorrupt, "%s%s is there, but no I8 matrix of that name", module, bnbScale8)
	}
	codes, packed, err := r.require(name)
	if err != nil {
		return err
	}
	_, scales, err := r.require(module+bnbScale8, dtype.F32)
	if err != nil {
		return err
	}
	if _, format, err := r.take(module + ".weight_format"); err != nil {
		return err
	} else if slices.ContainsFunc(format, func(b byte) bool { return b != 0 }) {
		return status.Errorf(status.ErrUnsupported, "its weight_format is no 0 (row-major): save it again with a recent bitsandbytes")
	}
	return r.put(name, codes, &quantised{
		// Nothing says what the weight was; F16 is what bitsandbytes makes of it.
		desc:   tensor.Desc{Type: dtype.F16, Shape: codes.desc.Shape},
		scheme: quant.Scheme{Kind: quant.Int8Rows, Bits: 8, Group: codes.desc.Shape[1], Scale: dtype.F32},
		data:   quant.Data{Packed: packed, Scale: scales},
		layout: "int8 rows",
	})
}

// readFloats fills dst from a file.
func readFloats(dst []float32, src []byte) error {
	if len(src) != 4*len(dst) {
		return status.Errorf(status.ErrCorrupt, "a code book has %d bytes, expected %d", len(src), 4*len(dst))
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
