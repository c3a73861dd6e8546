package main

/*
#include <stdlib.h>
#include "error_text.h"
*/
import "C"

import (
	"context"
	"errors"
	"strings"
	"unsafe"

	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

// call runs the body of an export and returns its status. A panic is a bug of
// ours, and must not take down the process that the library lives in.
func call(body func() error) (code C.int32_t) {
	if err := fault.Protect(body); err != nil {
		return fail(err)
	}
	return C.int32_t(status.OK)
}

// fail records the text of err for the calling thread. An exported call stays
// on its thread, so this is the thread that will ask for the text.
func fail(err error) C.int32_t {
	if errors.Is(err, context.Canceled) && status.Of(err) == status.Internal {
		err = status.Errorf(status.ErrCanceled, "the caller asked for it")
	}
	text := strings.ReplaceAll(err.Error(), "\x00", "\\x00")
	C.error_text_set((*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.size_t(len(text)))
	return C.int32_t(status.Of(err))
}

func argument(format string, args ...any) error {
	return status.Errorf(status.ErrArgument, format, args...)
}

// The names of the statuses live in C memory, so that C can return them
// without Go. init runs before any exported call does.
func init() {
	for code := range status.Code(C.STATUS_NAMES) {
		if name := code.String(); !strings.HasPrefix(name, "status ") {
			C.status_name_set(C.int32_t(code), C.CString(name))
		}
	}
}
