package checkpoint

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// store collects the tensors of a delta, or of a quantised base, in nameless
// files, one per shard, until their number and sizes, and so the headers, are
// known.
type store struct {
	path     string // of the delta
	format   string // in the metadata of the index JSON
	maxBytes uint64 // of data per shard
	shards   []*shard

	pendingAt uint64        // where in the last shard begin started
	pendingW  *bufio.Writer // nil between begin and keep or drop
	pendingO  *offsetWriter
}

// shard is one file of the delta in the making.
type shard struct {
	data  *os.File
	bytes uint64
	parts []part
}

// part is one tensor of the delta file.
type part struct {
	name string
	desc tensor.Desc
	off  uint64 // in shard.data
	n    uint64
	blob bool
}

// offsetWriter writes to a file from an offset on.
type offsetWriter struct {
	f   *os.File
	off int64
}

func (w *offsetWriter) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.off)
	w.off += int64(n)
	return n, atomicfile.Error(err)
}

func newStore(path string, maxBytes uint64) *store {
	return &store{path: path, format: formatName, maxBytes: cmp.Or(maxBytes, DefaultShardBytes)}
}

// Close frees the nameless files.
func (s *store) Close() error {
	var errs []error
	for _, sh := range s.shards {
		errs = append(errs, sh.data.Close())
	}
	return errors.Join(errs...)
}

func (s *store) last() (*shard, error) {
	if len(s.shards) == 0 {
		return s.next()
	}
	return s.shards[len(s.shards)-1], nil
}

func (s *store) next() (*shard, error) {
	f, err := atomicfile.Scratch(s.path)
	if err != nil {
		return nil, err
	}
	sh := &shard{data: f}
	s.shards = append(s.shards, sh)
	return sh, nil
}

// begin returns a writer for the blob of a tensor; keep or drop ends it.
func (s *store) begin() (io.Writer, error) {
	sh, err := s.last()
	if err != nil {
		return nil, err
	}
	s.pendingAt = sh.bytes
	s.pendingO = &offsetWriter{sh.data, int64(sh.bytes)}
	s.pendingW = bufio.NewWriterSize(s.pendingO, 1<<20)
	return s.pendingW, nil
}

// pending returns how much has been written since begin.
func (s *store) pending() (uint64, error) {
	err := s.pendingW.Flush()
	return uint64(s.pendingO.off) - s.pendingAt, atomicfile.Error(err)
}

// drop forgets what has been written since begin.
func (s *store) drop() { s.pendingW, s.pendingO = nil, nil }

// keep makes what has been written since begin the blob of name.
func (s *store) keep(ctx context.Context, name string, index []byte) error {
	n, err := s.pending()
	if err != nil {
		return err
	}
	s.drop()
	sh := s.shards[len(s.shards)-1]
	if sh.bytes > 0 && sh.bytes+n+uint64(len(index)) > s.maxBytes { // move it to a shard of its own
		to, err := s.next()
		if err != nil {
			return err
		}
		if err := copyRange(ctx, to.data, sh.data, s.pendingAt, n); err != nil {
			return err
		}
		sh = to
	}
	sh.append(name+blobSuffix, tensor.Desc{Type: dtype.U8, Shape: []uint64{n}}, n, true)
	return sh.write(name+indexSuffix, tensor.Desc{Type: dtype.U8, Shape: []uint64{uint64(len(index))}}, index, false)
}

// room returns the shard that the next n bytes go to.
func (s *store) room(n uint64) (*shard, error) {
	sh, err := s.last()
	if err == nil && sh.bytes > 0 && sh.bytes+n > s.maxBytes {
		return s.next()
	}
	return sh, err
}

func (s *store) addVerbatim(name string, d tensor.Desc, data []byte) error {
	sh, err := s.room(uint64(len(data)))
	if err != nil {
		return err
	}
	return sh.write(name, d, data, false)
}

