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
