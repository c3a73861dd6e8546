package dl

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/status"
)

func TestFindsWheelBeforeSystem(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	folder := filepath.Join(root, "nvidia", "fake", "lib")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	dltest.Build(t, filepath.Join(folder, "libm.so.6"), "int tpde_fake(void) { return 7; }")
	SetSearch([]string{other, root})
	defer SetSearch(nil)
	l := &Library{Title: "fake", Files: []string{"libm.so.6"}, Folders: []string{"nvidia/fake/lib64", "nvidia/fake/lib"}, Install: "install fake"}
	h, err := l.Open()
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(folder, "libm.so.6"); h.Path != want {
		t.Errorf("opened %s, expected %s", h.Path, want)
	}
	if _, err := h.Symbol("tpde_fake"); err != nil {
		t.Error(err)
	}
	_, err = h.Symbol("tpde_other")
	if !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "tpde_other") || !strings.Contains(err.Error(), h.Path) {
		t.Errorf("missing function: %v", err)
	}

	SetSearch(nil)
	h, err = l.Open()
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(h.Path, root) || !filepath.IsAbs(h.Path) {
		t.Errorf("opened %s, expected the system's", h.Path)
	}
}

// A damaged wheel must not hide a library of the system, and must be named if
// there is none.
func TestDamagedFile(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"libm.so.6", "libtpde-none.so.1"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte("not a library"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	SetSearch([]string{root})
	defer SetSearch(nil)
	l := &Library{Title: "the fake library", Files: []string{"libm.so.6"}, Folders: []string{"."}, Install: "install fake"}
	if _, err := l.Open(); err != nil {
		t.Errorf("the system's library was not tried: %v", err)
	}
	l.Files = []string{"libtpde-none.so.1"}
	_, err := l.Open()
	var missing *MissingError
	if !errors.As(err, &missing) || !errors.Is(err, status.ErrUnsupported) {
		t.Fatalf("got %v, expected a MissingError", err)
	}
	for _, want := range []string{"the fake library", root, "libtpde-none.so.1", "install fake", "file too short"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
}

func TestLazyRemembersOnlySuccess(t *testing.T) {
	var l Lazy[int]
	calls := 0
	open := func() (*int, error) {
		if calls++; calls == 1 {
			return nil, status.Errorf(status.ErrUnsupported, "not yet")
		}
		return &calls, nil
	}
	if _, err := l.Get(open); err == nil {
		t.Error("no error")
	}
	for range 2 {
		if v, err := l.Get(open); err != nil || *v != 2 {
			t.Errorf("got %v, %v", v, err)
		}
	}
}

// A library is found by its name alone once it was opened beside another.
func TestOpenBeside(t *testing.T) {
	root := t.TempDir()
	dltest.Build(t, filepath.Join(root, "libtpde-outer.so.1"), "int tpde_outer(void) { return 1; }")
	dltest.Build(t, filepath.Join(root, "libtpde-inner.so.1"), "int tpde_inner(void) { return 2; }", "-Wl,-soname,libtpde-inner.so.1")
	SetSearch([]string{root})
	outer, err := (&Library{Title: "outer", Files: []string{"libtpde-outer.so.1"}, Folders: []string{"."}}).Open()
	SetSearch(nil)
	if err != nil {
		t.Fatal(err)
	}
	inner := &Library{Title: "inner", Files: []string{"libtpde-inner.so.1"}}
	outer.OpenBeside("libtpde-none.so.1")
	if _, err := inner.Open(); err == nil {
		t.Fatal("it is found by its name before anything opened it")
	}
	outer.OpenBeside("libtpde-inner.so.1")
	if h, err := inner.Open(); err != nil {
		t.Error(err)
	} else if _, err := h.Symbol("tpde_inner"); err != nil {
		t.Error(err)
	}
}
