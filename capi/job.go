package main

/*
#include "tpde.h"
*/
import "C"

import (
	"context"
	"time"
	"unsafe"

	"github.com/tpde-project/tpde/core/checkpoint"
	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

// job is a long operation that runs on its own goroutine.
type job struct {
	progress checkpoint.Progress
	cancel   context.CancelFunc
	done     chan struct{} // closed at the end; report and err are fixed then
	report   any
	err      error
	supply   *checkpoint.Supply // nil unless tensors are given
}

func (*job) kind() string { return "a job" }

// work is what a job does; the report is something that JSON can hold.
type work func(ctx context.Context, p *checkpoint.Progress) (report any, err error)

// start runs w, which works with the given sources, and stores the handle of
// the job. The sources stay in use until it ends.
func start(dst *C.tpde_handle, use *inUse, w work) error {
	ctx, cancel := context.WithCancel(context.Background())
	j := &job{cancel: cancel, done: make(chan struct{}), supply: use.supply}
	go func() {
		defer close(j.done)
		if j.supply != nil {
			defer j.supply.End()
		}
		defer use.release()
		j.err = fault.Protect(func() (err error) {
			j.report, err = w(ctx, &j.progress)
			return err
		})
	}()
	store(dst, j)
	return nil
}

// inUse collects the sources that a job works with, and who gives it tensors.
type inUse struct {
	releases []func()
	supply   *checkpoint.Supply
}

func (u *inUse) source(h C.tpde_handle) (*checkpoint.Source, error) {
	s, release, err := acquire[*source](&handles, uint64(h))
	if err != nil {
		return nil, err
	}
	u.releases = append(u.releases, release)
	return s.Source, nil
}

func (u *inUse) release() {
	for _, release := range u.releases {
		release()
	}
	u.releases = nil
}

//export goJobWait
func goJobWait(doneBytes, totalBytes *C.uint64_t, h C.tpde_handle, timeoutMS C.uint32_t) C.int32_t {
	pending := false
	code := call(func() error {
		j, release, err := acquire[*job](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		pending = !j.wait(time.Duration(timeoutMS) * time.Millisecond)
		j.tell(doneBytes, totalBytes)
		if pending {
			return nil
		}
		return j.err
	})
	if pending {
		return C.TPDE_PENDING
	}
	return code
}

// wait returns true once the job has ended, false after the timeout.
func (j *job) wait(timeout time.Duration) bool {
	select { // a job that has ended is never pending, not even with no time to wait
	case <-j.done:
		return true
	default:
	}
	select {
	case <-j.done:
		return true
	case <-time.After(timeout):
		return false
	}
}

// tell writes the progress to the caller's variables, where there are any.
func (j *job) tell(doneBytes, totalBytes *C.uint64_t) {
	if doneBytes != nil {
		*doneBytes = C.uint64_t(j.progress.Done.Load())
	}
	if totalBytes != nil {
		*totalBytes = C.uint64_t(j.progress.Total.Load())
	}
}

//export goJobSupply
func goJobSupply(h C.tpde_handle, cname *C.char, data unsafe.Pointer, dataBytes C.uint64_t) C.int32_t {
	return call(func() error {
		name, err := text("name", cname)
		if err != nil {
			return err
		}
		d, err := view("data", data, dataBytes)
		if err != nil {
			return err
		}
		j, release, err := acquire[*job](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		return j.give(name, d)
	})
}

// give hands a tensor to the job, which may fail meanwhile.
func (j *job) give(name string, data []byte) error {
	if j.supply == nil {
		return argument("the job rebuilds its tensors itself, expected one of tpde_unpack_supplied_start")
	}
	taken, err := j.supply.Give(name, data)
	if err != nil || taken {
		return err
	}
	<-j.done
	if j.err != nil {
		return j.err
	}
	return argument("tensor %s: the job has ended, expected one that still runs", name)
}

//export goJobCancel
func goJobCancel(h C.tpde_handle) C.int32_t {
	return call(func() error {
		j, release, err := acquire[*job](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		j.cancel()
		return nil
	})
}

//export goJobReport
func goJobReport(dst *C.tpde_handle, h C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("text", dst); err != nil {
			return err
		}
		j, release, err := acquire[*job](&handles, uint64(h))
		if err != nil {
			return err
		}
		defer release()
		if !j.wait(0) {
			return status.Errorf(status.ErrArgument, "the job is still running, expected one that has ended: see tpde_job_wait")
		}
		if j.err != nil {
			return j.err
		}
		return storeJSON(dst, j.report)
	})
}

//export goJobFree
func goJobFree(h C.tpde_handle) C.int32_t {
	return call(func() error {
		j, err := remove[*job](&handles, uint64(h))
		if err != nil {
			return err
		}
		j.cancel()
		<-j.done
		return nil
	})
}
