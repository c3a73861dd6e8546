// Package fault makes an error of what would end the process: reading a mapped
// file behind its end, because somebody has made it shorter since it was
// mapped, or because its disk fails.
package fault

import (
	"runtime"
	"runtime/debug"

	"github.com/tpde-project/tpde/core/status"
)

// Guard runs f and returns status.ErrIO if it faults. It covers the goroutine
// that calls it and no other; other panics pass through.
func Guard(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = status.Errorf(status.ErrIO, "an input cannot be read any more: it became shorter while it was in use, or its disk failed")
		default:
			panic(r)
		}
	}()
	return f()
}

// Protect runs f and returns an error for what would otherwise end the process:
// what Guard covers, and a panic of f, which is a bug of ours and comes out as
// status.ErrInternal.
func Protect(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = status.Errorf(status.ErrInternal, "panic: %v\n%s", r, debug.Stack())
		}
	}()
	return Guard(f)
}
