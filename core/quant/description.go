package quant

import (
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

var kindNames = map[Kind]string{Linear: "linear", Codebook: "codebook", Int8Rows: "int8_rows"}

// String returns the name that files use.
func (k Kind) String() string { return kindNames[k] }

// Description is what the metadata of a file say of a quantised tensor, as
// JSON (FORMAT.md, "Files and state dicts"). The rest is told by its parts.
type Description struct {
	Kind      string   `json:"kind"`
	Bits      uint8    `json:"bits"`
	GroupSize uint64   `json:"group_size"`
	Shape     []uint64 `json:"shape"`
	Dtype     string   `json:"dtype"` // of the weight
}

// Describe returns the description of a weight.
func (s *Scheme) Describe(shape []uint64, t dtype.Type) Description {
	return Description{Kind: s.Kind.String(), Bits: s.Bits, GroupSize: s.Group, Shape: shape, Dtype: t.String()}
}

// Scheme returns the scheme that d describes, without the type of the scales,
// zero points and code book, and the type of the weight.
func (d *Description) Scheme() (s Scheme, t dtype.Type, err error) {
	for kind, name := range kindNames {
		if name == d.Kind {
			s.Kind = kind
		}
	}
	if s.Kind == 0 {
		return s, t, status.Errorf(status.ErrUnsupported, "kind %q of quantised tensor is unknown", d.Kind)
	}
	s.Bits, s.Group = d.Bits, d.GroupSize
	t, err = dtype.Parse(d.Dtype)
	return s, t, err
}