func (s *store) addPacked(name string, index, blob []byte) error {
	sh, err := s.room(uint64(len(index) + len(blob)))
	if err != nil {
		return err
	}
	bytesDesc := func(b []byte) tensor.Desc {
		return tensor.Desc{Type: dtype.U8, Shape: []uint64{uint64(len(b))}}
	}
	if err := sh.write(name+blobSuffix, bytesDesc(blob), blob, true); err != nil {
		return err
	}
	return sh.write(name+indexSuffix, bytesDesc(index), index, false)
}

func (s *store) addBytes(name string, data []byte) error {
	return s.addVerbatim(name, tensor.Desc{Type: dtype.U8, Shape: []uint64{uint64(len(data))}}, data)
}

// undo forgets the last parts that were appended to the last shard.
func (s *store) undo(parts int) error {
	sh := s.shards[len(s.shards)-1]
	keep := len(sh.parts) - parts
	sh.bytes = sh.parts[keep].off
	if sh.parts = sh.parts[:keep]; keep > 0 || len(s.shards) == 1 {
		return nil
	}
	s.shards = s.shards[:len(s.shards)-1] // begun for what is forgotten
	return atomicfile.Error(sh.data.Close())
}

// empty reports whether nothing is stored.
func (s *store) empty() bool {
	return len(s.shards) == 0 || len(s.shards) == 1 && len(s.shards[0].parts) == 0
}

func (sh *shard) append(name string, d tensor.Desc, n uint64, blob bool) {
	sh.parts = append(sh.parts, part{name, d, sh.bytes, n, blob})
	sh.bytes += n
}

func (sh *shard) write(name string, d tensor.Desc, data []byte, blob bool) error {
	if _, err := sh.data.WriteAt(data, int64(sh.bytes)); err != nil {
		return atomicfile.Error(err)
	}
	sh.append(name, d, uint64(len(data)), blob)
	return nil
}

// carry stores a file without tensors, compressed if that is smaller.
func (s *store) carry(ctx context.Context, f *fileInfo) (name, coding string, err error) {
	name = s.freeName(manifestName + "/" + f.path)
	w, err := s.begin()
	if err != nil {
		return "", "", err
	}
	copyTo := func(w io.Writer) error {
		r, err := f.reader()
		if err != nil {
			return err
		}
		defer r.Close()
		n, err := io.Copy(w, &ctxReader{ctx, r})
		if err == nil && uint64(n) != f.bytes {
			err = status.Errorf(status.ErrIO, "file %s has %d bytes, %d when it was opened: it changes while it is read", f.path, n, f.bytes)
		}
		return err
	}
	z, err := newCompressor(w)
	if err != nil {
		return "", "", status.Errorf(status.ErrInternal, "%v", err)
	}
	if err := errors.Join(copyTo(z), z.Close()); err != nil {
		return "", "", err
	}
	n, err := s.pending()
	if err != nil {
		return "", "", err
	}
	coding = codingZstd
	if n >= f.bytes {
		coding, n = codingRaw, f.bytes
		s.drop()
		if w, err = s.begin(); err == nil {
			err = copyTo(w)
		}
		if err == nil {
			_, err = s.pending()
		}
		if err != nil {
			return "", "", err
		}
	}
	s.drop()
	sh := s.shards[len(s.shards)-1]
	if sh.bytes > 0 && sh.bytes+n > s.maxBytes {
		to, err := s.next()
		if err != nil {
			return "", "", err
		}
		if err := copyRange(ctx, to.data, sh.data, s.pendingAt, n); err != nil {
			return "", "", err
		}
		sh = to
	}
	sh.append(name, tensor.Desc{Type: dtype.U8, Shape: []uint64{n}}, n, false)
	return name, coding, nil
}

// freeName returns name, or name with something behind it, so that nothing
// else in the delta has it.
func (s *store) freeName(name string) string {
	for {
		taken := false
		for _, sh := range s.shards {
			taken = taken || slices.ContainsFunc(sh.parts, func(p part) bool { return p.name == name })
		}
		if !taken {
			return name
		}
		name += "~"
	}
}

// ctxReader ends a copy when its context does.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
