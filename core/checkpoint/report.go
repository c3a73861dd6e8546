package checkpoint

import "github.com/tpde-project/tpde/core/digest"

// TensorReport says what became of one tensor of the target.
type TensorReport struct {
	Name         string   `json:"name"`
	Dtype        string   `json:"dtype"`
	Shape        []uint64 `json:"shape"`
	Kind         string   `json:"kind"` // delta, new, alias, unchanged or verbatim
	Codec        *string  `json:"codec"`
	Residual     *string  `json:"residual"`
	Words        uint64   `json:"words"`
	Deltas       uint64   `json:"deltas"`
	TargetBytes  uint64   `json:"target_bytes"`
	StoredBytes  uint64   `json:"stored_bytes"`
	Chunks       uint64   `json:"chunks"`
	BaseDigest   *string  `json:"base_digest"` // null where it has no base
	TargetDigest string   `json:"target_digest"`
	Of           string   `json:"of,omitempty"`     // alias: the tensor that it equals
	Reason       string   `json:"reason,omitempty"` // why it has no base although one has its name
	// Of a compressed model: how its base is stored, and in how many bytes.
	BaseLayout string `json:"base_layout,omitempty"` // int4, nf4, ..., or a dtype
	BaseGroup  uint64 `json:"base_group,omitempty"`  // elements that share a scale
	BaseBytes  uint64 `json:"base_bytes,omitempty"`
}

// FileReport says how one file of the target is restored.
type FileReport struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"` // safetensors, same or carried
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Totals sums up a delta.
type Totals struct {
	Tensors            int     `json:"tensors"`
	Delta              int     `json:"delta"`
	New                int     `json:"new"`
	Alias              int     `json:"alias"`
	Unchanged          int     `json:"unchanged"`
	Verbatim           int     `json:"verbatim"`
	Removed            int     `json:"removed"`
	TargetBytes        uint64  `json:"target_bytes"`
	ChangedTargetBytes uint64  `json:"changed_target_bytes"`
	StoredBytes        uint64  `json:"stored_bytes"`
	FileBytes          uint64  `json:"file_bytes"` // of the delta on disk
	Ratio              float64 `json:"ratio"`      // target_bytes / file_bytes
}

// InspectReport says what a delta holds.
type InspectReport struct {
	Base    string         `json:"base"`
	Target  string         `json:"target"`
	Tool    string         `json:"tool"`
	Tensors []TensorReport `json:"tensors"`
	Removed []string       `json:"removed"`
	Files   []FileReport   `json:"files"`
	Totals  Totals         `json:"totals"`
}

// PackReport says what Pack has written.
type PackReport struct {
	InspectReport
	Out     []string `json:"out"`
	Seconds float64  `json:"seconds"`
}

// UnpackedFile is a file that Unpack has written.
type UnpackedFile struct {
	Path     string `json:"path"` // where it stands now
	Bytes    uint64 `json:"bytes"`
	SHA256   string `json:"sha256"`
	Verified bool   `json:"verified"` // the sum is the recorded one
}

// UnpackReport says what Unpack has written.
type UnpackReport struct {
	Base    string         `json:"base"`
	Target  string         `json:"target"`
	Files   []UnpackedFile `json:"files"`
	Bytes   uint64         `json:"bytes"`
	Seconds float64        `json:"seconds"`
}

// VerifyReport says what Verify has proven. Paths are those of the target.
type VerifyReport struct {
	UnpackReport
	TargetCompared bool `json:"target_compared"`
}

// Inspect reads what the delta at path holds, without its base.
func Inspect(path string) (*InspectReport, error) {
	d, err := openDelta(path)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.report(), nil
}

func (d *delta) report() *InspectReport {
	r := &InspectReport{
		Base: d.base.String(), Target: d.target.String(), Tool: d.tool,
		Tensors: make([]TensorReport, 0, len(d.tensors)), Removed: notNil(d.manifest.Removed), Files: []FileReport{},
	}
	for _, f := range d.manifest.Files {
		r.Files = append(r.Files, FileReport{f.Path, f.Kind, f.Bytes, f.SHA256})
	}
	n := &r.Totals
	n.Tensors, n.Removed, n.FileBytes = len(d.tensors), len(r.Removed), d.bytes
	for _, t := range d.tensors {
		r.Tensors = append(r.Tensors, t.report())
		n.TargetBytes += t.bytes
		n.StoredBytes += t.stored
		if t.row.Kind != kindUnchanged {
			n.ChangedTargetBytes += t.bytes
		}
		switch t.row.Kind {
		case kindDelta:
			n.Delta++
		case kindNew:
			n.New++
		case kindAlias:
			n.Alias++
		case kindUnchanged:
			n.Unchanged++
		case kindVerbatim:
			n.Verbatim++
		}
	}
	n.Ratio = float64(n.TargetBytes) / float64(max(1, n.FileBytes))
	return r
}

func (t *deltaTensor) report() TensorReport {
	r := TensorReport{
		Name: t.name, Dtype: t.desc.Type.String(), Shape: notNil(t.desc.Shape), Kind: t.row.Kind,
		Words: t.bytes / uint64(t.desc.Type.WordBytes()), TargetBytes: t.bytes, StoredBytes: t.stored,
		TargetDigest: t.digest.String(), Of: t.row.Of, Reason: t.row.Reason,
	}
	text := func(d digest.Sum) *string { s := d.String(); return &s }
	if t.row.Kind == kindUnchanged {
		r.BaseDigest = text(t.digest)
	}
	if t.reader == nil {
		return r
	}
	x := t.reader.Index()
	codec, kind := x.Codec.String(), x.Residual.String()
	r.Codec, r.Residual = &codec, &kind
	r.Deltas, r.Chunks = x.Deltas(), uint64(len(x.Records))
	if x.HasBase {
		r.BaseDigest = text(x.BaseDigest)
	}
	return r
}
