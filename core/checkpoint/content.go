package checkpoint

import (
	"context"
	"sync"

	"github.com/tpde-project/tpde/core/digest"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// content is the bytes of one tensor, wherever they come from.
type content interface {
	size() uint64
	// view returns bytes [off, off+n), in *buf if they do not lie in memory
	// anyway. The range must begin and end on a word. The result must not be
	// changed and is valid until *buf is used again.
	view(off, n uint64, buf *[]byte) ([]byte, error)
	// step returns the number of bytes at whose multiples a view is cheapest
	// to begin and end.
	step() uint64
}

// plain is a tensor in memory or in a mapped file.
type plain []byte

func (p plain) size() uint64 { return uint64(len(p)) }
func (p plain) step() uint64 { return 1 }
func (p plain) view(off, n uint64, _ *[]byte) ([]byte, error) {
	return p[off : off+n : off+n], nil
}

// rebuilt is a tensor that a delta makes of its base.
type rebuilt struct {
	name        string
	r           *tensor.Reader
	base        content // nil if it was packed without one
	delta       string  // path
	index, blob []byte  // as they are stored
}

func (c *rebuilt) size() uint64 { return c.r.Index().TargetBytes() }

func (c *rebuilt) step() uint64 {
	return max(1, c.r.Index().ChunkWords*uint64(c.r.Index().Type.WordBytes()))
}

func (c *rebuilt) view(off, n uint64, buf *[]byte) ([]byte, error) {
	p := grow(buf, n)
	var base tensor.BaseFunc
	if c.base != nil {
		b := bufPool.Get().(*[]byte)
		defer bufPool.Put(b)
		base = func(off, n uint64) ([]byte, error) { return c.base.view(off, n, b) }
	}
	return p, status.InTensor(c.r.ReadAt(p, off, base), c.name)
}

// leaf is a tensor of the base that a delta refers to, with the digest that
// the delta expects of it.
type leaf struct {
	content
	name string
	want digest.Sum

	mu      sync.Mutex
	checked bool
}

func (l *leaf) mismatch(got digest.Sum) error {
	return status.InTensor(status.Errorf(status.ErrBaseMismatch, "the base has digest %v, expected digest %v", got, l.want), l.name)
}

// check compares the digest of the whole tensor, once.
func (l *leaf) check(ctx context.Context, workers int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.checked {
		return nil
	}
	var got digest.Sum
	err := scan(ctx, workers, []content{l.content}, nil, func(_ int, r scanned) error {
		got = r.target
		return nil
	})
	if err == nil && got != l.want {
		err = l.mismatch(got)
	}
	l.checked = err == nil
	return err
}

// leafOf returns the base tensor that c is rebuilt from, nil if there is none.
func leafOf(c content) *leaf {
	for {
		switch v := c.(type) {
		case *leaf:
			return v
		case *rebuilt:
			c = v.base
		default:
			return nil
		}
	}
}

var bufPool = sync.Pool{New: func() any { return new([]byte) }}

// grow makes *buf hold n bytes and returns them.
func grow(buf *[]byte, n uint64) []byte {
	if uint64(cap(*buf)) < n {
		*buf = make([]byte, n)
	}
	return (*buf)[:n:n]
}

// segmentBytes returns how much of a tensor one task should handle: enough to
// forget the cost of a task, little enough for the buffers of all workers to
// stay below 128 MiB.
func segmentBytes(workers int) uint64 {
	const most, least, all = 4 << 20, 256 << 10, 128 << 20
	return min(most, max(least, all/uint64(2*plan.Workers(workers))/least*least))
}

// cut calls each with the ranges of c, of about segment bytes each, so that
// they meet where c likes it.
func cut(c content, segment uint64, each func(off, n uint64)) {
	step := c.step()
	segment = max(1, segment/step) * step
	for off := uint64(0); off < c.size(); off += segment {
		each(off, min(segment, c.size()-off))
	}
}
