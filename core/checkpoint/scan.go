package checkpoint

import (
	"bytes"
	"context"
	"sync"

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
	target, base *digest.Tree
	differ       bool
}

func (s *scanState) start(size uint64, hasBase bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.target == nil {
		s.target = digest.NewTree(size)
		if hasBase {
			s.base = digest.NewTree(size)
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
	s.target.Add(off, t)
	if base == nil {
		return nil
	}
	b, err := base.view(off, n, bufs[1])
	if err != nil {
		return err
	}
	if bytes.Equal(t, b) {
		s.base.Copy(s.target, off, n)
		return nil
	}
	s.base.Add(off, b)
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
	r = scanned{target: s.target.Sum(), equal: s.base != nil && !s.differ}
	if s.base != nil {
		r.base = s.base.Sum()
	}
	s.target, s.base = nil, nil
	return r, true
}
