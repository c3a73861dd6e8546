package checkpoint

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/mmap"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

const (
	extension      = ".safetensors"
	indexExtension = ".index.json"
	maxIndexBytes  = 256 << 20
	maxFiles       = 1 << 20
)

// Open opens a safetensors file, or a folder as Hugging Face lays it out:
// model.safetensors, or model.safetensors.index.json and its shards, or any
// *.safetensors, and whatever else is in it.
func Open(path string) (*Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, atomicfile.Error(err)
	}
	s := &Source{label: path, path: path, folder: info.IsDir(), byName: map[string]*tensorInfo{}}
	if s.folder {
		err = s.openFolder()
	} else {
		err = s.openFile()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Source) openFile() error {
	f := &fileInfo{path: filepath.Base(s.path)}
	if err := s.mapFile(f, s.path, ""); err != nil {
		return err
	}
	s.files = []*fileInfo{f}
	return nil
}

func (s *Source) openFolder() error {
	w := walker{s: s}
	if err := w.walk(s.path, ""); err != nil {
		return err
	}
	files := w.files
	slices.SortFunc(files, func(a, b *fileInfo) int { return strings.Compare(a.path, b.path) })
	main, err := s.mainFiles(files)
	if err != nil {
		return err
	}
	found := false
	for _, f := range files {
		full := filepath.Join(s.path, filepath.FromSlash(f.path))
		switch {
		case main[f.path]:
			if err := s.mapFile(f, full, ""); err != nil {
				return err
			}
		case strings.HasSuffix(f.path, extension):
			// A file that is no part of the model still holds tensors; their
			// names get its path in front. If it cannot be read as such
			// (another format, a delta), it is a file as any other.
			if err := s.mapFile(f, full, f.path+":"); err != nil {
				continue
			}
		}
		found = found || f.header != nil
	}
	if !found {
		return status.Errorf(status.ErrNotFound, "%s has no %s file (a PyTorch file is given by its own path)", s.path, extension)
	}
	s.files = files
	return nil
}

// mainFiles returns the paths whose tensors are the model, as transformers
// would choose them.
func (s *Source) mainFiles(files []*fileInfo) (map[string]bool, error) {
	main := map[string]bool{}
	has := func(path string) bool {
		return slices.ContainsFunc(files, func(f *fileInfo) bool { return f.path == path })
	}
	if has(modelFile) {
		main[modelFile] = true
		return main, nil
	}
	if has(modelFile + indexExtension) {
		shards, err := readShardIndex(filepath.Join(s.path, modelFile+indexExtension))
		if err != nil {
			return nil, err
		}
		for _, name := range shards {
			if !has(name) {
				return nil, status.Errorf(status.ErrNotFound, "%s, named by %s", filepath.Join(s.path, name), modelFile+indexExtension)
			}
			main[name] = true
		}
		return main, nil
	}
	names := map[string]bool{}
	for _, f := range files {
		if !strings.HasSuffix(f.path, extension) || strings.Contains(f.path, "/") {
			continue
		}
		m, h, err := openHeader(filepath.Join(s.path, f.path))
		if err != nil {
			return nil, err
		}
		m.Close()
		for i := range h.Tensors {
			if names[h.Tensors[i].Name] { // variants of one model, say: none is the main one
				return nil, nil
			}
			names[h.Tensors[i].Name] = true
		}
		main[f.path] = true
	}
	return main, nil
}

