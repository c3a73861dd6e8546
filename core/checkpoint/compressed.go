package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// A compressed model is a folder (FORMAT.md, "Compressed models").
const (
	residualFile = "residual" + extension // the delta
	baseFolder   = "base"                 // the quantised base; absent if there is none
)

// ResidualPath returns the path of the delta of the compressed model in
// folder.
func ResidualPath(folder string) string { return filepath.Join(folder, residualFile) }

// IsCompressed reports whether path is the folder of a compressed model, be it
// a damaged one.
func IsCompressed(path string) bool {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return false
	}
	file, err := resolveDelta(ResidualPath(path))
	if err != nil {
		return false
	}
	if strings.HasSuffix(file, indexExtension) {
		return true
	}
	m, h, err := openHeader(file)
	if err != nil {
		return true
	}
	defer m.Close()
	return h.Metadata["format"] == formatName
}

// OpenCompressedBase opens the base of the compressed model in folder: what
// its delta (ResidualPath) applies to. A model without a base gives an empty
// source.
func OpenCompressedBase(folder string) (*Source, error) {
	if !IsCompressed(folder) {
		if _, err := os.Stat(folder); err != nil {
			return nil, atomicfile.Error(err)
		}
		return nil, status.Errorf(status.ErrArgument, "%s is no compressed model, expected a folder with %s", folder, residualFile)
	}
	d, err := openDelta(ResidualPath(folder))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return openBaseFor(folder, func(name string) dtype.Type {
		if t := d.byName[name]; t != nil {
			return t.desc.Type
		}
		return dtype.Invalid
	})
}

// openBaseFor opens the base in folder for a target of the given types.
func openBaseFor(folder string, as ElementType) (*Source, error) {
	path := filepath.Join(folder, baseFolder)
	s := &Source{label: folder + " (which has no base)", byName: map[string]*tensorInfo{}}
	if _, err := os.Lstat(path); err == nil {
		if s, err = OpenQuantised(path, as); err != nil {
			return nil, err
		}
		s.label = path
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, atomicfile.Error(err)
	}
	s.path, s.folder = folder, true // no output goes anywhere in it
	return s, nil
}

// InspectCompressed reads what the compressed model in folder holds.
func InspectCompressed(folder string) (*CompressedReport, error) {
	base, err := OpenCompressedBase(folder)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	d, err := openDelta(ResidualPath(folder))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return compressedReport(base, d), nil
}

// CompressedReport says what a compressed model holds.
type CompressedReport struct {
	InspectReport
	BaseTensors   int    `json:"base_tensors"`    // of the target, that have one
	BaseBytes     uint64 `json:"base_bytes"`      // of their codes and scales
	BaseFileBytes uint64 `json:"base_file_bytes"` // of all files of the base
}

func compressedReport(base *Source, d *delta) *CompressedReport {
	r := &CompressedReport{InspectReport: *d.report(), BaseFileBytes: base.bytes()}
	for i := range r.Tensors {
		t := &r.Tensors[i]
		if t.Kind != kindDelta && t.Kind != kindUnchanged {
			continue
		}
		b := base.byName[t.Name]
		if b == nil {
			continue
		}
		t.BaseLayout, t.BaseBytes = b.desc.Type.String(), b.data.size()
		if q, ok := b.data.(*quantised); ok {
			t.BaseLayout, t.BaseBytes, t.BaseGroup = q.layout, q.storedBytes(), q.scheme.Group
		}
		r.BaseTensors++
		r.BaseBytes += t.BaseBytes
	}
	n := &r.Totals
	n.Ratio = float64(n.TargetBytes) / float64(max(1, n.FileBytes+r.BaseFileBytes))
	return r
}
