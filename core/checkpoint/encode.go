package checkpoint

import (
	"bytes"
	"context"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/mmap"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// smallTensor is the size below which a tensor is encoded in memory, many at a
// time: inside one there is too little work to spread.
const smallTensor = 1 << 20

// entryBytes is about what a second entry costs in the header of the delta; a
// packed tensor has two, a verbatim one has one.
const entryBytes = 80

// encode is the second pass: the changed tensors, in the order of the target.
func (k *packer) encode(ctx context.Context, s *store) error {
	var todo []*tensorInfo
	for _, t := range k.target.tensors {
		switch k.plans[t].kind {
		case kindDelta, kindNew, kindVerbatim:
			todo = append(todo, t)
		}
	}
	for len(todo) > 0 {
		n := 0
		for n < len(todo) && todo[n].data.size() < smallTensor {
			n++
		}
		if n > 0 {
			if err := k.encodeSmall(ctx, s, todo[:n]); err != nil {
				return err
			}
			todo = todo[n:]
			continue
		}
		if err := k.encodeLarge(ctx, s, todo[0]); err != nil {
			return status.InTensor(err, todo[0].name)
		}
		todo = todo[1:]
	}
	return nil
}

// encodeSmall encodes tensors side by side.
func (k *packer) encodeSmall(ctx context.Context, s *store, tensors []*tensorInfo) error {
	type packed struct{ index, blob, verbatim []byte }
	return plan.Ordered(ctx, k.o.Workers, len(tensors),
		func(ctx context.Context, i int) (packed, error) {
			t := tensors[i]
			var r packed
			target, base, err := k.whole(t, s.path)
			if err != nil {
				return r, status.InTensor(err, t.name)
			}
			defer target.Close()
			defer base.Close()
			var blob bytes.Buffer
			if k.plans[t].kind != kindVerbatim {
				r.index, err = tensor.Encode(ctx, &blob, t.desc, base.data, target.data, k.tensorOptions(t, 1))
				r.blob = blob.Bytes()
			}
			if err == nil && k.settle(t, len(r.index)+len(r.blob)) {
				r.verbatim = bytes.Clone(target.data)
			}
			return r, status.InTensor(err, t.name)
		},
		func(i int, r packed) error {
			t := tensors[i]
			k.p.add(t.data.size())
			if k.plans[t].kind == kindVerbatim {
				return s.addVerbatim(k.plans[t].stored, t.desc, r.verbatim)
			}
			return s.addPacked(k.plans[t].stored, r.index, r.blob)
		})
}

// encodeLarge encodes one tensor on all cores, straight into the store.
func (k *packer) encodeLarge(ctx context.Context, s *store, t *tensorInfo) error {
	target, base, err := k.whole(t, s.path)
	if err != nil {
		return err
	}
	defer target.Close()
	defer base.Close()
	pl := k.plans[t]
	if pl.kind != kindVerbatim {
		w, err := s.begin()
		if err != nil {
			return err
		}
		o := k.tensorOptions(t, k.o.Workers)
		o.Progress = k.p.add
		index, err := tensor.Encode(ctx, w, t.desc, base.data, target.data, o)
		if err != nil {
			return err
		}
		blobBytes, err := s.pending()
		if err != nil {
			return err
		}
		if !k.settle(t, len(index)+int(blobBytes)) {
			return s.keep(ctx, pl.stored, index)
		}
		s.drop()
	} else {
		k.p.add(t.data.size())
	}
	return s.addVerbatim(pl.stored, t.desc, target.data)
}

// tensorOptions are the options for t, with the digests of the first pass.
func (k *packer) tensorOptions(t *tensorInfo, workers int) tensor.Options {
	o := k.o.tensorOptions(t.desc.Type, workers)
	pl := k.plans[t]
	o.TargetDigest = &pl.sum.target
	if pl.base != nil {
		o.BaseDigest = &pl.sum.base
		o.BaseAt = readInParts(pl.base.data)
	}
	return o
}

// readInParts returns how to read a base that costs the same in parts as in
// one piece, nil for another.
func readInParts(c content) func(dst []byte, off uint64) error {
	q, ok := c.(*quantised)
	if !ok {
		return nil
	}
	return func(dst []byte, off uint64) error {
		_, err := q.view(off, uint64(len(dst)), &dst) // which is large enough
		return err
	}
}

// settle decides whether t, packed into the given number of bytes, is better
// stored verbatim.
func (k *packer) settle(t *tensorInfo, packed int) (verbatim bool) {
	pl := k.plans[t]
	if uint64(packed)+entryBytes >= t.data.size() {
		pl.kind = kindVerbatim
	}
	return pl.kind == kindVerbatim
}

// flat is a tensor that lies in one piece.
type flat struct {
	data []byte
	file *mmap.File // what data is mapped from, if we had to write it down
}

func (f flat) Close() {
	if f.file != nil {
		f.file.Close()
	}
}

// whole returns t and its base in one piece each, but not a base that is read
// in parts. A tensor that has to be
// rebuilt goes through a nameless file beside path, so that it takes page
// cache and not memory.
func (k *packer) whole(t *tensorInfo, path string) (target, base flat, err error) {
	if target, err = flatten(t.data, path); err != nil {
		return target, base, err
	}
	if b := k.plans[t].base; b != nil && readInParts(b.data) == nil {
		if base, err = flatten(b.data, path); err != nil {
			target.Close()
		}
	}
	return target, base, err
}

func flatten(c content, path string) (flat, error) {
	if p, ok := c.(plain); ok {
		return flat{data: p}, nil
	}
	f, err := atomicfile.Scratch(path)
	if err != nil {
		return flat{}, err
	}
	defer f.Close()
	buf := bufPool.Get().(*[]byte)
	defer bufPool.Put(buf)
	var failed error
	cut(c, 4<<20, func(off, n uint64) {
		if failed != nil {
			return
		}
		v, err := c.view(off, n, buf)
		if err == nil {
			_, err = f.Write(v)
		}
		failed = err
	})
	if failed != nil {
		return flat{}, atomicfile.Error(failed)
	}
	m, err := mmap.FromFile(f)
	if err != nil {
		return flat{}, err
	}
	return flat{m.Data, m}, nil
}
