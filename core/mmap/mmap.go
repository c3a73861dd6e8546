// Package mmap maps files into memory, read-only, so that a checkpoint larger
// than memory is read at page-cache speed without being loaded.
//
// A file that somebody truncates while it is mapped makes reads behind its new
// end fault, which package fault turns into an error.
package mmap

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/status"
)

// File is a mapped file. Data is valid until Close.
type File struct {
	Data []byte
	Info fs.FileInfo
}

// Open maps the regular file at path; symbolic links are followed.
func Open(path string) (*File, error) {
	// Without O_NONBLOCK, opening a pipe would wait for somebody to write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, ioError(err)
	}
	defer f.Close()
	return FromFile(f)
}

// FromFile maps an open file, which may be closed afterwards.
func FromFile(f *os.File) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, ioError(err)
	}
	if !info.Mode().IsRegular() {
		return nil, status.Errorf(status.ErrUnsupported, "%s is not a regular file", f.Name())
	}
	m := &File{Info: info}
	if info.Size() == 0 { // mmap refuses an empty file
		return m, nil
	}
	m.Data, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, status.Errorf(status.ErrIO, "cannot map %s: %v", f.Name(), err)
	}
	return m, nil
}

// Close unmaps the file. Closing twice does nothing.
func (m *File) Close() error {
	if m.Data == nil {
		return nil
	}
	data := m.Data
	m.Data = nil
	if err := unix.Munmap(data); err != nil {
		return status.Errorf(status.ErrIO, "cannot unmap: %v", err)
	}
	return nil
}

func ioError(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return status.Errorf(status.ErrNotFound, "%v", err)
	}
	return status.Errorf(status.ErrIO, "%v", err)
}
