// Package atomicfile makes files and folders appear whole or not at all.
//
// Everything is written under a temporary name beside its final one and
// renamed at the end, after it has reached the disk. The temporary name is
//
//	.tpde-tmp-<16 hex digits: hash of the final name>-<8 random hex digits>
//
// and its writer holds an flock on it. A process that is killed leaves such a
// name behind; the next one that writes to the same final name finds the lock
// free and removes it.
package atomicfile

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/status"
)

// Prefix begins every temporary name.
const Prefix = ".tpde-tmp-"

// IsTemporary reports whether name, a file name without folder, is one of ours.
func IsTemporary(name string) bool { return strings.HasPrefix(name, Prefix) }

// Error turns an error of the file system into one with a status. Errors that
// have one already are returned as they are.
func Error(err error) error {
	var known *status.Error
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.Errorf(status.ErrCanceled, "the operation was canceled")
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(status.ErrNotFound, "%v", err)
	case errors.Is(err, fs.ErrExist), errors.Is(err, unix.ENOTEMPTY):
		return status.Errorf(status.ErrExists, "%v", err)
	}
	return status.Errorf(status.ErrIO, "%v", err)
}

// stem returns the part of the temporary names of path that does not change.
func stem(path string) string {
	h := sha256.Sum256([]byte(filepath.Base(path)))
	return Prefix + hex.EncodeToString(h[:8]) + "-"
}

func randomName(path string) string {
	var r [4]byte
	rand.Read(r[:]) // never fails
	return filepath.Join(filepath.Dir(path), stem(path)+hex.EncodeToString(r[:]))
}

// RemoveStale removes what dead writers of path have left behind. Nothing that
// it meets is an error: the names are only litter.
func RemoveStale(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), stem(path)) {
			continue
		}
		name := filepath.Join(filepath.Dir(path), e.Name())
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if lock(f, name) == nil {
			os.RemoveAll(name)
		}
		f.Close()
	}
}

var errLocked = errors.New("locked or replaced")

// lock takes the writer's lock on f, which was opened at name, and makes sure
// that name still is f.
func lock(f *os.File, name string) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errLocked
	}
	there, err := os.Lstat(name)
	if err != nil {
		return errLocked
	}
	if here, err := f.Stat(); err != nil || !os.SameFile(here, there) {
		return errLocked
	}
	return nil
}

// Sync waits until f has reached the disk, or until ctx is done. In the latter
// case the file may still be busy for a while.
func Sync(ctx context.Context, f *os.File) error {
	done := make(chan error, 1)
	go func() { done <- f.Sync() }()
	select {
	case err := <-done:
		return Error(err)
	case <-ctx.Done():
		return Error(context.Canceled)
	}
}

// SyncDir makes a rename in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return Error(err)
	}
	defer d.Close()
	// Some file systems cannot sync a folder; the rename has happened all the same.
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return Error(err)
	}
	return nil
}

// Scratch returns a nameless file in the folder of path, for data on their way.
func Scratch(path string) (*os.File, error) {
	f, err := create(path)
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, Error(err)
	}
	return f, nil
}

// create makes a locked temporary file for path.
func create(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(randomName(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, Error(err)
		}
		if lock(f, f.Name()) == nil {
			return f, nil
		}
		f.Close() // RemoveStale of another process was faster
		os.Remove(f.Name())
	}
}
