// Package status holds the error vocabulary of the whole core: one sentinel
// per kind of failure, the numeric code that each has in the C ABI, and the
// typed error that carries where it happened.
//
// Code that fails returns an error for which errors.Is(err, status.ErrX)
// holds for exactly one X; Of turns it into the code that crosses the ABI.
package status

import (
	"errors"
	"fmt"
	"strings"
)

//go:generate go run ./gen

// Code is a status of the C ABI.
type Code int32

type entry struct {
	code     Code
	name     string
	sentinel error
}

// String returns the name of the status, as status.tsv spells it.
func (c Code) String() string {
	for _, e := range table {
		if e.code == c {
			return e.name
		}
	}
	return fmt.Sprintf("status %d", int32(c))
}

// Of returns the code of err: OK for nil, Internal for an error that carries
// no sentinel.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	for _, e := range table {
		if e.sentinel != nil && errors.Is(err, e.sentinel) {
			return e.code
		}
	}
	return Internal
}

// Error says what went wrong and where. Zero fields are left out of the
// message. It unwraps to a sentinel of this package.
type Error struct {
	Sentinel error  // one of the Err values of this package
	Tensor   string // tensor name, if known
	Chunk    int64  // chunk number, or -1
	Detail   string // what was expected and what came
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Tensor != "" {
		fmt.Fprintf(&b, "tensor %q: ", e.Tensor)
	}
	if e.Chunk >= 0 {
		fmt.Fprintf(&b, "chunk %d: ", e.Chunk)
	}
	b.WriteString(e.Sentinel.Error())
	if e.Detail != "" {
		b.WriteString(": ")
		b.WriteString(e.Detail)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Sentinel }

// Errorf makes an *Error without a place. The format may not contain %w.
func Errorf(sentinel error, format string, args ...any) error {
	return &Error{Sentinel: sentinel, Chunk: -1, Detail: fmt.Sprintf(format, args...)}
}

// InTensor adds a tensor name to err, if it is an *Error that has none.
func InTensor(err error, name string) error {
	return amend(err, func(e *Error) {
		if e.Tensor == "" {
			e.Tensor = name
		}
	})
}

// InChunk adds a chunk number to err, if it is an *Error that has none.
func InChunk(err error, chunk int) error {
	return amend(err, func(e *Error) {
		if e.Chunk < 0 {
			e.Chunk = int64(chunk)
		}
	})
}

func amend(err error, set func(*Error)) error {
	e, ok := err.(*Error)
	if !ok {
		return err
	}
	c := *e
	set(&c)
	return &c
}
