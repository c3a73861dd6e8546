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

// Of returns the digest of data, computed on up to workers cores.
func Of(data []byte, workers int) Sum {
	pages := (len(data) + PageBytes - 1) / PageBytes
	tree := make([]byte, 8*(1+pages))
	binary.LittleEndian.PutUint64(tree, uint64(len(data)))

	const pagesPerTask = 1024 // 4 MiB of data
	tasks := (pages + pagesPerTask - 1) / pagesPerTask
	// Each cannot fail here: the context is never canceled and hashing returns no error.
	_ = plan.Each(context.Background(), workers, tasks, func(_ context.Context, task int) error {
		for p := task * pagesPerTask; p < min(pages, (task+1)*pagesPerTask); p++ {
			page := data[p*PageBytes : min(len(data), (p+1)*PageBytes)]
			binary.LittleEndian.PutUint64(tree[8*(1+p):], xxhash.Sum64(page))
		}
		return nil
	})
	full := sha256.Sum256(tree)
	return Sum(full[:Size])
}
