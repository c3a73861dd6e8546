package checkpoint

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

// CompressReport says what Compress has written.
type CompressReport struct {
	CompressedReport
	Out     []string `json:"out"`
	Seconds float64  `json:"seconds"`
}

// Compress writes target as a compressed model to the folder out: a quantised
// base, derived from target or taken from elsewhere, and the delta that makes
// target of it. The folder appears whole or not at all. p may be nil.
func Compress(ctx context.Context, target *Source, out string, o CompressOptions, p *Progress) (*CompressReport, error) {
	var r *CompressReport
	err := fault.Guard(func() (err error) {
		r, err = compress(ctx, target, out, o, p)
		return err
	})
	return r, atomicfile.Error(err)
}

func compress(ctx context.Context, target *Source, out string, o CompressOptions, p *Progress) (*CompressReport, error) {
	begin := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := target.layout(); err != nil {
		return nil, err
	}
	inputs := []*Source{target}
	var given *Source
	if o.BasePath != "" {
		var err error
		if given, err = openGiven(o.BasePath, target); err != nil {
			return nil, err
		}
		defer given.Close()
		inputs = append(inputs, given)
	}
	dest, err := resolveDestination(out, true, "", o.Pack.Overwrite)
	if err != nil {
		return nil, err
	}
	if err := checkOutput(dest.path, inputs...); err != nil {
		return nil, err
	}
	atomicfile.RemoveStale(dest.path)
	dir, err := atomicfile.CreateDir(dest.path)
	if err != nil {
		return nil, err
	}
	r, err := fill(ctx, dir.Name(), target, given, &o, p)
	if err == nil {
		err = dir.SyncTree(ctx)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = dir.Publish(o.Pack.Overwrite)
	}
	if err = errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	for i, path := range r.Out {
		r.Out[i] = filepath.Join(dest.path, path)
	}
	r.Seconds = time.Since(begin).Seconds()
	return r, atomicfile.SyncDir(filepath.Dir(dest.path))
}

// fill makes the compressed model in the empty folder dir. The paths in the
// report are relative to it.
func fill(ctx context.Context, dir string, target, given *Source, o *CompressOptions, p *Progress) (*CompressReport, error) {
	q := &quantiser{
		bits: derivedBases[o.Base], group: o.GroupSize, embeddings: o.Embeddings,
		workers: o.Pack.Workers, p: p, target: target,
	}
	total := contentBytes(target.tensors)
	basePath := filepath.Join(dir, baseFolder)
	var err error
	switch {
	case given != nil && o.LinkBase:
		p.begin(total)
		var absolute string
		if absolute, err = filepath.Abs(o.BasePath); err == nil {
			err = os.Symlink(absolute, basePath)
		}
	case given != nil:
		p.begin(total + given.bytes())
		err = copyGiven(ctx, given, basePath, p)
	case q.bits != 0:
		p.begin(total + contentBytes(q.chosen()))
		if err = os.Mkdir(basePath, 0o777); err == nil {
			err = q.run(ctx, filepath.Join(basePath, modelFile), o.Pack.MaxShardBytes)
		}
		if err == nil && q.s.empty() {
			err = os.Remove(basePath)
		}
	default:
		p.begin(total)
	}
	if err != nil {
		return nil, atomicfile.Error(err)
	}
	// What is packed against is what was written.
	base, err := openBaseFor(dir, typesOf(target))
	if err != nil {
		return nil, err
	}
	defer base.Close()
	k := &packer{base: base, target: target, o: o.Pack, p: p, plans: map[*tensorInfo]*tensorPlan{}}
	if err := k.run(ctx, ResidualPath(dir)); err != nil {
		return nil, err
	}
	if err := copyCompanions(ctx, target, dir); err != nil {
		return nil, err
	}
	d, err := openDelta(ResidualPath(dir))
	if err != nil {
		return nil, status.Errorf(status.ErrInternal, "the delta was written but cannot be read: %v", err)
	}
	defer d.Close()
	r := &CompressReport{CompressedReport: *compressedReport(base, d)}
	r.Out, err = listFiles(dir)
	return r, err
}

