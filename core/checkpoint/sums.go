package checkpoint

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"

	"github.com/tpde-project/tpde/core/plan"
	"github.com/tpde-project/tpde/core/status"
)

// fileSum is what is known of a file of the target.
type fileSum struct {
	sha256 string
	same   bool // the base has the same bytes under the same path
}

// sumFiles hashes every file of the target and compares those without tensors
// with the base's.
func (k *packer) sumFiles(ctx context.Context) error {
	base := map[string]*fileInfo{}
	for _, f := range k.base.files {
		base[f.path] = f
	}
	k.sums = make([]fileSum, len(k.target.files))
	// Files need not be equally large: a second worker takes up the slack.
	return plan.Each(ctx, k.workers(), len(k.target.files), func(ctx context.Context, i int) error {
		f := k.target.files[i]
		other := base[f.path]
		if f.header != nil || other != nil && other.bytes != f.bytes {
			other = nil
		}
		var err error
		k.sums[i], err = sumFile(ctx, f, other)
		return inFile(err, f.path)
	})
}

// sumFile hashes f and says whether other (nil: no) has the same bytes.
func sumFile(ctx context.Context, f, other *fileInfo) (fileSum, error) {
	r, err := f.reader()
	if err != nil {
		return fileSum{}, err
	}
	defer r.Close()
	result := fileSum{same: other != nil}
	var o io.ReadCloser
	if other != nil {
		if o, err = other.reader(); err != nil {
			return fileSum{}, err
		}
		defer o.Close()
	}
	h := sha256.New()
	bufs := [2][]byte{make([]byte, 1<<20), nil}
	if other != nil {
		bufs[1] = make([]byte, 1<<20)
	}
	var n uint64
	for {
		if err := ctx.Err(); err != nil {
			return fileSum{}, context.Cause(ctx)
		}
		got, err := io.ReadFull(r, bufs[0])
		h.Write(bufs[0][:got])
		n += uint64(got)
		if result.same {
			want, oerr := io.ReadFull(o, bufs[1])
			if oerr != nil && oerr != io.EOF && oerr != io.ErrUnexpectedEOF {
				return fileSum{}, oerr
			}
			result.same = bytes.Equal(bufs[0][:got], bufs[1][:want])
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return fileSum{}, err
		}
	}
	if n != f.bytes {
		return fileSum{}, status.Errorf(status.ErrIO, "it has %d bytes, %d when it was opened: it changes while it is read", n, f.bytes)
	}
	result.sha256 = hex.EncodeToString(h.Sum(nil))
	return result, nil
}
