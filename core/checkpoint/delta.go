package checkpoint

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// delta is an opened delta file or sharded set. Everything in it has been
// validated but the data of chunks and of carried files.
type delta struct {
	path     string
	paths    []string // every file of it
	inputs   []fs.FileInfo
	closers  []io.Closer
	tool     string
	manifest *manifest
	base     digest.Sum
	target   digest.Sum
	stored   map[string]storedTensor
	tensors  []*deltaTensor // in the order of the files and their data
	byName   map[string]*deltaTensor
	headers  []*safetensors.Header // of each file, nil for those without tensors
	bytes    uint64                // of all files of the delta
}

// storedTensor is one tensor of the delta file itself.
type storedTensor struct {
	desc tensor.Desc
	data []byte
}

// deltaTensor is one tensor of the target.
type deltaTensor struct {
	row    *manifestTensor
	name   string
	desc   tensor.Desc
	bytes  uint64
	digest digest.Sum
	reader *tensor.Reader // kinds delta and new, of index and blob
	index  []byte
	blob   []byte
	data   []byte       // kind verbatim
	of     *deltaTensor // kind alias
	stored uint64       // bytes in the delta
}

// resolveDelta returns the file that stands for the delta at path: the path
// itself, or the index JSON beside it.
func resolveDelta(path string) (string, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(path, indexExtension) {
		if _, err := os.Stat(path + indexExtension); err == nil {
			return path + indexExtension, nil
		}
	}
	return path, atomicfile.Error(err)
}

