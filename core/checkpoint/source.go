package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// modelFile is the name that a checkpoint in memory gets when it becomes a
// file in a folder.
const modelFile = "model.safetensors"

// Source is a checkpoint to read from.
type Source struct {
	label   string
	path    string // of the file or folder; "" in memory
	folder  bool
	inputs  []fs.FileInfo // every file that is read, to refuse it as an output
	below   *Source       // what deltas make this one of; it is an input, too
	tensors []*tensorInfo // in the order of the files and of their data
	byName  map[string]*tensorInfo
	files   []*fileInfo // sorted by path
	closers []io.Closer

	memory bool // tensors come from Add; files are made up by layout
	once   sync.Once
	err    error // of layout
}

// tensorInfo is one tensor of a source.
type tensorInfo struct {
	name   string
	desc   tensor.Desc
	data   content
	digest digest.Sum // as a delta records it; zero if nobody has computed it
}

// fileInfo is one file of a source. A safetensors file has a header and
// tensors; any other one is read through open.
type fileInfo struct {
	path   string // relative, with slashes
	bytes  uint64
	header []byte // text of the safetensors header, nil for another file
	scope  string // what the names of its tensors are prefixed with
	// __metadata__ of a safetensors file that was opened.
	metadata map[string]string
	tensors  []*tensorInfo
	open     func() (io.ReadCloser, error)
	sha256   string // as a delta records it; "" if nobody has computed it
	inBase   bool   // a delta names it as equal to the base's
}

func sameDesc(a, b tensor.Desc) bool {
	return a.Type == b.Type && slices.Equal(a.Shape, b.Shape)
}

// NewSource starts a checkpoint in memory. label names it in messages.
func NewSource(label string) *Source {
	return &Source{label: label, byName: map[string]*tensorInfo{}, memory: true}
}

// Add adds a tensor to a source that NewSource has made, before the first use
// of the source. data must stay as it is until Close.
func (s *Source) Add(name string, t dtype.Type, shape []uint64, data []byte) error {
	if !s.memory {
		return status.Errorf(status.ErrArgument, "%s: tensors can only be added to a source in memory", s.label)
	}
	switch {
	case s.byName[name] != nil:
		return status.InTensor(status.Errorf(status.ErrArgument, "it was added twice"), name)
	case name == safetensors.MetadataKey || !utf8.ValidString(name):
		return status.Errorf(status.ErrArgument, "%q cannot name a tensor", name)
	case len(shape) > safetensors.MaxDims:
		return status.InTensor(status.Errorf(status.ErrLimit, "%d dimensions, expected at most %d", len(shape), safetensors.MaxDims), name)
	}
	want, err := t.Bytes(shape)
	if err != nil {
		return status.InTensor(err, name)
	}
	if uint64(len(data)) != want {
		return status.InTensor(status.Errorf(status.ErrArgument, "got %d bytes, %v %v needs %d", len(data), t, shape, want), name)
	}
	info := &tensorInfo{name: strings.Clone(name), desc: tensor.Desc{Type: t, Shape: slices.Clone(shape)}, data: plain(data)}
	s.byName[info.name] = info
	s.tensors = append(s.tensors, info)
	return nil
}

// layout lays out the file that a source in memory stands for: the one that
// safetensors.torch.save_file would write.
func (s *Source) layout() error {
	if !s.memory {
		return nil
	}
	s.once.Do(func() {
		entries := make([]safetensors.Tensor, len(s.tensors))
		for i, t := range s.tensors {
			entries[i] = safetensors.Tensor{Name: t.name, Type: t.desc.Type, Shape: t.desc.Shape}
		}
		safetensors.Sort(entries)
		text, err := safetensors.Format(entries, nil)
		if err != nil {
			s.err = err
			return
		}
		f := &fileInfo{path: modelFile, bytes: safetensors.PrefixBytes + uint64(len(text)), header: text}
		for _, e := range entries {
			f.tensors = append(f.tensors, s.byName[e.Name])
			f.bytes += e.Bytes()
		}
		s.tensors, s.files = f.tensors, []*fileInfo{f}
	})
	return s.err
}

