package atomicfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/status"
)

// File is a file on its way to its final name.
type File struct {
	*os.File
	path      string
	published bool
}

// Create starts the file that will stand at path.
func Create(path string) (*File, error) {
	f, err := create(path)
	if err != nil {
		return nil, err
	}
	return &File{File: f, path: path}, nil
}

// Path returns the final name.
func (f *File) Path() string { return f.path }

// Publish gives the file its final name; Sync comes first. Without replace, a
// file that stands there already is status.ErrExists. The rename is durable
// after SyncDir.
func (f *File) Publish(replace bool) error {
	if err := rename(f.Name(), f.path, replace); err != nil {
		return err
	}
	f.published = true
	return nil
}

// Close closes the file and, if it was not published, removes it.
func (f *File) Close() error {
	if !f.published {
		os.Remove(f.Name())
	}
	return Error(f.File.Close())
}

func rename(from, to string, replace bool) error {
	if replace {
		return Error(os.Rename(from, to))
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) { // an old kernel or a network file system
		if _, err := os.Lstat(to); err == nil {
			return exists(to)
		}
		return Error(os.Rename(from, to))
	}
	if errors.Is(err, unix.EEXIST) {
		return exists(to)
	}
	if err != nil {
		return Error(&os.LinkError{Op: "rename", Old: from, New: to, Err: err})
	}
	return nil
}

func exists(path string) error {
	return status.Errorf(status.ErrExists, "%s exists already", path)
}

// Dir is a folder on its way to its final name.
type Dir struct {
	lock      *os.File
	name      string
	path      string
	published bool
}

// CreateDir starts the folder that will stand at path.
func CreateDir(path string) (*Dir, error) {
	for {
		name := randomName(path)
		if err := os.Mkdir(name, 0o777); errors.Is(err, os.ErrExist) {
			continue
		} else if err != nil {
			return nil, Error(err)
		}
		f, err := os.Open(name)
		if err == nil && lock(f, name) == nil {
			return &Dir{lock: f, name: name, path: path}, nil
		}
		if err == nil {
			f.Close()
		}
		os.Remove(name)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, Error(err)
		}
	}
}

// Name returns the temporary name, to write in.
func (d *Dir) Name() string { return d.name }

// Publish gives the folder its final name. An empty folder there is replaced;
// another one only with replace, by an exchange of the two names, after which
// Close removes the old one.
func (d *Dir) Publish(replace bool) error {
	// rename(2) replaces an empty folder and nothing else; os.Rename does not.
	err := unix.Rename(d.name, d.path)
	switch {
	case err == nil:
		d.published = true
		return nil
	case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENOTDIR):
		return Error(&os.LinkError{Op: "rename", Old: d.name, New: d.path, Err: err})
	case !replace:
		return exists(d.path)
	}
	err = unix.Renameat2(unix.AT_FDCWD, d.name, unix.AT_FDCWD, d.path, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL) {
		return d.replaceInTwoSteps()
	}
	if err != nil {
		return Error(&os.LinkError{Op: "exchange", Old: d.name, New: d.path, Err: err})
	}
	return nil // the old folder now has the temporary name
}

// replaceInTwoSteps serves file systems that cannot exchange two names. Killed
// between its steps it leaves the old folder under a name that nobody removes.
func (d *Dir) replaceInTwoSteps() error {
	aside := filepath.Join(filepath.Dir(d.path), ".tpde-old-"+filepath.Base(d.name)[len(Prefix):])
	if err := os.Rename(d.path, aside); err != nil {
		return Error(err)
	}
	if err := os.Rename(d.name, d.path); err != nil {
		return Error(errors.Join(err, os.Rename(aside, d.path)))
	}
	d.published = true
	return Error(os.RemoveAll(aside))
}

// Close removes what stands under the temporary name: the unfinished folder or
// the one that it has replaced.
func (d *Dir) Close() error {
	var err error
	if !d.published {
		err = os.RemoveAll(d.name)
	}
	return Error(errors.Join(err, d.lock.Close()))
}

// SyncTree makes the names in the folder durable.
func (d *Dir) SyncTree(ctx context.Context) error {
	return Error(filepath.WalkDir(d.name, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return SyncDir(path)
	}))
}
