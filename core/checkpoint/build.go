package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/safetensors"
	"github.com/tpde-project/tpde/core/status"
)

// builder makes one file of a target: workers rebuild segments, the caller's
// goroutine writes them in order, another one hashes them.
type builder struct {
	workers int
	p       *Progress
	out     *os.File // nil: only hash
}

// build makes f and proves that it is what was packed.
func (b *builder) build(ctx context.Context, f *fileInfo) error {
	s := newSink(b.out)
	var err error
	if f.header != nil {
		err = b.tensors(ctx, f, s)
	} else {
		err = b.stream(ctx, f, s)
	}
	sum, hashErr := s.finish()
	switch {
	case err != nil:
		return err
	case hashErr != nil:
		return hashErr
	case sum == f.sha256 || f.sha256 == "":
		return nil
	case f.inBase:
		return status.Errorf(status.ErrBaseMismatch, "file %s of the base has sha256 %s, the delta was made from %s", f.path, sum, f.sha256)
	}
	return status.Errorf(status.ErrTargetMismatch, "file %s was rebuilt with sha256 %s, expected %s", f.path, sum, f.sha256)
}

// stream copies a file that has no tensors.
func (b *builder) stream(ctx context.Context, f *fileInfo, s *sink) error {
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	var n uint64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		buf := s.buffer(min(1<<20-1, f.bytes) + 1) // one more, to notice a longer file
		got, err := io.ReadFull(r, buf.data)
		buf.data = buf.data[:got]
		n += uint64(got)
		if n > f.bytes {
			buf.release()
			return status.Errorf(status.ErrCorrupt, "file %s is longer than the recorded %d bytes", f.path, f.bytes)
		}
		if werr := s.write(buf); werr != nil {
			return werr
		}
		b.p.add(uint64(got))
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if n != f.bytes {
		return status.Errorf(status.ErrCorrupt, "file %s has %d bytes, expected %d", f.path, n, f.bytes)
	}
	return nil
}

// span is a range of a tensor.
type span struct {
	c      content
	off, n uint64
}

// tensors makes a safetensors file.
func (b *builder) tensors(ctx context.Context, f *fileInfo, s *sink) error {
	head := s.buffer(0)
	head.data = append(append(head.data[:0], safetensors.Prefix(f.header)...), f.header...)
	n := uint64(len(head.data))
	if err := s.write(head); err != nil {
		return err
	}
	b.p.add(n)

	// Small tensors share a task, large ones have several.
	segment := segmentBytes(b.workers)
	var tasks [][]span
	room := uint64(0)
	for _, t := range f.tensors {
		cut(t.data, segment, func(off, n uint64) {
			if n > room {
				tasks = append(tasks, nil)
				room = max(segment, n)
			}
			room -= n
			tasks[len(tasks)-1] = append(tasks[len(tasks)-1], span{t.data, off, n})
		})
	}
	return plan.Ordered(ctx, b.workers, len(tasks),
		func(_ context.Context, i int) (*buffer, error) { return s.fill(tasks[i]) },
		func(_ int, buf *buffer) error {
			n := uint64(len(buf.data))
			if err := s.write(buf); err != nil {
				return err
			}
			b.p.add(n)
			return nil
		})
}

// buffer is a piece of a file on its way to disk and hash.
type buffer struct {
	data []byte
	mem  []byte // to be used again; nil if data lies elsewhere
	pool *sync.Pool
	refs atomic.Int32
}

func (b *buffer) release() {
	if b.refs.Add(-1) == 0 {
		b.pool.Put(b)
	}
}

// sink writes and hashes buffers in the order in which it gets them.
type sink struct {
	out     *os.File
	pool    sync.Pool
	hash    hash.Hash
	err     error // of hashing
	hashing chan *buffer
	done    chan struct{}
	written int64
	started int64 // up to here the kernel has been asked to write to disk
}

func newSink(out *os.File) *sink {
	s := &sink{out: out, hash: sha256.New(), hashing: make(chan *buffer, 2), done: make(chan struct{})}
	s.pool.New = func() any { return &buffer{pool: &s.pool} }
	go func() {
		defer close(s.done)
		for b := range s.hashing {
			// Data may lie in a mapped file that somebody shortens.
			if err := fault.Guard(func() error { s.hash.Write(b.data); return nil }); err != nil {
				s.err = err
			}
			b.release()
		}
	}()
	return s
}

// finish waits for the hash and returns it.
func (s *sink) finish() (string, error) {
	close(s.hashing)
	<-s.done
	return hex.EncodeToString(s.hash.Sum(nil)), s.err
}

// buffer returns one of n bytes.
func (s *sink) buffer(n uint64) *buffer {
	b := s.pool.Get().(*buffer)
	b.data = grow(&b.mem, n)
	b.refs.Store(1)
	return b
}

// fill rebuilds spans into one buffer, or refers to them if they lie in memory.
func (s *sink) fill(spans []span) (*buffer, error) {
	if len(spans) == 1 {
		b := s.buffer(0)
		v, err := spans[0].c.view(spans[0].off, spans[0].n, &b.mem)
		b.data = v
		return b, err
	}
	var total uint64
	for _, sp := range spans {
		total += (sp.n + 7) &^ 7
	}
	b := s.buffer(total)
	pos := uint64(0)
	for _, sp := range spans {
		// A tensor is rebuilt fastest where it is aligned, and moved up then.
		at := (pos + 7) &^ 7
		into := b.data[at : at+sp.n : at+sp.n]
		v, err := sp.c.view(sp.off, sp.n, &into)
		if err != nil {
			return b, err
		}
		copy(b.data[pos:], v)
		pos += sp.n
	}
	b.data = b.data[:pos]
	return b, nil
}

// flushBytes is how often the kernel is asked to start writing, so that the
// sync at the end has little left to wait for.
const flushBytes = 32 << 20

// write takes over b.
func (s *sink) write(b *buffer) error {
	b.refs.Store(2)
	s.hashing <- b
	defer b.release()
	if s.out == nil {
		return nil
	}
	n, err := s.out.Write(b.data)
	if err != nil {
		return atomicfile.Error(err)
	}
	s.written += int64(n)
	if s.written-s.started >= flushBytes {
		// A hint: where it is not supported, nothing is lost.
		_ = unix.SyncFileRange(int(s.out.Fd()), s.started, s.written-s.started, unix.SYNC_FILE_RANGE_WRITE)
		s.started = s.written
	}
	return nil
}
