package checkpoint

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
)

// order sorts the parts of a shard so that in the file everything is aligned
// to its words, and blobs to 4 bytes: what has the widest words goes first.
func (p *part) order() int {
	switch {
	case p.blob:
		return -4
	case p.desc.Type == dtype.U8:
		return 0
	}
	return -p.desc.Type.WordBytes()
}

// publish writes the delta and returns the paths of its files. metadata gives
// __metadata__ of each.
func (s *store) publish(ctx context.Context, metadata metadataFunc, overwrite bool) ([]string, error) {
	if len(s.shards) == 1 {
		f, err := s.shards[0].assemble(ctx, s.path, metadata(s.shards[0]))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		old := oldShards(s.path)
		if err := f.Publish(overwrite); err != nil {
			return nil, err
		}
		removeOld(old, nil)
		return []string{s.path}, atomicfile.SyncDir(filepath.Dir(s.path))
	}
	return s.publishShards(ctx, metadata, overwrite)
}

// publishShards writes a sharded set. The index JSON is what makes it one, and
// comes last; shards never take the place of older ones before that.
func (s *store) publishShards(ctx context.Context, metadata metadataFunc, overwrite bool) (paths []string, err error) {
	names := s.shardNames()
	published := false
	defer func() {
		if !published {
			for _, p := range paths {
				os.Remove(p)
			}
		}
	}()
	var files []*atomicfile.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	weightMap := map[string]string{}
	var total uint64
	for i, sh := range s.shards {
		f, err := sh.assemble(ctx, names[i], metadata(sh))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		for _, p := range sh.parts {
			weightMap[p.name] = filepath.Base(names[i])
		}
		total += sh.bytes
	}
	index, err := s.assembleIndex(ctx, weightMap, total)
	if err != nil {
		return nil, err
	}
	defer index.Close()
	for i, f := range files {
		if err := f.Publish(false); err != nil {
			return paths, err
		}
		paths = append(paths, names[i])
	}
	if err := atomicfile.SyncDir(filepath.Dir(s.path)); err != nil {
		return paths, err
	}
	old := oldShards(s.path)
	if err := index.Publish(overwrite); err != nil {
		return paths, err
	}
	published = true
	if overwrite { // a single file of the same name would hide the new set
		if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return paths, atomicfile.Error(err)
		}
	}
	removeOld(old, names)
	return append(paths, index.Path()), atomicfile.SyncDir(filepath.Dir(s.path))
}

// shardNames returns names as Hugging Face makes them, with something added if
// files of these names exist: what is there stays readable until the new set
// is complete.
func (s *store) shardNames() []string {
	stem := strings.TrimSuffix(s.path, extension)
	for version := 1; ; version++ {
		infix := ""
		if version > 1 {
			infix = fmt.Sprintf("-v%d", version)
		}
		var names []string
		free := true
		for i := range s.shards {
			name := fmt.Sprintf("%s%s-%05d-of-%05d%s", stem, infix, i+1, len(s.shards), extension)
			names = append(names, name)
			if _, err := os.Lstat(name); err == nil {
				free = false
			}
		}
		if free {
			return names
		}
	}
}

// oldShards returns the files of the sharded set that stands at path, the
// index JSON included; none if there is no set or it is not a delta's.
func oldShards(path string) []string {
	d, err := openDelta(path + indexExtension)
	if err != nil {
		return nil
	}
	defer d.Close()
	return d.paths
}

// removeOld removes files of a delta that has been replaced, but not those of
// the new one. Litter is no error.
func removeOld(old, keep []string) {
	for _, p := range old {
		if strings.HasSuffix(p, indexExtension) && keep != nil || slices.Contains(keep, p) {
			continue
		}
		os.Remove(p)
	}
}

// assemble writes header and data of a shard to a temporary file for path.
func (sh *shard) assemble(ctx context.Context, path string, metadata []safetensors.Pair) (*atomicfile.File, error) {
	slices.SortStableFunc(sh.parts, func(a, b part) int { return cmp.Compare(a.order(), b.order()) })
	entries := make([]safetensors.Tensor, len(sh.parts))
	for i, p := range sh.parts {
		entries[i] = safetensors.Tensor{Name: p.name, Type: p.desc.Type, Shape: p.desc.Shape}
	}
	text, err := safetensors.Format(entries, metadata)
	if err != nil {
		return nil, err
	}
	if err := checkSpace(filepath.Dir(path), sh.bytes+uint64(len(text))); err != nil {
		return nil, err
	}
	f, err := atomicfile.Create(path)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(append(safetensors.Prefix(text), text...))
	for i := 0; i < len(sh.parts) && err == nil; {
		// Neighbours in both files are copied in one go.
		from, n := sh.parts[i].off, uint64(0)
		for ; i < len(sh.parts) && sh.parts[i].off == from+n; i++ {
			n += sh.parts[i].n
		}
		err = copyRange(ctx, f.File, sh.data, from, n)
	}
	if err == nil {
		err = atomicfile.Sync(ctx, f.File)
	}
	if err != nil {
		f.Close()
		return nil, atomicfile.Error(err)
	}
	return f, nil
}

// assembleIndex writes the index JSON to a temporary file.
func (s *store) assembleIndex(ctx context.Context, weightMap map[string]string, total uint64) (*atomicfile.File, error) {
	text, err := json.MarshalIndent(map[string]any{
		"metadata":   map[string]any{"format": s.format, "total_size": total},
		"weight_map": weightMap,
	}, "", "  ")
	if err != nil {
		return nil, status.Errorf(status.ErrInternal, "cannot write JSON: %v", err)
	}
	f, err := atomicfile.Create(s.path + indexExtension)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(append(text, '\n')); err == nil {
		err = atomicfile.Sync(ctx, f.File)
	}
	if err != nil {
		f.Close()
		return nil, atomicfile.Error(err)
	}
	return f, nil
}

// copyRange appends n bytes of from, from off on, to to. The kernel copies
// them where it can.
func copyRange(ctx context.Context, to, from *os.File, off, n uint64) error {
	if _, err := from.Seek(int64(off), io.SeekStart); err != nil {
		return atomicfile.Error(err)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		step := int64(min(n, 64<<20))
		if _, err := io.CopyN(to, from, step); err != nil {
			return atomicfile.Error(err)
		}
		n -= uint64(step)
	}
	return nil
}

// metadataFunc returns __metadata__ of a file of a set.
type metadataFunc func(*shard) []safetensors.Pair

// metadata returns __metadata__ of every file of the delta.
func (k *packer) metadata(m *manifest) metadataFunc {
	removed, _ := json.Marshal(notNil(m.Removed)) // strings always marshal
	pairs := []safetensors.Pair{
		{Key: "format", Value: formatName},
		{Key: keyVersion, Value: formatVersion},
		{Key: keyTool, Value: Tool},
		{Key: keyBase, Value: m.Base},
		{Key: keyTarget, Value: k.targetDigest().String()},
		{Key: keyRemoved, Value: string(removed)},
	}
	return func(*shard) []safetensors.Pair { return pairs }
}
