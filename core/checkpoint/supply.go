package checkpoint

import (
	"context"
	"sync/atomic"

	"github.com/tpde-project/tpde/core/status"
)

// Supply hands tensors that somebody else rebuilds, a GPU say, to Unpack,
// which writes and proves the files. It is for one Unpack
// (UnpackOptions.Supply).
//
// Tensors are given in file order (Source.Parts), without those that no delta
// rebuilds; each is taken as the file grows, so that little is in memory.
type Supply struct {
	known chan struct{} // closed once order and tensors are there
	ended chan struct{} // closed by End

	order   []string
	tensors map[string]*supplied
	next    atomic.Int64
}

// NewSupply returns one for an Unpack that is to be started.
func NewSupply() *Supply {
	return &Supply{known: make(chan struct{}), ended: make(chan struct{}), tensors: map[string]*supplied{}}
}

// supplied is the content of a tensor that is given. Every byte is viewed once.
type supplied struct {
	name  string
	n     uint64
	done  <-chan struct{} // of the context of Unpack
	ready chan struct{}   // closed once data is there
	data  []byte
	left  atomic.Int64
	taken chan struct{} // closed once data is needed no more
}

func (c *supplied) size() uint64 { return c.n }
func (c *supplied) step() uint64 { return 1 }

func (c *supplied) view(off, n uint64, buf *[]byte) ([]byte, error) {
	select {
	case <-c.ready:
	case <-c.done:
		return nil, context.Canceled
	}
	p := grow(buf, n)
	copy(p, c.data[off:off+n])
	if c.left.Add(-int64(n)) == 0 {
		close(c.taken)
	}
	return p, nil
}

// replace makes the tensors of target that deltas rebuild wait for Give.
func (s *Supply) replace(ctx context.Context, target *Source) {
	for _, t := range target.tensors {
		if _, ok := t.data.(*rebuilt); !ok {
			continue
		}
		c := &supplied{name: t.name, n: t.data.size(), done: ctx.Done(), ready: make(chan struct{}), taken: make(chan struct{})}
		c.left.Store(int64(c.n))
		t.data = c
		s.order = append(s.order, t.name)
		s.tensors[t.name] = c
	}
	close(s.known)
}

// Give hands over a tensor and waits until its bytes are needed no more. It
// returns false if Unpack ended before that, for a reason of its own.
func (s *Supply) Give(name string, data []byte) (bool, error) {
	select {
	case <-s.known: // the same answer, whether Unpack has ended since or not
	default:
		select {
		case <-s.known:
		case <-s.ended:
			return false, nil
		}
	}
	next := int(s.next.Load())
	if next >= len(s.order) || s.order[next] != name {
		expected := "none, all were given"
		if next < len(s.order) {
			expected = s.order[next]
		}
		return false, status.InTensor(status.Errorf(status.ErrArgument, "it was given as number %d, expected %s", next, expected), name)
	}
	c := s.tensors[name]
	if uint64(len(data)) != c.n {
		return false, status.InTensor(status.Errorf(status.ErrShortBuffer, "got %d bytes, expected %d", len(data), c.n), name)
	}
	if !s.next.CompareAndSwap(int64(next), int64(next+1)) {
		return false, status.InTensor(status.Errorf(status.ErrArgument, "two tensors were given at once, expected one after the other"), name)
	}
	c.data = data
	close(c.ready)
	if c.n == 0 {
		return true, nil
	}
	select {
	case <-c.taken:
		return true, nil
	case <-s.ended:
	}
	select {
	case <-c.taken: // the last tensor: Unpack may have ended right after it
		return true, nil
	default:
		return false, nil
	}
}

// End says that Unpack has returned and looks at no data any more.
func (s *Supply) End() { close(s.ended) }
