package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/container"
	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
)

// Pack writes the delta that takes base to target to out, a safetensors file
// or, where it gets too large for one, a sharded set with its index JSON at
// out + ".index.json". p may be nil.
func Pack(ctx context.Context, base, target *Source, out string, o PackOptions, p *Progress) (*PackReport, error) {
	var r *PackReport
	err := fault.Guard(func() (err error) {
		r, err = pack(ctx, base, target, out, o, p)
		return err
	})
	return r, atomicfile.Error(err)
}

func pack(ctx context.Context, base, target *Source, out string, o PackOptions, p *Progress) (*PackReport, error) {
	begin := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	if sameSource(base, target) {
		return nil, status.Errorf(status.ErrArgument, "base and target are the same: %s", target.label)
	}
	for _, s := range []*Source{base, target} {
		if err := s.layout(); err != nil {
			return nil, err
		}
	}
	if err := checkDeltaPath(out, o.Overwrite, base, target); err != nil {
		return nil, err
	}
	var total uint64
	for _, t := range target.tensors {
		total += t.data.size()
	}
	p.begin(total)

	k := &packer{base: base, target: target, o: o, p: p, plans: map[*tensorInfo]*tensorPlan{}}
	if err := k.run(ctx, out); err != nil {
		return nil, err
	}
	// What is reported is read back from what was written.
	d, err := openDelta(out)
	if err != nil {
		return nil, status.Errorf(status.ErrInternal, "the delta was written but cannot be read: %v", err)
	}
	defer d.Close()
	return &PackReport{*d.report(), k.written, time.Since(begin).Seconds()}, nil
}

// checkDeltaPath refuses an output path before any work is done.
func checkDeltaPath(out string, overwrite bool, sources ...*Source) error {
	if out == "" || strings.HasSuffix(out, "/") || strings.HasSuffix(out, indexExtension) {
		return status.Errorf(status.ErrArgument, "output path %q, expected the name of a %s file", out, extension)
	}
	parent, err := os.Stat(filepath.Dir(out))
	if err != nil {
		return atomicfile.Error(err)
	}
	if !parent.IsDir() {
		return status.Errorf(status.ErrIO, "%s is not a folder", filepath.Dir(out))
	}
	if err := checkOutput(out, sources...); err != nil {
		return err
	}
	for _, path := range []string{out, out + indexExtension} {
		if err := checkAbsent(path, overwrite); err != nil {
			return err
		}
	}
	return nil
}

// tensorPlan is what is known of a tensor of the target while it is packed.
type tensorPlan struct {
	base   *tensorInfo // with the same name, dtype and shape; nil if there is none
	sum    scanned
	kind   string
	of     string
	reason string
	stored string // its name in the delta
}

type packer struct {
	base, target *Source
	o            PackOptions
	p            *Progress

	plans       map[*tensorInfo]*tensorPlan
	baseDigests map[*tensorInfo]digest.Sum
	sums        []fileSum // of target.files
	written     []string
}

func (k *packer) run(ctx context.Context, out string) error {
	atomicfile.RemoveStale(out)
	// Files are hashed beside everything else: SHA-256 is slower than the rest
	// of the first pass.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	hashed := make(chan error, 1)
	go func() {
		err := k.sumFiles(ctx)
		if err != nil {
			cancel(err)
		}
		hashed <- err
	}()
	s := newStore(out, k.o.MaxShardBytes)
	defer s.Close()
	err := fault.Guard(func() error {
		if err := k.compare(ctx); err != nil {
			return err
		}
		if err := k.decide(); err != nil {
			return err
		}
		return k.encode(ctx, s)
	})
	if err != nil {
		cancel(err)
	}
	if herr := <-hashed; herr != nil && (err == nil || context.Cause(ctx) == herr) {
		err = herr
	}
	if err != nil {
		return err
	}
	m, err := k.manifest(ctx, s)
	if err != nil {
		return err
	}
	k.written, err = s.publish(ctx, k.metadata(m), k.o.Overwrite)
	return err
}

// compare is the first pass: every tensor is compared with its base and both
// are digested. Unchanged ones are done then.
func (k *packer) compare(ctx context.Context) error {
	var targets, bases []content
	matched := map[*tensorInfo]bool{}
	for _, t := range k.target.tensors {
		pl := &tensorPlan{stored: t.name}
		k.plans[t] = pl
		targets = append(targets, t.data)
		switch b := k.base.byName[t.name]; {
		case b == nil:
			bases = append(bases, nil)
		case !sameDesc(b.desc, t.desc):
			pl.reason = fmt.Sprintf("the base has it as %v %v", b.desc.Type, b.desc.Shape)
			if len(pl.reason) > maxReasonBytes {
				pl.reason = "the base has it in another shape"
			}
			bases = append(bases, nil)
		default:
			pl.base = b
			matched[b] = true
			bases = append(bases, b.data)
		}
	}
	// The rest of the base counts for its identity.
	var rest []*tensorInfo
	for _, b := range k.base.tensors {
		if !matched[b] {
			rest = append(rest, b)
			targets, bases = append(targets, b.data), append(bases, nil)
		}
	}
	k.baseDigests = map[*tensorInfo]digest.Sum{}
	n := len(k.target.tensors)
	return scan(ctx, k.o.Workers, targets, bases, func(i int, r scanned) error {
		if i >= n {
			k.baseDigests[rest[i-n]] = r.target
			return nil
		}
		t := k.target.tensors[i]
		pl := k.plans[t]
		pl.sum = r
		if pl.base != nil {
			k.baseDigests[pl.base] = r.base
		}
		if r.equal {
			pl.kind = kindUnchanged
			k.p.add(t.data.size())
		}
		return nil
	})
}

