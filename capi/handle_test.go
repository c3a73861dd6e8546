package main

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/tpde-project/tpde/core/fault"
	"github.com/tpde-project/tpde/core/status"
)

func newTable() *handleTable {
	return &handleTable{last: firstHandle, entries: map[uint64]*entry{}}
}

func TestHandleOfAnotherKind(t *testing.T) {
	table := newTable()
	h := table.add(document("x"))
	_, _, err := acquire[*job](table, h)
	if !errors.Is(err, status.ErrHandle) || !strings.Contains(err.Error(), "is a text, expected a job") {
		t.Fatalf("got %v", err)
	}
}

func TestHandleIsNeverGivenTwice(t *testing.T) {
	table := newTable()
	seen := map[uint64]bool{}
	for range 1000 {
		h := table.add(document("x"))
		if seen[h] || h == 0 {
			t.Fatalf("handle %#x is given again", h)
		}
		seen[h] = true
		if _, err := remove[document](table, h); err != nil {
			t.Fatal(err)
		}
		if _, err := remove[document](table, h); !errors.Is(err, status.ErrHandle) {
			t.Fatalf("second free: got %v", err)
		}
	}
	if len(table.entries) != 0 {
		t.Fatalf("%d entries are left", len(table.entries))
	}
}

func TestObjectInUseIsNotFreed(t *testing.T) {
	table := newTable()
	h := table.add(document("x"))
	_, first, err := acquire[document](table, h)
	if err != nil {
		t.Fatal(err)
	}
	_, second, err := acquire[document](table, h)
	if err != nil {
		t.Fatal(err)
	}
	for _, release := range []func(){first, second} {
		if _, err := remove[document](table, h); !errors.Is(err, status.ErrArgument) {
			t.Fatalf("free in use: got %v", err)
		}
		release()
	}
	if _, err := remove[document](table, h); err != nil {
		t.Fatal(err)
	}
}

func TestTableFromManyGoroutines(t *testing.T) {
	table := newTable()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 500 {
				h := table.add(document("x"))
				_, release, err := acquire[document](table, h)
				if err != nil {
					t.Error(err)
					return
				}
				release()
				if _, err := remove[document](table, h); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func TestPanicBecomesAnError(t *testing.T) {
	err := fault.Protect(func() error {
		var none []int
		_ = none[len(none)]
		return nil
	})
	if !errors.Is(err, status.ErrInternal) || !strings.Contains(err.Error(), "index out of range") {
		t.Fatalf("got %v", err)
	}
}
