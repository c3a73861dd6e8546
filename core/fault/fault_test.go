package fault

import (
	"errors"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/mmap"
	"github.com/tpde-project/tpde/core/status"
)

func TestShortenedFile(t *testing.T) {
	path := t.TempDir() + "/x"
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	m, err := mmap.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	last := func() error {
		if m.Data[len(m.Data)-1] != 0 {
			return errors.New("not zero")
		}
		return nil
	}
	if err := Guard(last); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1); err != nil {
		t.Fatal(err)
	}
	if err := Guard(last); !errors.Is(err, status.ErrIO) {
		t.Errorf("got %v, want %v", err, status.ErrIO)
	}
}

func TestPanicsPass(t *testing.T) {
	defer func() {
		if r := recover(); r != "mine" {
			t.Errorf("recovered %v", r)
		}
	}()
	_ = Guard(func() error { panic("mine") })
}

func TestErrorsPass(t *testing.T) {
	want := errors.New("mine")
	if got := Guard(func() error { return want }); got != want {
		t.Errorf("got %v", got)
	}
}
