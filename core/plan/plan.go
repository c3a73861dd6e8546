// Package plan spreads independent pieces of work over cores and hands the
// results back in order, with a bounded number of them in memory.
package plan

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

// Workers returns the number of goroutines to use when the user asked for w:
// w itself, or every core that Go may use when w is 0 or less.
func Workers(w int) int {
	if w > 0 {
		return w
	}
	return runtime.GOMAXPROCS(0)
}

// Each runs fn(0) to fn(n-1) on up to workers goroutines. The first error
// cancels the context of the others and is returned.
func Each(ctx context.Context, workers, n int, fn func(ctx context.Context, i int) error) error {
	return Ordered(ctx, workers, n,
		func(ctx context.Context, i int) (struct{}, error) { return struct{}{}, fn(ctx, i) },
		func(int, struct{}) error { return nil })
}

// Ordered runs produce(0) to produce(n-1) on up to workers goroutines and
// passes each result to consume, in order, on the calling goroutine. At most
// 2*workers results wait at any time, so memory stays flat. The first error of
// either function cancels the rest and is returned once all have stopped.
func Ordered[T any](ctx context.Context, workers, n int, produce func(ctx context.Context, i int) (T, error), consume func(i int, v T) error) error {
	workers = min(Workers(workers), n)
	if workers <= 1 {
		return sequential(ctx, n, produce, consume)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	type result struct {
		v   T
		err error
	}
	type job struct {
		i   int
		out chan result
	}
	jobs := make(chan job)
	pending := make(chan chan result, 2*workers-1) // results in order; its room is what bounds memory

	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for j := range jobs {
				v, err := guarded(ctx, j.i, produce)
				j.out <- result{v, err}
			}
		})
	}
	wg.Go(func() {
		defer close(jobs)
		defer close(pending)
		for i := range n {
			out := make(chan result, 1)
			select {
			case pending <- out:
			case <-ctx.Done():
				return
			}
			jobs <- job{i, out}
		}
	})

	var first error
	i := 0
	for out := range pending {
		r := <-out
		err := r.err
		if err == nil && first == nil {
			if err = ctx.Err(); err == nil {
				err = consume(i, r.v)
			}
		}
		if err != nil && first == nil {
			first = err
			cancel(err)
		}
		i++
	}
	wg.Wait()
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// guarded is produce with errors for what would otherwise end the process from
// this goroutine: a mapped file that somebody shortens, and a panic, which is a
// bug of ours.
func guarded[T any](ctx context.Context, i int, produce func(ctx context.Context, i int) (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = status.Errorf(status.ErrInternal, "panic: %v\n%s", p, debug.Stack())
		}
	}()
	err = fault.Guard(func() error {
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
