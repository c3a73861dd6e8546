// Package plan spreads independent pieces of work over cores and hands the
// results back in order, with a bounded number of them in memory.
package plan

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/tpde-project/tpde/core/fault"
)

// Workers returns the number of goroutines to use when the user asked for w:
// w itself, or every core that Go may use when w is 0 or less.
func Workers(w int) int {
	if w > 0 {
		return w
	}
	return runtime.GOMAXPROCS(0)
}

// Each runs fn(0) to fn(n-1) on up to workers goroutines, the caller's among
// them. The first error cancels the context of the others; of several, that of
// the lowest number is returned once all have stopped.
func Each(ctx context.Context, workers, n int, fn func(ctx context.Context, i int) error) error {
	workers = min(Workers(workers), n)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var next atomic.Int64
	var mu sync.Mutex
	failed, first := n, error(nil)
	work := func() {
		for ctx.Err() == nil {
			i := int(next.Add(1)) - 1
			if i >= n {
				return
			}
			if err := fault.Protect(func() error { return fn(ctx, i) }); err != nil {
				mu.Lock()
				if i < failed {
					failed, first = i, err
				}
				mu.Unlock()
				cancel()
			}
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if first == nil && int(next.Load()) < n {
		return ctx.Err()
	}
	return first
}

// Ordered runs produce(0) to produce(n-1) on up to workers goroutines and
// passes each result to consume, in order, one at a time. At most 2*workers
// results wait at any time, so memory stays flat. The first error of either
// function cancels the rest and is returned once all have stopped.
func Ordered[T any](ctx context.Context, workers, n int, produce func(ctx context.Context, i int) (T, error), consume func(i int, v T) error) error {
	workers = min(Workers(workers), n)
	if workers <= 1 {
		return sequential(ctx, n, produce, consume)
	}
	// Not on the caller's goroutine: in a call from C that is bound to a
	// thread, and waking it for every result costs more than many a result.
	done := make(chan error, 1)
	go func() {
		done <- fault.Protect(func() error { return parallel(ctx, workers, n, produce, consume) })
	}()
	return <-done
}

func parallel[T any](ctx context.Context, workers, n int, produce func(ctx context.Context, i int) (T, error), consume func(i int, v T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type result struct {
		v   T
		err error
	}
	// A worker takes room for a result, then the next number. So the numbers
	// that are taken but not consumed are at most len(slots) in a row, and no
	// two of them share a slot.
	slots := make([]chan result, 2*workers)
	room := make(chan struct{}, len(slots))
	for i := range slots {
		slots[i] = make(chan result, 1)
		room <- struct{}{}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				select {
				case <-room:
				case <-ctx.Done():
					return
				}
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				v, err := guarded(ctx, i, produce)
				slots[i%len(slots)] <- result{v, err}
			}
		})
	}
	defer wg.Wait()
	defer cancel()
	for i := range n {
		select {
		case r := <-slots[i%len(slots)]:
			if r.err != nil {
				return r.err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := consume(i, r.v); err != nil {
				return err
			}
			room <- struct{}{}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// guarded is produce with errors for what would otherwise end the process from
// this goroutine.
func guarded[T any](ctx context.Context, i int, produce func(ctx context.Context, i int) (T, error)) (v T, err error) {
	err = fault.Protect(func() error {
		v, err = produce(ctx, i)
		return err
	})
	return v, err
}

func sequential[T any](ctx context.Context, n int, produce func(ctx context.Context, i int) (T, error), consume func(i int, v T) error) error {
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, err := guarded(ctx, i, produce)
		if err != nil {
			return err
		}
		if err := consume(i, v); err != nil {
			return err
		}
	}
	return ctx.Err()
}