// Close releases the files. The source must not be in use.
func (s *Source) Close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c.Close())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// Manifest lists the tensors, in file order, as JSON:
// {"tensors": [{"name", "dtype", "shape", "bytes"}, ...]}.
func (s *Source) Manifest() ([]byte, error) {
	if err := s.layout(); err != nil {
		return nil, err
	}
	type row struct {
		Name  string   `json:"name"`
		Dtype string   `json:"dtype"`
		Shape []uint64 `json:"shape"`
		Bytes uint64   `json:"bytes"`
	}
	list := struct {
		Tensors []row `json:"tensors"`
	}{make([]row, 0, len(s.tensors))}
	for _, t := range s.tensors {
		list.Tensors = append(list.Tensors, row{t.name, t.desc.Type.String(), notNil(t.desc.Shape), t.data.size()})
	}
	return marshal(list)
}

// ReadTensor copies or rebuilds a tensor into dst, which must have its size.
// The base of a rebuilt tensor is checked before dst is touched, and the
// digest of the result afterwards.
func (s *Source) ReadTensor(ctx context.Context, name string, dst []byte, workers int) error {
	t := s.byName[name]
	if t == nil {
		return status.InTensor(status.Errorf(status.ErrNotFound, "%s has no such tensor", s.label), name)
	}
	if uint64(len(dst)) != t.data.size() {
		return status.InTensor(status.Errorf(status.ErrShortBuffer, "the destination has %d bytes, expected %d", len(dst), t.data.size()), name)
	}
	if l := leafOf(t.data); l != nil {
		if err := l.check(ctx, workers); err != nil {
			return atomicfile.Error(err)
		}
	}
	type piece struct{ off, n uint64 }
	var pieces []piece
	cut(t.data, segmentBytes(workers), func(off, n uint64) { pieces = append(pieces, piece{off, n}) })
	err := plan.Each(ctx, workers, len(pieces), func(_ context.Context, i int) error {
		p := pieces[i]
		into := dst[p.off : p.off+p.n : p.off+p.n]
		v, err := t.data.view(p.off, p.n, &into)
		if err == nil && &v[0] != &into[0] {
			copy(into, v)
		}
		return err
	})
	if err != nil {
		return atomicfile.Error(err)
	}
	if t.digest != (digest.Sum{}) {
		if got := digest.Of(dst, workers); got != t.digest {
			return status.InTensor(status.Errorf(status.ErrTargetMismatch, "it was rebuilt with digest %v, expected %v", got, t.digest), name)
		}
	}
	return nil
}

// reader returns the bytes of a file from its first to its last.
func (f *fileInfo) reader() (io.ReadCloser, error) {
	if f.header == nil {
		return f.open()
	}
	readers := []io.Reader{bytes.NewReader(safetensors.Prefix(f.header)), bytes.NewReader(f.header)}
	for _, t := range f.tensors {
		readers = append(readers, &contentReader{c: t.data})
	}
	return io.NopCloser(io.MultiReader(readers...)), nil
}

// contentReader reads a tensor from its first to its last byte.
type contentReader struct {
	c    content
	off  uint64
	rest []byte
	buf  []byte
}

func (r *contentReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		n := min(r.c.size()-r.off, max(1, (1<<20)/r.c.step())*r.c.step())
		if n == 0 {
			return 0, io.EOF
		}
		var err error
		if r.rest, err = r.c.view(r.off, n, &r.buf); err != nil {
			return 0, err
		}
		r.off += n
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// checkpointDigest identifies a checkpoint by its tensors: it is the digest of
// a listing (FORMAT.md) sorted by name, so that files, shards and the order in
// them do not matter.
func checkpointDigest(tensors []*tensorInfo, sum func(*tensorInfo) digest.Sum) digest.Sum {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b *tensorInfo) int { return strings.Compare(a.name, b.name) })
	var list []byte
	le := binary.LittleEndian
	for _, t := range sorted {
		list = le.AppendUint32(list, uint32(len(t.name)))
		list = append(list, t.name...)
		list = append(list, byte(t.desc.Type), byte(len(t.desc.Shape)))
		for _, d := range t.desc.Shape {
			list = le.AppendUint64(list, d)
		}
		d := sum(t)
		list = append(list, d[:]...)
	}
	return digest.Of(list, 1)
}

// marshal is json.Marshal that leaves <, > and & alone.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, status.Errorf(status.ErrInternal, "cannot write JSON: %v", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// notNil makes a missing list an empty one in JSON.
func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
