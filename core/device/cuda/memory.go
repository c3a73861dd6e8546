package cuda

/*
#include "calls.h"
*/
import "C"

import "unsafe"

// The engine works in memory and on streams of its caller; what follows is
// for callers without torch, such as the tests on a GPU. All of it concerns
// the current context.

// Alloc returns n bytes of device memory, aligned to 256 bytes at least.
func (d *Driver) Alloc(n int) (uintptr, error) {
	var p C.uint64_t
	err := d.check("cuMemAlloc", C.cuda_call_alloc(d.calls, &p, C.size_t(max(n, 1))))
	return uintptr(p), err
}

// Free frees what Alloc returned.
func (d *Driver) Free(p uintptr) error {
	return d.check("cuMemFree", C.cuda_call_free(d.calls, C.uint64_t(p)))
}

// Upload copies src to device memory and waits for it.
func (d *Driver) Upload(dst uintptr, src []byte) error {
	return d.check("cuMemcpyHtoD", C.cuda_call_upload(d.calls, C.uint64_t(dst), unsafe.Pointer(unsafe.SliceData(src)), C.size_t(len(src))))
}

// Download copies device memory to dst and waits for it.
func (d *Driver) Download(dst []byte, src uintptr) error {
	return d.check("cuMemcpyDtoH", C.cuda_call_download(d.calls, unsafe.Pointer(unsafe.SliceData(dst)), C.uint64_t(src), C.size_t(len(dst))))
}

// Fill sets n words of 4 bytes on a stream.
func (d *Driver) Fill(dst uintptr, value uint32, n int, s Stream) error {
	return d.check("cuMemsetD32Async", C.cuda_call_fill(d.calls, C.uint64_t(dst), C.uint(value), C.size_t(n), C.uintptr_t(s)))
}

// NewStream returns a stream that does not wait for the default stream.
func (d *Driver) NewStream() (Stream, error) {
	const nonBlocking = 1 // CU_STREAM_NON_BLOCKING
	var s C.uintptr_t
	err := d.check("cuStreamCreate", C.cuda_call_stream_create(d.calls, &s, nonBlocking))
	return Stream(s), err
}

// Destroy frees a stream.
func (d *Driver) Destroy(s Stream) error {
	return d.check("cuStreamDestroy", C.cuda_call_stream_destroy(d.calls, C.uintptr_t(s)))
}

// Wait waits until everything on the stream is done.
func (d *Driver) Wait(s Stream) error {
	return d.check("cuStreamSynchronize", C.cuda_call_stream_wait(d.calls, C.uintptr_t(s)))
}
