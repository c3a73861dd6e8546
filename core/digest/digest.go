// Package digest computes the 128-bit content digest that tells one tensor
// from another.
//
// It is a two-level tree, so that cores, and later a GPU, can compute it in
// parallel: XXH64 (seed 0) of every 4096-byte page, the last page possibly
// short; then the first 16 bytes of SHA-256 over the length in bytes and the
// page hashes, all as little-endian uint64. An empty tensor has no pages.
//
// It detects every accident. It is no defence against somebody who constructs
// a collision: XXH64 is not a cryptographic hash. Whole files are proven with
// SHA-256 instead.
package digest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"

	"github.com/cespare/xxhash/v2"

	"github.com/tpde-project/tpde/core/plan"
)

// PageBytes is the size of a page of the tree.
const PageBytes = 4096

// Size is the size of a digest in bytes.
const Size = 16

// Sum is a digest. The zero Sum stands for "no tensor".
type Sum [Size]byte

// String returns the digest in hexadecimal.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Tree collects the page hashes of a tensor, which may arrive in any order and
// from several goroutines.
type Tree struct {
	hashes []byte // the size, then a hash a page
}

// NewTree starts the digest of size bytes.
func NewTree(size uint64) *Tree {
	t := &Tree{make([]byte, 8+(size+PageBytes-1)/PageBytes*8)}
	binary.LittleEndian.PutUint64(t.hashes, size)
	return t
}

// Add hashes data, which lies at byte off, a multiple of PageBytes, and ends at
// the end of a page or of the tensor. Calls for different pages may overlap.
func (t *Tree) Add(off uint64, data []byte) {
	hashes := t.hashes[8+off/PageBytes*8:]
	for len(data) > 0 {
		n := min(len(data), PageBytes)
		binary.LittleEndian.PutUint64(hashes, xxhash.Sum64(data[:n]))
		data, hashes = data[n:], hashes[8:]
	}
}

// Copy takes the hashes of n bytes at byte off, as Add would see them, from
// another tree: equal pages have equal hashes.
func (t *Tree) Copy(from *Tree, off, n uint64) {
	first, last := 8+off/PageBytes*8, 8+(off+n+PageBytes-1)/PageBytes*8
	copy(t.hashes[first:last], from.hashes[first:last])
}

// Sum returns the digest once all pages are there.
func (t *Tree) Sum() Sum {
	full := sha256.Sum256(t.hashes)
	return Sum(full[:Size])
}

// Of returns the digest of data, computed on up to workers cores.
func Of(data []byte, workers int) Sum {
	const task = 256 << 10 // microseconds, so that all cores finish at once
	size := uint64(len(data))
	t := NewTree(size)
	// Each cannot fail here: the context is never canceled and hashing returns no error.
	_ = plan.Each(context.Background(), workers, int((size+task-1)/task), func(_ context.Context, i int) error {
		off := uint64(i) * task
		t.Add(off, data[off:min(off+task, size)])
		return nil
	})
	return t.Sum()
}
