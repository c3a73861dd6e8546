// Command capi is the shared library libtpde.so: the C ABI of tpde.h over the
// Go core. Build it with
//
//	go build -buildmode=c-shared -o libtpde.so ./capi
//
// # How a call travels
//
// exports.c defines every function of tpde.h. It refuses forked children, in C,
// because Go's threads do not exist in them and entering Go may never return;
// then it calls the Go function of the same name (tpde_digest calls goDigest).
// That one checks its arguments, calls the core and returns through call,
// which turns errors and panics into a status and a text for the calling
// thread (error_text.c).
//
// # Memory and concurrency
//
// Every function is safe for concurrent use. Memory of the caller is only read
// or written during the call, but for tpde_source_add, whose data the caller
// keeps until tpde_source_free. Go memory never leaves: results are copied out,
// and objects are known to C by numbers (handle.go).
package main

func main() {} // never runs: c-shared needs it
