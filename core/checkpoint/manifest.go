package checkpoint

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/status"
)

// Names in a delta file (FORMAT.md).
const (
	formatName     = "tpde"
	formatVersion  = "1"
	manifestName   = "__tpde__"
	indexSuffix    = ".tpde_index"
	blobSuffix     = ".tpde_blob"
	keyVersion     = "tpde.version"
	keyTool        = "tpde.tool"
	keyBase        = "tpde.base"
	keyTarget      = "tpde.target"
	keyRemoved     = "tpde.removed"
	maxTargetBytes = 1 << 62   // of all files, so that sums cannot overflow
	maxManifest    = 256 << 20 // bytes of its JSON
	windowBytes    = 8 << 20   // of every zstd frame in a delta, so that decoding needs little memory
	codingZstd     = "zstd"
	codingRaw      = "raw"
	fileTensors    = "safetensors"
	fileSame       = "same"
	fileCarried    = "carried"
	kindDelta      = "delta"
	kindNew        = "new"
	kindAlias      = "alias"
	kindUnchanged  = "unchanged"
	kindVerbatim   = "verbatim"
	maxReasonBytes = 1 << 10
)

// Tool is what a delta says it was made by.
const Tool = "tpde 0.1.0"

// manifest is the JSON of __tpde__.
type manifest struct {
	Folder  bool           `json:"folder"` // the target was a folder
	Base    string         `json:"base"`
	Files   []manifestFile `json:"files"` // sorted by path
	Removed []string       `json:"removed,omitempty"`
}

type manifestFile struct {
	Path   string `json:"path"`
	Kind   string `json:"kind"`
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256"`
	// A safetensors file:
	Header  string           `json:"header,omitempty"` // its text, verbatim
	Scope   string           `json:"scope,omitempty"`
	Tensors []manifestTensor `json:"tensors,omitempty"` // one per tensor of Header, in the order of their data
	// A carried file:
	Stored string `json:"as,omitempty"` // the tensor of the delta that holds it
	Coding string `json:"coding,omitempty"`
}

type manifestTensor struct {
	Kind   string `json:"kind"`
	Stored string `json:"as,omitempty"`     // its name in the delta, if it had to be changed
	Of     string `json:"of,omitempty"`     // alias: the tensor of the target that it equals
	Digest string `json:"digest,omitempty"` // unchanged, verbatim
	Reason string `json:"reason,omitempty"` // why there is no base, where a reader might expect one
}

// encode returns the manifest as it is stored.
func (m *manifest) encode() ([]byte, error) {
	text, err := marshal(m)
	if err != nil {
		return nil, err
	}
	if len(text) > maxManifest {
		return nil, status.Errorf(status.ErrLimit, "the manifest takes %d bytes, at most %d are allowed", len(text), maxManifest)
	}
	var b bytes.Buffer
	w, err := newCompressor(&b)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, status.Errorf(status.ErrInternal, "cannot compress the manifest: %v", err)
	}
	return b.Bytes(), nil
}

// decodeManifest undoes encode. What it holds is validated by openDelta.
func decodeManifest(data []byte) (*manifest, error) {
	r, err := newDecompressor(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	text, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return nil, status.Errorf(status.ErrCorrupt, "the manifest cannot be decompressed: %v", err)
	}
	if len(text) > maxManifest {
		return nil, status.Errorf(status.ErrLimit, "the manifest takes more than %d bytes", maxManifest)
	}
	return parseManifest(text)
}

// parseManifest reads the JSON of a manifest.
func parseManifest(text []byte) (*manifest, error) {
	m := new(manifest)
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, status.Errorf(status.ErrCorrupt, "the manifest is malformed: %v", err)
	}
	if d.InputOffset() != int64(len(text)) {
		return nil, status.Errorf(status.ErrCorrupt, "the manifest has %d bytes after its end", int64(len(text))-d.InputOffset())
	}
	return m, nil
}

// checkPaths validates where the files of a target go, before anything is made of
// the paths.
func checkPaths(m *manifest) error {
	if len(m.Files) > maxFiles {
		return status.Errorf(status.ErrLimit, "%d files, expected at most %d", len(m.Files), maxFiles)
	}
	if !m.Folder && (len(m.Files) != 1 || m.Files[0].Kind != fileTensors || strings.Contains(m.Files[0].Path, "/")) {
		return status.Errorf(status.ErrCorrupt, "the target is no folder, expected exactly one safetensors file")
	}
	files := map[string]bool{}
	var total uint64
	for i := range m.Files {
		path := m.Files[i].Path
		if m.Files[i].Bytes > maxTargetBytes-total {
			return status.Errorf(status.ErrLimit, "the files have more than %d bytes in all", uint64(maxTargetBytes))
		}
		total += m.Files[i].Bytes
		if !validPath(path) {
			return status.Errorf(status.ErrCorrupt, "%q is no path inside a folder", path)
		}
		if i > 0 && path <= m.Files[i-1].Path {
			return status.Errorf(status.ErrCorrupt, "files are not sorted, or twice the same: %q after %q", path, m.Files[i-1].Path)
		}
		files[path] = true
	}
	for i := range m.Files {
		path := m.Files[i].Path
		for j := strings.IndexByte(path, '/'); j >= 0; {
			if files[path[:j]] {
				return status.Errorf(status.ErrCorrupt, "%q is a file and a folder", path[:j])
			}
			next := strings.IndexByte(path[j+1:], '/')
			if next < 0 {
				break
			}
			j += 1 + next
		}
	}
	return nil
}

func newCompressor(w io.Writer) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(windowBytes))
}

func newDecompressor(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(windowBytes))
	if err != nil {
		return nil, status.Errorf(status.ErrCorrupt, "cannot be decompressed: %v", err)
	}
	return d.IOReadCloser(), nil
}
