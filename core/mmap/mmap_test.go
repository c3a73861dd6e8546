package mmap

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/status"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	for _, want := range []string{"", "some data"} {
		if err := os.WriteFile(dir+"/x", []byte(want), 0o666); err != nil {
			t.Fatal(err)
		}
		m, err := Open(dir + "/x")
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) != want || m.Info.Size() != int64(len(want)) {
			t.Errorf("got %q of %d bytes, want %q", m.Data, m.Info.Size(), want)
		}
		for range 2 {
			if err := m.Close(); err != nil || m.Data != nil {
				t.Error(err)
			}
		}
	}
	if err := unix.Mkfifo(dir+"/pipe", 0o666); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{dir + "/pipe": status.ErrUnsupported, dir: status.ErrUnsupported, "/dev/null": status.ErrUnsupported, dir + "/none": status.ErrNotFound} {
		if _, err := Open(path); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
	}
}