func contentBytes(tensors []*tensorInfo) (n uint64) {
	for _, t := range tensors {
		n += t.data.size()
	}
	return n
}

// openGiven opens a quantised checkpoint and requires that it is one of
// target.
func openGiven(path string, target *Source) (*Source, error) {
	s, err := OpenQuantised(path, typesOf(target))
	if err != nil {
		return nil, err
	}
	err = func() error {
		found := false
		for _, b := range s.tensors {
			if _, ok := b.data.(*quantised); !ok {
				continue
			}
			found = true
			t := target.byName[b.name]
			switch {
			case t == nil:
				return status.InTensor(status.Errorf(status.ErrBaseMismatch, "the base %s has it quantised, %s does not have it: expected the same model", path, target.label), b.name)
			case !slices.Equal(t.desc.Shape, b.desc.Shape):
				return status.InTensor(status.Errorf(status.ErrBaseMismatch, "the base %s has it quantised in shape %v, %s has %v", path, b.desc.Shape, target.label, t.desc.Shape), b.name)
			case !quantisable(t.desc.Type):
				return status.InTensor(status.Errorf(status.ErrBaseMismatch, "the base %s has it quantised, %s as %v: expected F32, F16 or BF16", path, target.label, t.desc.Type), b.name)
			}
		}
		if !found {
			return status.Errorf(status.ErrArgument, "%s has no quantised tensors; for a delta against a full checkpoint there is pack", path)
		}
		return nil
	}()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// copyGiven copies the files of a quantised checkpoint into a new folder.
func copyGiven(ctx context.Context, s *Source, to string, p *Progress) error {
	if err := checkSpace(filepath.Dir(to), s.bytes()); err != nil {
		return err
	}
	for _, f := range s.files {
		from := s.path
		if s.folder {
			from = filepath.Join(s.path, filepath.FromSlash(f.path))
		}
		r, err := os.Open(from)
		if err != nil {
			return err
		}
		err = copyFile(ctx, r, filepath.Join(to, filepath.FromSlash(f.path)), f.bytes)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		p.add(f.bytes)
	}
	return nil
}

// maxCompanion is the size up to which a file that describes a model is copied
// so that tools find it.
const maxCompanion = 32 << 20

// copyCompanions copies the small files of target's top folder, its
// configuration and tokenizer, for tools that look for them. The delta has
// them anyway. An index of shards is left out: the shards are not there.
func copyCompanions(ctx context.Context, target *Source, dir string) error {
	if !target.folder {
		return nil
	}
	for _, f := range target.files {
		if f.header != nil || f.open == nil || f.bytes > maxCompanion || strings.Contains(f.path, "/") || f.path == baseFolder ||
			strings.HasSuffix(f.path, extension) || strings.HasSuffix(f.path, indexExtension) {
			continue
		}
		r, err := f.open()
		if err != nil {
			return err
		}
		err = copyFile(ctx, r, filepath.Join(dir, f.path), f.bytes)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// copyFile writes the n bytes of r to a new file.
func copyFile(ctx context.Context, r io.Reader, to string, n uint64) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o777); err != nil {
		return err
	}
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	if f, ok := r.(*os.File); ok {
		err = copyRange(ctx, w, f, 0, n)
	} else if got, cerr := io.Copy(w, &ctxReader{ctx, r}); cerr != nil {
		err = cerr
	} else if uint64(got) != n {
		err = status.Errorf(status.ErrIO, "%s has %d bytes, expected %d: it changes while it is read", filepath.Base(to), got, n)
	}
	if err == nil {
		err = atomicfile.Sync(ctx, w)
	}
	return errors.Join(err, w.Close())
}

// listFiles returns the paths of all files in dir, relative to it.
func listFiles(dir string) (list []string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		list = append(list, rel)
		return err
	})
	return list, atomicfile.Error(err)
}
