package checkpoint

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

// Unpack writes the checkpoint that deltas, in this order, make of base. The
// chain and every tensor of the base that is needed are checked before
// anything is written; each file is proven with SHA-256 before it gets its
// name. p may be nil.
//
// A target that was a folder is restored as the folder out. One that was a
// single file, or tensors in memory, is restored as the file out, or into out
// if that is an empty folder or ends with a slash.
func Unpack(ctx context.Context, base *Source, deltas []string, out string, o UnpackOptions, p *Progress) (*UnpackReport, error) {
	var r *UnpackReport
	err := fault.Guard(func() (err error) {
		r, err = unpack(ctx, base, deltas, out, o, p)
		return err
	})
	return r, atomicfile.Error(err)
}

func unpack(ctx context.Context, base *Source, paths []string, out string, o UnpackOptions, p *Progress) (*UnpackReport, error) {
	begin := time.Now()
	if err := checkWorkers(o.Workers); err != nil {
		return nil, err
	}
	target, deltas, err := apply(base, paths)
	if err != nil {
		return nil, err
	}
	defer target.Close()
	dest, err := resolveDestination(out, target.folder, target.files[0].path, o.Overwrite)
	if err != nil {
		return nil, err
	}
	inputs := []*Source{base, {label: "delta", inputs: target.inputs}}
	if err := checkOutput(dest.path, inputs...); err != nil {
		return nil, err
	}
	if err := checkBase(ctx, target, o.Workers); err != nil {
		return nil, err
	}
	p.begin(target.bytes())
	if o.Supply != nil {
		o.Supply.replace(ctx, target)
	}

	if dest.parent != "" {
		if err := os.Mkdir(dest.parent, 0o777); err != nil {
			return nil, atomicfile.Error(err)
		}
	}
	if target.folder {
		err = writeFolder(ctx, target, dest.path, o, p)
	} else {
		err = writeFile(ctx, target.files[0], dest.path, o, p)
	}
	if err != nil {
		if dest.parent != "" {
			os.Remove(dest.parent) // ours, and empty
		}
		return nil, err
	}
	r := &UnpackReport{Base: deltas[0].base.String(), Target: deltas[len(deltas)-1].target.String()}
	for _, f := range target.files {
		path := dest.path
		if target.folder {
			path = filepath.Join(path, filepath.FromSlash(f.path))
		}
		r.Files = append(r.Files, UnpackedFile{path, f.bytes, f.sha256, true})
		r.Bytes += f.bytes
	}
	r.Files = notNil(r.Files)
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}

// bytes returns the size of all files.
func (s *Source) bytes() uint64 {
	var n uint64
	for _, f := range s.files {
		n += f.bytes
	}
	return n
}

