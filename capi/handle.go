package main

import (
	"sync"

	"github.com/tpde-project/tpde/core/status"
)

// A handle is a number under which C knows a Go object. Numbers count up and
// are never given twice, so a handle that was freed is always recognised.
// They start high so that a small integer passed by mistake is no handle.
const firstHandle = 0x7bde << 32

// object is what a handle can name.
type object interface {
	kind() string // for messages, with its article: "a job"
}

type entry struct {
	object object
	users  int // calls and jobs that work with the object right now
}

type handleTable struct {
	mu      sync.Mutex
	last    uint64
	entries map[uint64]*entry
}

var handles = handleTable{last: firstHandle, entries: map[uint64]*entry{}}

// add registers an object and returns its handle.
func (t *handleTable) add(o object) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	t.entries[t.last] = &entry{object: o}
	return t.last
}

// acquire returns the object of a handle and keeps it from being freed until
// release is called.
func acquire[T object](t *handleTable, h uint64) (o T, release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, o, err := find[T](t, h)
	if err != nil {
		return o, nil, err
	}
	e.users++
	return o, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		e.users--
	}, nil
}

// remove takes the object of a handle out of the table. It refuses while the
// object is in use: memory under a running job must not go away.
func remove[T object](t *handleTable, h uint64) (T, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, o, err := find[T](t, h)
	if err != nil {
		return o, err
	}
	if e.users > 0 {
		var none T
		return none, status.Errorf(status.ErrArgument, "handle %#x is %s in use %d times: wait for the calls, jobs and applied sources that use it, or free them, first", h, o.kind(), e.users)
	}
	delete(t.entries, h)
	return o, nil
}

// find looks a handle up; the caller holds t.mu.
func find[T object](t *handleTable, h uint64) (*entry, T, error) {
	var none T
	e := t.entries[h]
	switch {
	case e != nil:
	case h > firstHandle && h <= t.last:
		return nil, none, status.Errorf(status.ErrHandle, "handle %#x was freed, expected %s", h, none.kind())
	default:
		return nil, none, status.Errorf(status.ErrHandle, "%#x is no handle, expected %s", h, none.kind())
	}
	o, ok := e.object.(T)
	if !ok {
		return nil, none, status.Errorf(status.ErrHandle, "handle %#x is %s, expected %s", h, e.object.kind(), none.kind())
	}
	return e, o, nil
}