// decide says what becomes of each changed tensor: those equal to another
// tensor of the target are stored once. Sizes are tried by encode.
func (k *packer) decide() error {
	first := map[digest.Sum]*tensorInfo{}
	for _, unchanged := range []bool{true, false} { // what costs nothing goes first
		for _, t := range k.target.tensors {
			pl := k.plans[t]
			if (pl.kind == kindUnchanged) != unchanged || t.data.size() == 0 {
				continue
			}
			other := first[pl.sum.target]
			if other == nil {
				first[pl.sum.target] = t
				continue
			}
			if unchanged || other.desc.Type != t.desc.Type {
				continue
			}
			// A digest is no proof.
			if same, err := equalContents(t.data, other.data); err != nil {
				return err
			} else if same {
				pl.kind, pl.of = kindAlias, other.name
				k.p.add(t.data.size())
			}
		}
	}
	for _, t := range k.target.tensors {
		pl := k.plans[t]
		switch {
		case pl.kind != "":
		case t.data.size() == 0 || len(t.desc.Shape) > container.MaxDims:
			pl.kind = kindVerbatim
		case pl.base != nil:
			pl.kind = kindDelta
		default:
			pl.kind = kindNew
		}
	}
	k.nameStored()
	return nil
}

// nameStored finds a name in the delta for every tensor that may be stored
// there, so that no two meet: "w" with its index and blob may meet a tensor
// that is called "w.tpde_index".
func (k *packer) nameStored() {
	used := map[string]bool{manifestName: true}
	for _, t := range k.target.tensors {
		pl := k.plans[t]
		if pl.kind == kindUnchanged || pl.kind == kindAlias {
			continue
		}
		taken := func() bool {
			return used[pl.stored] || used[pl.stored+indexSuffix] || used[pl.stored+blobSuffix]
		}
		for taken() {
			pl.stored += "~"
		}
		used[pl.stored], used[pl.stored+indexSuffix], used[pl.stored+blobSuffix] = true, true, true
	}
}

func equalContents(a, b content) (bool, error) {
	if a.size() != b.size() {
		return false, nil
	}
	x, y := bufPool.Get().(*[]byte), bufPool.Get().(*[]byte)
	defer bufPool.Put(x)
	defer bufPool.Put(y)
	const step = 4 << 20
	for off := uint64(0); off < a.size(); off += step {
		n := min(step, a.size()-off)
		p, err := a.view(off, n, x)
		if err != nil {
			return false, err
		}
		q, err := b.view(off, n, y)
		if err != nil {
			return false, err
		}
		if !bytes.Equal(p, q) {
			return false, nil
		}
	}
	return true, nil
}

// manifest stores the files that travel along and returns the table of all.
func (k *packer) manifest(ctx context.Context, s *store) (*manifest, error) {
	m := &manifest{
		Folder: k.target.folder,
		Base:   checkpointDigest(k.base.tensors, func(t *tensorInfo) digest.Sum { return k.baseDigests[t] }).String(),
	}
	for i, f := range k.target.files {
		row := manifestFile{Path: f.path, Kind: fileTensors, Bytes: f.bytes, SHA256: k.sums[i].sha256}
		switch {
		case f.header != nil:
			row.Header, row.Scope = string(f.header), f.scope
			for _, t := range f.tensors {
				row.Tensors = append(row.Tensors, k.plans[t].row(t))
			}
		case k.sums[i].same:
			row.Kind = fileSame
		default:
			row.Kind = fileCarried
			var err error
			if row.Stored, row.Coding, err = s.carry(ctx, f); err != nil {
				return nil, err
			}
		}
		m.Files = append(m.Files, row)
	}
	for _, b := range k.base.tensors {
		if k.target.byName[b.name] == nil {
			m.Removed = append(m.Removed, b.name)
		}
	}
	slices.Sort(m.Removed)
	packed, err := m.encode()
	if err != nil {
		return nil, err
	}
	return m, s.addBytes(manifestName, packed)
}

func (pl *tensorPlan) row(t *tensorInfo) manifestTensor {
	row := manifestTensor{Kind: pl.kind, Of: pl.of, Reason: pl.reason}
	if pl.kind == kindUnchanged || pl.kind == kindVerbatim {
		row.Digest = pl.sum.target.String()
	}
	if pl.kind != kindAlias && pl.stored != t.name {
		row.Stored = pl.stored
	}
	return row
}

func (k *packer) workers() int { return plan.Workers(k.o.Workers) }

func (k *packer) targetDigest() digest.Sum {
	return checkpointDigest(k.target.tensors, func(t *tensorInfo) digest.Sum { return k.plans[t].sum.target })
}
