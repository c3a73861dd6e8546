package safetensors

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
	"unicode/utf8"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Limits on what a header may claim, so that memory stays bounded.
const (
	MaxTextBytes = 100_000_000 // the reference library's
	MaxDims      = 64          // torch's
	MaxTensors   = 1 << 20
)

// PrefixBytes is the size of the length field in front of the JSON.
const PrefixBytes = 8

// MetadataKey is the one key of the header that names no tensor.
const MetadataKey = "__metadata__"

// Tensor is one entry of a header. Begin and End count from the start of the
// data.
type Tensor struct {
	Name       string
	Type       dtype.Type
	Shape      []uint64
	Begin, End uint64
}

// Bytes returns the size of the tensor's data.
func (t *Tensor) Bytes() uint64 { return t.End - t.Begin }

// Header is a validated header.
type Header struct {
	Text     []byte            // the JSON as it stands in the file, padding included
	Tensors  []Tensor          // in the order of their data, then of the text
	Metadata map[string]string // nil if there is none
}

// DataStart returns where in the file the data begins.
func (h *Header) DataStart() uint64 { return PrefixBytes + uint64(len(h.Text)) }

// DataBytes returns the size of the data.
func (h *Header) DataBytes() uint64 {
	if len(h.Tensors) == 0 {
		return 0
	}
	return h.Tensors[len(h.Tensors)-1].End
}

// FileBytes returns the size of the file.
func (h *Header) FileBytes() uint64 { return h.DataStart() + h.DataBytes() }

// ParseFile validates the header of a whole file, given as its (mapped) bytes.
// The Header refers to a copy of the text, not to file.
func ParseFile(file []byte) (*Header, error) {
	if len(file) < PrefixBytes {
		return nil, status.Errorf(status.ErrCorrupt, "%d bytes are too few for a safetensors file: the header length alone takes 8", len(file))
	}
	n := binary.LittleEndian.Uint64(file)
	if n > MaxTextBytes {
		if file[0] == '{' {
			return nil, status.Errorf(status.ErrCorrupt, "expected a safetensors file, got text that begins with {; of a checkpoint in shards, give the folder")
		}
		return nil, status.Errorf(status.ErrLimit, "the safetensors header claims %d bytes: at most %d are allowed", n, MaxTextBytes)
	}
	if n > uint64(len(file)-PrefixBytes) {
		return nil, status.Errorf(status.ErrCorrupt, "the safetensors header claims %d bytes, the file has only %d after the length", n, len(file)-PrefixBytes)
	}
	h, err := Parse(slices.Clone(file[PrefixBytes : PrefixBytes+n]))
	if err != nil {
		return nil, err
	}
	// DataBytes may be anything up to 2^64-1: compare without adding to it.
	if have := uint64(len(file)) - h.DataStart(); have != h.DataBytes() {
		return nil, status.Errorf(status.ErrCorrupt, "the safetensors header describes %d bytes of data, the file has %d", h.DataBytes(), have)
	}
	return h, nil
}

// Parse validates the text of a header. The Header keeps text.
func Parse(text []byte) (*Header, error) {
	if len(text) > MaxTextBytes {
		return nil, status.Errorf(status.ErrLimit, "a safetensors header of %d bytes: at most %d are allowed", len(text), MaxTextBytes)
	}
	if !utf8.Valid(text) {
		return nil, status.Errorf(status.ErrCorrupt, "the safetensors header is not UTF-8")
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, status.Errorf(status.ErrCorrupt, "the safetensors header does not begin with '{'")
	}
	h := &Header{Text: text}
	s := &scanner{text: text}
	seen := map[string]struct{}{}
	err := s.object(func(key string) error {
		if _, dup := seen[key]; dup {
			return s.errorf("key %q stands there twice", key)
		}
		seen[key] = struct{}{}
		if key == MetadataKey {
			m, err := s.metadata()
			h.Metadata = m
			return err
		}
		if len(h.Tensors) == MaxTensors {
			return status.Errorf(status.ErrLimit, "the safetensors header has more than %d tensors", MaxTensors)
		}
		t, err := s.tensor(key)
		if err != nil {
			return status.InTensor(err, key)
		}
		h.Tensors = append(h.Tensors, t)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.blank(); s.pos != len(text) {
		return nil, s.errorf("there is text after the closing '}'")
	}
	slices.SortStableFunc(h.Tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Begin, b.Begin), cmp.Compare(a.End, b.End))
	})
	return h, h.checkLayout()
}

// checkLayout requires that the tensors follow each other without a hole and
// fill exactly what their dtype and shape need.
func (h *Header) checkLayout() error {
	var end uint64
	for i := range h.Tensors {
		t := &h.Tensors[i]
		if t.Begin != end {
			what := "overlap the tensor before"
			if t.Begin > end {
				what = "leave a hole"
			}
			return status.InTensor(status.Errorf(status.ErrCorrupt, "its data_offsets %s: they begin at %d, expected %d", what, t.Begin, end), t.Name)
		}
		if t.End < t.Begin {
			return status.InTensor(status.Errorf(status.ErrCorrupt, "its data_offsets end at %d, before they begin at %d", t.End, t.Begin), t.Name)
		}
		if err := checkSize(t); err != nil {
			return status.InTensor(err, t.Name)
		}
		end = t.End
	}
	return nil
}

func checkSize(t *Tensor) error {
	// The library multiplies from left to right and fails on the first
	// overflow, even if a 0 follows; whoever reads with it must get no less.
	n := uint64(1)
	for _, d := range t.Shape {
		hi, lo := bits.Mul64(n, d)
		if hi != 0 {
			return status.Errorf(status.ErrCorrupt, "shape %v overflows", t.Shape)
		}
		n = lo
	}
	want, err := t.Type.Bytes(t.Shape)
	if err != nil {
		return status.Errorf(status.ErrCorrupt, "%v", err)
	}
	if want != t.Bytes() {
		return status.Errorf(status.ErrCorrupt, "%v %v needs %d bytes, its data_offsets give %d", t.Type, t.Shape, want, t.Bytes())
	}
	return nil
}
