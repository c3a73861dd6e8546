// Package dl opens shared libraries while the program runs: in the wheels of
// a Python environment first, then wherever the system's loader looks. So the
// core needs no CUDA to be built or to run, and finds the libraries that came
// with torch.
//
// Everything is safe for concurrent use. Libraries are never closed: code of
// theirs may run on other threads for as long as the process lives.
package dl

/*
#cgo LDFLAGS: -ldl
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdlib.h>

// Returns the path that a library was loaded from; NULL if it is not known.
static const char *dl_path(void *handle) {
  struct link_map *map = NULL;
  return dlinfo(handle, RTLD_DI_LINKMAP, &map) == 0 && map != NULL ? map->l_name : NULL;
}
*/
import "C"

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/tpde-project/tpde/core/status"
)

// Library says what a library is called and where it may lie.
type Library struct {
	Title   string   // what users know it as
	Files   []string // file names to try, best first
	Folders []string // where wheels put it, relative to a site-packages folder
	Install string   // what to do if it is missing
}

// Handle is an open library.
type Handle struct {
	Path    string // where it was found
	library *Library
	handle  unsafe.Pointer
}

var search struct {
	sync.RWMutex
	folders []string
}

// SetSearch sets the site-packages folders to look in. It concerns libraries
// that have not been found yet.
func SetSearch(folders []string) {
	search.Lock()
	defer search.Unlock()
	search.folders = slices.Clone(folders)
}

// Search returns what SetSearch has set.
func Search() []string {
	search.RLock()
	defer search.RUnlock()
	return slices.Clone(search.folders)
}

// MissingError says what was looked for, where, and what would help. It
// unwraps to status.ErrUnsupported.
type MissingError struct {
	Library  *Library
	Searched []string // site-packages folders
	Refused  []string // the loader's words on every file that it could not open
}

func (e *MissingError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %s was not found: ", status.ErrUnsupported, e.Library.Title)
	if len(e.Library.Folders) > 0 {
		if len(e.Searched) == 0 {
			b.WriteString("no site-packages folder was given to search; ")
		} else {
			fmt.Fprintf(&b, "looked for %s in %s of %s; ", strings.Join(e.Library.Files, ", "),
				strings.Join(e.Library.Folders, ", "), strings.Join(e.Searched, ", "))
		}
	}
	for _, words := range e.Refused {
		b.WriteString(words + "; ")
	}
	b.WriteString(e.Library.Install)
	return b.String()
}

// Unwrap returns the sentinel.
func (e *MissingError) Unwrap() error { return status.ErrUnsupported }

// Open opens the first file of the library that can be opened. A file that is
// there but does not load does not end the search; the error tells of it.
func (l *Library) Open() (*Handle, error) {
	failed := &MissingError{Library: l, Searched: Search()}
	for _, file := range l.Files {
		for _, root := range failed.Searched {
			for _, folder := range l.Folders {
				path := filepath.Join(root, folder, file)
				if _, err := os.Stat(path); err != nil {
					continue
				}
				if h := l.open(path, failed); h != nil {
					return h, nil
				}
			}
		}
	}
	for _, file := range l.Files {
		if h := l.open(file, failed); h != nil {
			return h, nil
		}
	}
	return nil, failed
}

func (l *Library) open(name string, failed *MissingError) *Handle {
	// dlerror belongs to the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	handle := C.dlopen(s, C.RTLD_LAZY|C.RTLD_LOCAL)
	if handle == nil {
		failed.Refused = append(failed.Refused, C.GoString(C.dlerror()))
		return nil
	}
	h := &Handle{Path: name, library: l, handle: handle}
	if path := C.dl_path(handle); path != nil {
		h.Path = C.GoString(path)
	}
	return h
}

// OpenBeside opens a library that lies beside this one, which asks the loader for
// it by its name alone and would not find it. Without such a file nothing happens.
func (h *Handle) OpenBeside(file string) {
	s := C.CString(filepath.Join(filepath.Dir(h.Path), file))
	defer C.free(unsafe.Pointer(s))
	C.dlopen(s, C.RTLD_LAZY|C.RTLD_LOCAL)
}

// Symbol returns the address of a function. One that is not there means a
// version of the library that this build does not know: status.ErrUnsupported.
func (h *Handle) Symbol(name string) (unsafe.Pointer, error) {
	s := C.CString(name)
	defer C.free(unsafe.Pointer(s))
	p := C.dlsym(h.handle, s)
	if p == nil {
		return nil, status.Errorf(status.ErrUnsupported, "%s at %s has no function %s, expected a version that has: %s", h.library.Title, h.Path, name, h.library.Install)
	}
	return p, nil
}

// Symbols fills each destination with the address of its function.
func (h *Handle) Symbols(functions map[string]*unsafe.Pointer) error {
	for name, p := range functions {
		var err error
		if *p, err = h.Symbol(name); err != nil {
			return err
		}
	}
	return nil
}

// Lazy opens something once. Only success is remembered: after a failure the
// next call tries again, since search folders may have been set meanwhile.
type Lazy[T any] struct {
	mu    sync.Mutex
	value *T
}

// Get returns the value, making it with open if there is none yet.
func (l *Lazy[T]) Get(open func() (*T, error)) (*T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.value != nil {
		return l.value, nil
	}
	v, err := open()
	if err != nil {
		return nil, err
	}
	l.value = v
	return v, nil
}
