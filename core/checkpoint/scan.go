package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"sync"

	"github.com/cespare/xxhash/v2"

	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/plan"
)

// scanned is what one look at a tensor, and at its base, tells.
type scanned struct {
	target digest.Sum
	base   digest.Sum // zero without a base
	equal  bool       // base and target have the same bytes
}

// scan digests every tensor of targets and, where bases (nil, or as long as
// targets) has one of the same size, compares and digests that. Work is spread
// over segments, so that one huge tensor is as fast as many small ones. done
// is called once per tensor, from any goroutine, one at a time.
func scan(ctx context.Context, workers int, targets, bases []content, done func(i int, r scanned) error) error {
	segment := max(digest.PageBytes, segmentBytes(workers)/digest.PageBytes*digest.PageBytes)
	type task struct {
		tensor int
		off, n uint64
	}
	var tasks []task
	states := make([]scanState, len(targets))
	for i, c := range targets {
		states[i].left = 0
		for off := uint64(0); off == 0 || off < c.size(); off += segment {
			tasks = append(tasks, task{i, off, min(segment, c.size()-off)})
			states[i].left++
		}
	}
	var doneMu sync.Mutex
	return plan.Each(ctx, workers, len(tasks), func(_ context.Context, k int) error {
		t := tasks[k]
		s := &states[t.tensor]
		target := targets[t.tensor]
		var base content
		if bases != nil {
			base = bases[t.tensor]
		}
		s.start(target.size(), base != nil)
		if err := s.segment(target, base, t.off, t.n); err != nil {
			return err
		}
		if r, last := s.finish(); last {
			doneMu.Lock()
			defer doneMu.Unlock()
			return done(t.tensor, r)
		}
		return nil
	})
}

// scanState collects the page hashes of a tensor; it holds them only while the
// tensor is worked on.
type scanState struct {
	mu           sync.Mutex
	left         int // segments to go
	target, base []byte
	differ       bool
}

func (s *scanState) start(size uint64, hasBase bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target == nil {
		s.target = newTree(size)
		if hasBase {
			s.base = newTree(size)
		}
	}
}

func (s *scanState) segment(target, base content, off, n uint64) error {
	bufs := [2]*[]byte{bufPool.Get().(*[]byte), bufPool.Get().(*[]byte)}
	defer bufPool.Put(bufs[0])
	defer bufPool.Put(bufs[1])
	t, err := target.view(off, n, bufs[0])
	if err != nil {
		return err
	}
	hashPages(s.target, t, off)
	if base == nil {
		return nil
	}
	b, err := base.view(off, n, bufs[1])
	if err != nil {
		return err
	}
	if bytes.Equal(t, b) { // equal pages have equal hashes
		from := 8 + off/digest.PageBytes*8
		to := from + (n+digest.PageBytes-1)/digest.PageBytes*8
		copy(s.base[from:to], s.target[from:to])
		return nil
	}
	hashPages(s.base, b, off)
	s.mu.Lock()
	s.differ = true
	s.mu.Unlock()
	return nil
}

func (s *scanState) finish() (r scanned, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left--; s.left > 0 {
		return r, false
	}
	r = scanned{target: rootOf(s.target), equal: s.base != nil && !s.differ}
	if s.base != nil {
		r.base = rootOf(s.base)
	}
	s.target, s.base = nil, nil
	return r, true
}

// newTree returns the first level of the digest tree (see package digest) of a
// tensor of the given size, with the page hashes still to be filled in.
func newTree(size uint64) []byte {
	tree := make([]byte, 8+(size+digest.PageBytes-1)/digest.PageBytes*8)
	binary.LittleEndian.PutUint64(tree, size)
	return tree
}

// hashPages fills in the hashes of data, which begins at byte off, a multiple
// of the page size.
func hashPages(tree, data []byte, off uint64) {
	tree = tree[8+off/digest.PageBytes*8:]
	for len(data) > 0 {
		n := min(len(data), digest.PageBytes)
		binary.LittleEndian.PutUint64(tree, xxhash.Sum64(data[:n]))
		data, tree = data[n:], tree[8:]
	}
}

func rootOf(tree []byte) digest.Sum {
	full := sha256.Sum256(tree)
	return digest.Sum(full[:digest.Size])
}
