package checkpoint

import (
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
)

// What becomes of embeddings whose base is derived (CompressOptions).
const (
	EmbeddingsAuto = "auto" // a base if the model has no output matrix, so that they serve as one
	EmbeddingsBase = "base"
	EmbeddingsNone = "none" // no base: only rows of them are needed, not the matrix
)

// Names of bases that are derived from the target, with bits per code.
var derivedBases = map[string]uint8{"int2": 2, "int3": 3, "int4": 4, "int8": 8}

// baseNone is the base of a model that is coded against nothing.
const baseNone = "none"

// Of a derived base. The largest bounds the memory of a piece.
const (
	defaultGroup = 64
	minGroup     = 8
	maxGroup     = 1 << 16
)

// CompressOptions control Compress. Start from DefaultCompressOptions.
type CompressOptions struct {
	Pack       PackOptions
	Base       string // int2, int3, int4, int8 or none
	BasePath   string // a quantised checkpoint of the same model, instead of Base
	LinkBase   bool   // link to BasePath and do not copy it
	GroupSize  uint64 // elements that share a scale
	Embeddings string // EmbeddingsAuto, EmbeddingsBase or EmbeddingsNone
}

// DefaultCompressOptions returns what a careful user would want.
func DefaultCompressOptions() CompressOptions {
	return CompressOptions{Base: "int4", GroupSize: defaultGroup, Embeddings: EmbeddingsAuto}
}

// ParseCompressOptions is ParsePackOptions for Compress.
func ParseCompressOptions(text []byte) (CompressOptions, error) {
	o := DefaultCompressOptions()
	raw := struct {
		packJSON
		Base       string `json:"base"`
		BasePath   string `json:"base_path"`
		LinkBase   bool   `json:"link_base"`
		GroupSize  uint64 `json:"group_size"`
		Embeddings string `json:"embeddings"`
	}{packDefaults, o.Base, "", false, o.GroupSize, o.Embeddings}
	if err := parseOptions(text, &raw); err != nil {
		return o, err
	}
	pack, err := raw.options()
	if err != nil {
		return o, err
	}
	o = CompressOptions{pack, raw.Base, raw.BasePath, raw.LinkBase, raw.GroupSize, raw.Embeddings}
	return o, o.check()
}

func (o *CompressOptions) check() error {
	if err := o.Pack.check(); err != nil {
		return err
	}
	switch {
	case o.BasePath == "" && o.Base != baseNone && derivedBases[o.Base] == 0:
		return status.Errorf(status.ErrArgument, "base %q is unknown: expected int2, int3, int4, int8, none or the path of a quantised checkpoint", o.Base)
	case o.BasePath == "" && o.LinkBase:
		return status.Errorf(status.ErrArgument, "link_base needs the path of a quantised checkpoint as base, got %s", o.Base)
	case o.GroupSize < minGroup || o.GroupSize > maxGroup:
		return status.Errorf(status.ErrArgument, "group_size is %d, expected %d to %d", o.GroupSize, minGroup, maxGroup)
	case o.Embeddings != EmbeddingsAuto && o.Embeddings != EmbeddingsBase && o.Embeddings != EmbeddingsNone:
		return status.Errorf(status.ErrArgument, "embeddings is %q, expected auto, base or none", o.Embeddings)
	case o.Pack.Residual != residual.Bit:
		return status.Errorf(status.ErrArgument, "residual %v of a compressed model, expected bit: kernels dequantise its base on the way", o.Pack.Residual)
	}
	return nil
}
