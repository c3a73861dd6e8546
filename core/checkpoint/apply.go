package checkpoint

import (
	"io"

	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/status"
)

// Apply opens the checkpoint that deltas, in this order, make of base. Its
// tensors are rebuilt when they are read, only as far as they are read, down
// the whole chain. base must outlive it.
//
// The chain, names, shapes and dtypes are checked here; the contents of base
// when they are needed.
func Apply(base *Source, deltas []string) (*Source, error) {
	s, _, err := apply(base, deltas)
	return s, err
}

func apply(base *Source, paths []string) (*Source, []*delta, error) {
	if len(paths) == 0 {
		return nil, nil, status.Errorf(status.ErrArgument, "no delta is given")
	}
	if err := base.layout(); err != nil {
		return nil, nil, err
	}
	var deltas []*delta
	fail := func(err error) (*Source, []*delta, error) {
		for _, d := range deltas {
			d.Close()
		}
		return nil, nil, err
	}
	current := base
	for i, path := range paths {
		d, err := openDelta(path)
		if err != nil {
			return fail(err)
		}
		deltas = append(deltas, d)
		if i > 0 && deltas[i-1].target != d.base {
			return fail(status.Errorf(status.ErrChain, "%s starts from checkpoint %v, but %s leads to %v: one is missing between them, or the order is wrong",
				path, d.base, paths[i-1], deltas[i-1].target))
		}
		if current, err = d.applyTo(current, i == 0); err != nil {
			return fail(inFile(err, path))
		}
	}
	current.below = base
	for _, d := range deltas {
		current.closers = append(current.closers, d)
		current.inputs = append(current.inputs, d.inputs...)
	}
	return current, deltas, nil
}

// applyTo makes the source that d makes of base. first is set if base is not
// itself made by a delta of the same chain.
func (d *delta) applyTo(base *Source, first bool) (*Source, error) {
	s := &Source{label: d.path, folder: d.manifest.Folder, byName: map[string]*tensorInfo{}}
	for _, t := range d.tensors {
		if t.row.Kind == kindAlias {
			continue
		}
		c, err := d.contentOf(t, base, first)
		if err != nil {
			return nil, status.InTensor(err, t.name)
		}
		s.byName[t.name] = &tensorInfo{name: t.name, desc: t.desc, data: c, digest: t.digest}
	}
	for _, t := range d.tensors {
		if t.row.Kind == kindAlias {
			s.byName[t.name] = &tensorInfo{name: t.name, desc: t.desc, data: s.byName[t.of.name].data, digest: t.digest}
		}
		s.tensors = append(s.tensors, s.byName[t.name])
	}
	next := 0 // tensor
	for i := range d.manifest.Files {
		m := &d.manifest.Files[i]
		f := &fileInfo{path: m.Path, bytes: m.Bytes, sha256: m.SHA256}
		switch m.Kind {
		case fileTensors:
			f.header, f.scope = d.headers[i].Text, m.Scope
			f.tensors = s.tensors[next : next+len(m.Tensors) : next+len(m.Tensors)]
			next += len(m.Tensors)
		case fileCarried:
			f.open = func() (io.ReadCloser, error) { return d.openCarried(m) }
		case fileSame:
			f.inBase = true
			f.open = base.openSame(m)
		}
		s.files = append(s.files, f)
	}
	return s, nil
}

// contentOf returns where the bytes of t come from.
func (d *delta) contentOf(t *deltaTensor, base *Source, first bool) (content, error) {
	if t.row.Kind == kindVerbatim {
		return plain(t.data), nil
	}
	c := &rebuilt{name: t.name, r: t.reader, delta: d.path, index: t.index, blob: t.blob}
	if t.row.Kind == kindNew {
		return c, nil
	}
	want := t.digest // of the base tensor
	if t.row.Kind == kindDelta {
		want = t.reader.BaseDigest()
	}
	b, err := base.needed(t, want, first)
	if err != nil || t.row.Kind == kindUnchanged {
		return b, err
	}
	c.base = b
	return c, nil
}

// needed returns the tensor of the base that t refers to.
func (s *Source) needed(t *deltaTensor, want digest.Sum, first bool) (content, error) {
	b := s.byName[t.name]
	if b == nil {
		return nil, status.Errorf(status.ErrBaseMismatch, "the base %s has no such tensor, expected %v %v with digest %v", s.label, t.desc.Type, t.desc.Shape, want)
	}
	if !sameDesc(b.desc, t.desc) {
		return nil, status.Errorf(status.ErrBaseMismatch, "the base %s has it as %v %v, expected %v %v with digest %v", s.label, b.desc.Type, b.desc.Shape, t.desc.Type, t.desc.Shape, want)
	}
	if first {
		return &leaf{content: b.data, name: t.name, want: want}, nil
	}
	if b.digest != want {
		return nil, status.Errorf(status.ErrChain, "the delta before leads to digest %v, this one was made from %v", b.digest, want)
	}
	return b.data, nil
}

// openSame returns how to read a file that a delta names as equal to the one
// in s. A missing one is reported when it is read, because whoever only wants
// tensors does not need it.
func (s *Source) openSame(m *manifestFile) func() (io.ReadCloser, error) {
	for _, f := range s.files {
		if f.path == m.Path {
			if f.bytes != m.Bytes {
				return func() (io.ReadCloser, error) {
					return nil, status.Errorf(status.ErrBaseMismatch, "file %s of the base has %d bytes, expected %d with sha256 %s", m.Path, f.bytes, m.Bytes, m.SHA256)
				}
			}
			return f.reader
		}
	}
	return func() (io.ReadCloser, error) {
		return nil, status.Errorf(status.ErrBaseMismatch, "the base %s has no file %s, expected %d bytes with sha256 %s", s.label, m.Path, m.Bytes, m.SHA256)
	}
}