// checkBase checks everything that target, made by deltas, needs of its base.
func checkBase(ctx context.Context, target *Source, workers int) error {
	var leaves []*leaf
	var contents []content
	seen := map[*leaf]bool{}
	for _, t := range target.tensors {
		if l := leafOf(t.data); l != nil && !seen[l] {
			seen[l] = true
			leaves = append(leaves, l)
			contents = append(contents, l.content)
		}
	}
	err := scan(ctx, workers, contents, nil, func(i int, r scanned) error {
		if r.target != leaves[i].want {
			return leaves[i].mismatch(r.target)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, f := range target.files {
		if !f.inBase {
			continue
		}
		r, err := f.open() // says whether it is there and as long as it should be
		if err != nil {
			return err
		}
		r.Close()
	}
	return nil
}

func writeFile(ctx context.Context, f *fileInfo, path string, o UnpackOptions, p *Progress) error {
	if err := checkSpace(filepath.Dir(path), f.bytes); err != nil {
		return err
	}
	atomicfile.RemoveStale(path)
	out, err := atomicfile.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	b := builder{workers: o.Workers, p: p, out: out.File}
	if err := b.build(ctx, f); err != nil {
		return err
	}
	if err := atomicfile.Sync(ctx, out.File); err != nil {
		return err
	}
	if err := out.Publish(o.Overwrite); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

func writeFolder(ctx context.Context, target *Source, path string, o UnpackOptions, p *Progress) (err error) {
	if err := checkSpace(filepath.Dir(path), target.bytes()); err != nil {
		return err
	}
	atomicfile.RemoveStale(path)
	dir, err := atomicfile.CreateDir(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	for _, f := range target.files {
		full := filepath.Join(dir.Name(), filepath.FromSlash(f.path))
		if err := os.MkdirAll(filepath.Dir(full), 0o777); err != nil {
			return atomicfile.Error(err)
		}
		out, err := os.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return atomicfile.Error(err)
		}
		b := builder{workers: o.Workers, p: p, out: out}
		if err = b.build(ctx, f); err == nil {
			err = atomicfile.Sync(ctx, out)
		}
		if err = errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
	if err := dir.SyncTree(ctx); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := dir.Publish(o.Overwrite); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// Verify does what Unpack does and writes nothing: it proves that deltas turn
// base into files with the recorded sums. If target is not nil, its tensors
// are compared with the rebuilt ones too. p may be nil.
func Verify(ctx context.Context, base *Source, deltas []string, target *Source, o UnpackOptions, p *Progress) (*VerifyReport, error) {
	var r *VerifyReport
	err := fault.Guard(func() (err error) {
		r, err = verify(ctx, base, deltas, target, o, p)
		return err
	})
	return r, atomicfile.Error(err)
}

func verify(ctx context.Context, base *Source, paths []string, target *Source, o UnpackOptions, p *Progress) (*VerifyReport, error) {
	begin := time.Now()
	if err := checkWorkers(o.Workers); err != nil {
		return nil, err
	}
	made, deltas, err := apply(base, paths)
	if err != nil {
		return nil, err
	}
	defer made.Close()
	total := made.bytes()
	if target != nil {
		for _, t := range made.tensors {
			total += t.data.size()
		}
	}
	p.begin(total)
	if err := checkBase(ctx, made, o.Workers); err != nil {
		return nil, err
	}
	r := &VerifyReport{UnpackReport: UnpackReport{Base: deltas[0].base.String(), Target: deltas[len(deltas)-1].target.String()}}
	for _, f := range made.files {
		b := builder{workers: o.Workers, p: p}
		if err := b.build(ctx, f); err != nil {
			return nil, err
		}
		r.Files = append(r.Files, UnpackedFile{f.path, f.bytes, f.sha256, true})
		r.Bytes += f.bytes
	}
	r.Files = notNil(r.Files)
	if target != nil {
		if err := compareSources(ctx, made, target, o.Workers, p); err != nil {
			return nil, err
		}
		r.TargetCompared = true
	}
	r.Seconds = time.Since(begin).Seconds()
	return r, nil
}

// compareSources requires that two checkpoints have the same tensors.
func compareSources(ctx context.Context, made, target *Source, workers int, p *Progress) error {
	if err := target.layout(); err != nil {
		return err
	}
	var a, b []content
	for _, t := range made.tensors {
		want := target.byName[t.name]
		if want == nil {
			return status.InTensor(status.Errorf(status.ErrTargetMismatch, "the delta makes it, %s does not have it", target.label), t.name)
		}
		if !sameDesc(t.desc, want.desc) {
			return status.InTensor(status.Errorf(status.ErrTargetMismatch, "the delta makes %v %v, %s has %v %v", t.desc.Type, t.desc.Shape, target.label, want.desc.Type, want.desc.Shape), t.name)
		}
		a, b = append(a, t.data), append(b, want.data)
	}
	for _, t := range target.tensors {
		if made.byName[t.name] == nil {
			return status.InTensor(status.Errorf(status.ErrTargetMismatch, "%s has it, the delta does not make it", target.label), t.name)
		}
	}
	return scan(ctx, workers, a, b, func(i int, r scanned) error {
		if !r.equal {
			return status.InTensor(status.Errorf(status.ErrTargetMismatch, "the delta makes digest %v, %s has %v", r.target, target.label, r.base), made.tensors[i].name)
		}
		p.add(a[i].size())
		return nil
	})
}
