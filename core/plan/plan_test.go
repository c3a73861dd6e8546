package plan

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tpde-project/tpde/core/status"
)

func TestOrderedKeepsOrderAndBoundsMemory(t *testing.T) {
	for _, workers := range []int{1, 2, 3, 8} {
		var produced, consumed atomic.Int64
		var most int64
		next := 0
		err := Ordered(context.Background(), workers, 200,
			func(_ context.Context, i int) (int, error) {
				produced.Add(1)
				if i%7 == 0 {
					time.Sleep(time.Millisecond) // let others overtake
				}
				return i * i, nil
			},
			func(i, v int) error {
				if i != next || v != i*i {
					t.Errorf("%d workers: got result %d (%d), expected %d", workers, i, v, next)
				}
				next++
				most = max(most, produced.Load()-consumed.Add(1))
				return nil
			})
		if err != nil || next != 200 {
			t.Fatalf("%d workers: %d results, %v", workers, next, err)
		}
		if limit := int64(3*workers + 1); most > limit {
			t.Errorf("%d workers: %d results waited, expected at most %d", workers, most, limit)
		}
	}
}

func TestOrderedReturnsFirstError(t *testing.T) {
	boom := errors.New("boom")
	for _, workers := range []int{1, 4} {
		last := -1
		err := Ordered(context.Background(), workers, 100,
			func(_ context.Context, i int) (int, error) {
				if i == 50 {
					return 0, boom
				}
				return i, nil
			},
			func(i, _ int) error { last = i; return nil })
		if !errors.Is(err, boom) || last != 49 {
			t.Errorf("%d workers: %v after result %d, expected boom after 49", workers, err, last)
		}
		err = Ordered(context.Background(), workers, 100,
			func(_ context.Context, i int) (int, error) { return i, nil },
			func(i, _ int) error {
				if i == 10 {
					return boom
				}
				return nil
			})
		if !errors.Is(err, boom) {
			t.Errorf("%d workers: consume failed, got %v", workers, err)
		}
	}
}

func TestCancelStopsEarly(t *testing.T) {
	for _, workers := range []int{1, 4} {
		ctx, cancel := context.WithCancel(context.Background())
		var ran atomic.Int64
		err := Each(ctx, workers, 1_000_000, func(context.Context, int) error {
			if ran.Add(1) == 10 {
				cancel()
			}
			return nil
		})
		if !errors.Is(err, context.Canceled) || ran.Load() > 1000 {
			t.Errorf("%d workers: %v after %d calls", workers, err, ran.Load())
		}
	}
}

func TestPanicBecomesAnError(t *testing.T) {
	err := Each(context.Background(), 4, 100, func(_ context.Context, i int) error {
		if i == 7 {
			panic("boom")
		}
		return nil
	})
	if !errors.Is(err, status.ErrInternal) {
		t.Errorf("got %v", err)
	}
}

func TestNothingToDo(t *testing.T) {
	if err := Each(context.Background(), 4, 0, func(context.Context, int) error { return errors.New("called") }); err != nil {
		t.Error(err)
	}
}