// readShardIndex returns the file names in the index JSON of a sharded set.
func readShardIndex(path string) ([]string, error) {
	m, err := mmap.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if len(m.Data) > maxIndexBytes {
		return nil, status.Errorf(status.ErrLimit, "%s has more than %d bytes", path, maxIndexBytes)
	}
	var index struct {
		WeightMap map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(m.Data, &index); err != nil {
		return nil, status.Errorf(status.ErrCorrupt, "%s: %v", path, err)
	}
	if len(index.WeightMap) == 0 {
		return nil, status.Errorf(status.ErrCorrupt, "%s has no weight_map", path)
	}
	var shards []string
	for _, name := range index.WeightMap {
		if !validPath(name) {
			return nil, status.Errorf(status.ErrCorrupt, "%s names the shard %q: expected a path inside its folder", path, name)
		}
		shards = append(shards, name)
	}
	slices.Sort(shards)
	return slices.Compact(shards), nil
}

// validPath reports whether a path from outside may be joined to a folder.
func validPath(path string) bool {
	if !fs.ValidPath(path) || path == "." || strings.ContainsAny(path, "\\\x00") {
		return false
	}
	return !slices.ContainsFunc(strings.Split(path, "/"), atomicfile.IsTemporary)
}

// mapFile maps a safetensors file and adds its tensors.
func (s *Source) mapFile(f *fileInfo, path, scope string) error {
	m, h, err := openHeader(path)
	if err != nil {
		return err
	}
	if h.Metadata["format"] == formatName {
		return errors.Join(status.Errorf(status.ErrArgument, "%s is a TPDE delta, expected a checkpoint", path), m.Close())
	}
	for i := range h.Tensors {
		if name := scope + h.Tensors[i].Name; s.byName[name] != nil {
			return errors.Join(status.InTensor(status.Errorf(status.ErrCorrupt, "two files of %s have it; %s is one", s.path, path), name), m.Close())
		}
	}
	data := m.Data[h.DataStart():]
	for i := range h.Tensors {
		e := &h.Tensors[i]
		t := &tensorInfo{
			name: scope + e.Name,
			desc: tensor.Desc{Type: e.Type, Shape: e.Shape},
			data: plain(data[e.Begin:e.End:e.End]),
		}
		s.byName[t.name] = t
		s.tensors = append(s.tensors, t)
		f.tensors = append(f.tensors, t)
	}
	f.bytes, f.header, f.scope, f.metadata = uint64(len(m.Data)), h.Text, scope, h.Metadata
	s.inputs = append(s.inputs, m.Info)
	s.closers = append(s.closers, m)
	return nil
}

// openHeader maps a safetensors file and validates its header.
func openHeader(path string) (*mmap.File, *safetensors.Header, error) {
	m, err := mmap.Open(path)
	if err != nil {
		return nil, nil, err
	}
	h, err := safetensors.ParseFile(m.Data)
	if err != nil {
		return nil, nil, errors.Join(inFile(err, path), m.Close())
	}
	return m, h, nil
}

// inFile adds the path of a file to the message of err.
func inFile(err error, path string) error {
	var e *status.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	c := *e
	c.Detail = path + ": " + cmp.Or(c.Detail, "unusable")
	return &c
}

// walker lists the files of a folder. Symbolic links are followed, because the
// cache of Hugging Face is made of them.
type walker struct {
	s     *Source
	files []*fileInfo
	above []fs.FileInfo // the folders on the way down, to notice loops
}

func (w *walker) walk(dir, rel string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return atomicfile.Error(err)
	}
	if slices.ContainsFunc(w.above, func(a fs.FileInfo) bool { return os.SameFile(a, info) }) {
		return status.Errorf(status.ErrUnsupported, "%s is a symbolic link to a folder that it lies in", dir)
	}
	w.above = append(w.above, info)
	defer func() { w.above = w.above[:len(w.above)-1] }()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return atomicfile.Error(err)
	}
	for _, e := range entries {
		name := rel + e.Name()
		if skipped(name) {
			continue
		}
		full := filepath.Join(dir, e.Name())
		info, err := os.Stat(full)
		if err != nil {
			return atomicfile.Error(err)
		}
		switch {
		case info.IsDir():
			if err := w.walk(full, name+"/"); err != nil {
				return err
			}
			continue
		case !info.Mode().IsRegular():
			return status.Errorf(status.ErrUnsupported, "%s is neither a file nor a folder", full)
		case !validPath(name):
			return status.Errorf(status.ErrUnsupported, "%q in %s has a name that cannot be restored everywhere", name, w.s.path)
		case len(w.files) == maxFiles:
			return status.Errorf(status.ErrLimit, "%s has more than %d files", w.s.path, maxFiles)
		}
		w.s.inputs = append(w.s.inputs, info)
		w.files = append(w.files, &fileInfo{
			path: name, bytes: uint64(info.Size()),
			open: func() (io.ReadCloser, error) {
				f, err := os.Open(full)
				return f, atomicfile.Error(err)
			},
		})
	}
	return nil
}

// skipped reports whether a path is bookkeeping of the tools that brought the
// checkpoint here, or ours, and no part of it.
func skipped(path string) bool {
	return path == ".git" || path == ".cache/huggingface" || atomicfile.IsTemporary(filepath.Base(path))
}