// openDelta opens and validates a delta.
func openDelta(path string) (*delta, error) {
	d := &delta{path: path, stored: map[string]storedTensor{}, byName: map[string]*deltaTensor{}}
	err := d.open()
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *delta) Close() error {
	var errs []error
	for _, c := range d.closers {
		errs = append(errs, c.Close())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *delta) open() error {
	first, err := resolveDelta(d.path)
	if err != nil {
		return err
	}
	files := []string{first}
	if strings.HasSuffix(first, indexExtension) {
		info, err := os.Stat(first)
		if err != nil {
			return atomicfile.Error(err)
		}
		d.inputs = append(d.inputs, info)
		d.bytes += uint64(info.Size())
		d.paths = append(d.paths, first)
		shards, err := readShardIndex(first)
		if err != nil {
			return err
		}
		files = files[:0]
		for _, s := range shards {
			files = append(files, filepath.Join(filepath.Dir(first), filepath.FromSlash(s)))
		}
	}
	for i, path := range files {
		if err := d.mapShard(path, i == 0); err != nil {
			return err
		}
	}
	return inFile(d.read(), d.path)
}

// mapShard maps one file of the delta and lists what is stored in it.
func (d *delta) mapShard(path string, first bool) error {
	m, h, err := openHeader(path)
	if err != nil {
		return err
	}
	d.closers = append(d.closers, m)
	d.inputs = append(d.inputs, m.Info)
	d.paths = append(d.paths, path)
	d.bytes += uint64(len(m.Data))
	if h.Metadata["format"] != formatName {
		return status.Errorf(status.ErrCorrupt, "%s is not a TPDE delta: its metadata have no \"format\": %q", path, formatName)
	}
	if v := h.Metadata[keyVersion]; v != formatVersion {
		return status.Errorf(status.ErrVersion, "%s has version %q, this build reads version %s", path, v, formatVersion)
	}
	base, err := parseDigest(h.Metadata[keyBase])
	if err != nil {
		return inFile(err, path)
	}
	target, err := parseDigest(h.Metadata[keyTarget])
	if err != nil {
		return inFile(err, path)
	}
	if first {
		d.base, d.target, d.tool = base, target, h.Metadata[keyTool]
	} else if d.base != base || d.target != target {
		return status.Errorf(status.ErrCorrupt, "%s belongs to another delta than %s: it goes from %v to %v, expected %v to %v", path, d.paths[0], base, target, d.base, d.target)
	}
	data := m.Data[h.DataStart():]
	for i := range h.Tensors {
		t := &h.Tensors[i]
		if _, dup := d.stored[t.Name]; dup {
			return status.InTensor(status.Errorf(status.ErrCorrupt, "two shards of %s store it", d.path), t.Name)
		}
		d.stored[t.Name] = storedTensor{tensor.Desc{Type: t.Type, Shape: t.Shape}, data[t.Begin:t.End:t.End]}
	}
	return nil
}

// bytesOf returns what the delta stores under name as plain bytes.
func (d *delta) bytesOf(name string) ([]byte, error) {
	s, ok := d.stored[name]
	if !ok {
		return nil, status.Errorf(status.ErrCorrupt, "it stores nothing under %q", name)
	}
	if s.desc.Type != dtype.U8 || len(s.desc.Shape) != 1 {
		return nil, status.Errorf(status.ErrCorrupt, "%q is %v %v, expected U8 in one dimension", name, s.desc.Type, s.desc.Shape)
	}
	return s.data, nil
}

// read reads the manifest.
func (d *delta) read() error {
	packed, err := d.bytesOf(manifestName)
	if err != nil {
		return err
	}
	m, err := decodeManifest(packed)
	if err != nil {
		return err
	}
	return d.validate(m)
}

// validate makes m the manifest of d if everything that it says is true.
func (d *delta) validate(m *manifest) error {
	d.manifest = m
	if m.Base != d.base.String() {
		return status.Errorf(status.ErrCorrupt, "the manifest was made for base %s, the metadata say %v", m.Base, d.base)
	}
	if err := checkPaths(m); err != nil {
		return err
	}
	d.headers = make([]*safetensors.Header, len(m.Files))
	for i := range m.Files {
		f := &m.Files[i]
		if err := d.readFile(i, f); err != nil {
			return inFile(err, "file "+f.Path)
		}
	}
	for _, t := range d.tensors {
		if err := d.resolveAlias(t); err != nil {
			return status.InTensor(err, t.name)
		}
	}
	for _, name := range m.Removed {
		if d.byName[name] != nil {
			return status.InTensor(status.Errorf(status.ErrCorrupt, "it is listed as removed and as part of the target"), name)
		}
	}
	if got := d.targetDigest(); got != d.target {
		return status.Errorf(status.ErrCorrupt, "its tensors make target %v, the metadata say %v", got, d.target)
	}
	return nil
}

func (d *delta) targetDigest() digest.Sum {
	list := make([]*tensorInfo, len(d.tensors))
	for i, t := range d.tensors {
		list[i] = &tensorInfo{name: t.name, desc: t.desc, digest: t.digest}
	}
	return checkpointDigest(list, func(t *tensorInfo) digest.Sum { return t.digest })
}

func (d *delta) readFile(i int, f *manifestFile) error {
	if sum, err := hex.DecodeString(f.SHA256); err != nil || len(sum) != 32 || hex.EncodeToString(sum) != f.SHA256 {
		return status.Errorf(status.ErrCorrupt, "sha256 %q is not 64 hexadecimal digits", f.SHA256)
	}
	switch f.Kind {
	case fileSame:
		return nil
	case fileCarried:
		data, err := d.bytesOf(f.Stored)
		if err != nil {
			return err
		}
		if f.Coding != codingZstd && (f.Coding != codingRaw || uint64(len(data)) != f.Bytes) {
			return status.Errorf(status.ErrCorrupt, "%d bytes of coding %q for a file of %d bytes", len(data), f.Coding, f.Bytes)
		}
		return nil
	case fileTensors:
	default:
		return status.Errorf(status.ErrCorrupt, "unknown kind %q", f.Kind)
	}
	h, err := safetensors.Parse([]byte(f.Header))
	if err != nil {
		return err
	}
	d.headers[i] = h
	// FileBytes may wrap around: what it is compared with can only be too small then.
	if h.DataBytes() > f.Bytes || h.FileBytes() != f.Bytes {
		return status.Errorf(status.ErrCorrupt, "its header describes %d bytes of data, which do not make a file of %d bytes", h.DataBytes(), f.Bytes)
	}
	if len(h.Tensors) != len(f.Tensors) {
		return status.Errorf(status.ErrCorrupt, "%d tensors in its header, %d in its table", len(h.Tensors), len(f.Tensors))
	}
	for j := range h.Tensors {
		e := &h.Tensors[j]
		t := &deltaTensor{row: &f.Tensors[j], name: f.Scope + e.Name, desc: tensor.Desc{Type: e.Type, Shape: e.Shape}, bytes: e.Bytes()}
		if d.byName[t.name] != nil {
			return status.InTensor(status.Errorf(status.ErrCorrupt, "two files have it"), t.name)
		}
		if err := d.readTensor(t); err != nil {
			return status.InTensor(err, t.name)
		}
		d.byName[t.name] = t
		d.tensors = append(d.tensors, t)
	}
	return nil
}

func (d *delta) readTensor(t *deltaTensor) (err error) {
	row := t.row
	stored := row.Stored
	if stored == "" {
		stored = t.name
	}
	switch row.Kind {
	case kindUnchanged:
		t.digest, err = parseDigest(row.Digest)
		return err
	case kindAlias:
		return nil
	case kindVerbatim:
		s, ok := d.stored[stored]
		if !ok {
			return status.Errorf(status.ErrCorrupt, "the delta stores nothing under %q", stored)
		}
		if !sameDesc(s.desc, t.desc) {
			return status.Errorf(status.ErrCorrupt, "the delta stores it as %v %v, expected %v %v", s.desc.Type, s.desc.Shape, t.desc.Type, t.desc.Shape)
		}
		t.data, t.stored = s.data, uint64(len(s.data))
		t.digest, err = parseDigest(row.Digest)
		return err
	case kindDelta, kindNew:
	default:
		return status.Errorf(status.ErrCorrupt, "unknown kind %q", row.Kind)
	}
	index, err := d.bytesOf(stored + indexSuffix)
	if err != nil {
		return err
	}
	blob, err := d.bytesOf(stored + blobSuffix)
	if err != nil {
		return err
	}
	if t.reader, err = tensor.Open(index, blob); err != nil {
		return err
	}
	if got := t.reader.Desc(); !sameDesc(got, t.desc) {
		return status.Errorf(status.ErrCorrupt, "its index is for %v %v, the file's header has %v %v", got.Type, got.Shape, t.desc.Type, t.desc.Shape)
	}
	if t.reader.HasBase() != (row.Kind == kindDelta) {
		return status.Errorf(status.ErrCorrupt, "kind %q, but its index says base: %v", row.Kind, t.reader.HasBase())
	}
	t.index, t.blob, t.digest = index, blob, t.reader.TargetDigest()
	t.stored = uint64(len(index) + len(blob))
	return nil
}

func (d *delta) resolveAlias(t *deltaTensor) error {
	if t.row.Kind != kindAlias {
		return nil
	}
	of := d.byName[t.row.Of]
	if of == nil || of.row.Kind == kindAlias {
		return status.Errorf(status.ErrCorrupt, "alias of %q, which is no tensor of the target or an alias itself", t.row.Of)
	}
	if of.desc.Type != t.desc.Type || of.bytes != t.bytes {
		return status.Errorf(status.ErrCorrupt, "%v of %d bytes is alias of %q, %v of %d bytes", t.desc.Type, t.bytes, of.name, of.desc.Type, of.bytes)
	}
	t.of, t.digest = of, of.digest
	return nil
}

func parseDigest(text string) (digest.Sum, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != digest.Size || hex.EncodeToString(raw) != text {
		return digest.Sum{}, status.Errorf(status.ErrCorrupt, "digest %q is not %d hexadecimal digits", text, 2*digest.Size)
	}
	return digest.Sum(raw), nil
}

// openCarried returns the contents of a carried file. It never yields more
// than the recorded size and one byte.
func (d *delta) openCarried(f *manifestFile) (io.ReadCloser, error) {
	data, err := d.bytesOf(f.Stored)
	if err != nil {
		return nil, err
	}
	if f.Coding == codingRaw {
		return io.NopCloser(bytes.NewReader(data)), nil
	}
	r, err := newDecompressor(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{corruptReader{io.LimitReader(r, int64(min(f.Bytes, 1<<62))+1)}, r}, nil
}

// corruptReader gives the errors of the decompressor a status.
type corruptReader struct{ r io.Reader }

func (c corruptReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		err = status.Errorf(status.ErrCorrupt, "cannot be decompressed: %v", err)
	}
	return n, err
}
