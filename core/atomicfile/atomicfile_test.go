package atomicfile

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/status"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/x"
	put := func(text string, publish, replace bool) error {
		f, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if f.Path() != path || !IsTemporary(filepath.Base(f.Name())) {
			t.Errorf("%s on its way to %s", f.Name(), f.Path())
		}
		if err := Sync(context.Background(), f.File); err != nil {
			t.Fatal(err)
		}
		if !publish {
			return nil
		}
		return errors.Join(f.Publish(replace), SyncDir(dir))
	}
	if put("dropped", false, false); len(names(t, dir)) != 0 {
		t.Errorf("left: %v", names(t, dir))
	}
	if err := put("one", true, false); err != nil || read(t, path) != "one" {
		t.Error(err)
	}
	if err := put("two", true, false); !errors.Is(err, status.ErrExists) || read(t, path) != "one" {
		t.Error(err)
	}
	if err := put("three", true, true); err != nil || read(t, path) != "three" {
		t.Error(err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left: %v", n)
	}
}

func TestDir(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/x"
	put := func(text string, replace bool, publish func(*Dir, bool) error) error {
		d, err := CreateDir(path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := os.WriteFile(d.Name()+"/f", []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := d.SyncTree(context.Background()); err != nil {
			t.Fatal(err)
		}
		return publish(d, replace)
	}
	if err := put("one", false, (*Dir).Publish); err != nil || read(t, path+"/f") != "one" {
		t.Error(err)
	}
	if err := put("two", false, (*Dir).Publish); !errors.Is(err, status.ErrExists) || read(t, path+"/f") != "one" {
		t.Error(err)
	}
	if err := put("three", true, (*Dir).Publish); err != nil || read(t, path+"/f") != "three" {
		t.Error(err)
	}
	twoSteps := func(d *Dir, _ bool) error { return d.replaceInTwoSteps() }
	if err := put("four", true, twoSteps); err != nil || read(t, path+"/f") != "four" {
		t.Error(err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left: %v", n)
	}
	// If the new folder cannot be put there, the old one comes back.
	broken := func(d *Dir, _ bool) error {
		os.RemoveAll(d.name)
		return d.replaceInTwoSteps()
	}
	if err := put("five", true, broken); err == nil || read(t, path+"/f") != "four" {
		t.Error(err)
	}
}

func TestRemoveStale(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/x"
	live, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	liveDir, err := CreateDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer liveDir.Close()
	// What a killed process leaves has no lock.
	dead := dir + "/" + stem(path) + "00000000"
	other := dir + "/" + stem(dir+"/y") + "00000000"
	for _, p := range []string{dead, other} {
		if err := os.WriteFile(p, nil, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	deadDir := dir + "/" + stem(path) + "00000001"
	if err := os.MkdirAll(deadDir+"/below", 0o777); err != nil {
		t.Fatal(err)
	}
	RemoveStale(path)
	for p, want := range map[string]bool{live.Name(): true, liveDir.Name(): true, other: true, dead: false, deadDir: false} {
		if _, err := os.Stat(p); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", p, err == nil, want)
		}
	}
}

func TestScratch(t *testing.T) {
	dir := t.TempDir()
	f, err := Scratch(dir + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := names(t, dir); len(n) != 0 {
		t.Errorf("it has the name %v", n)
	}
	if _, err := f.WriteAt([]byte("data"), 0); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	if _, err := Create(t.TempDir() + "/none/x"); !errors.Is(err, status.ErrNotFound) {
		t.Error(err)
	}
	if _, err := CreateDir(t.TempDir() + "/none/x"); !errors.Is(err, status.ErrNotFound) {
		t.Error(err)
	}
	known := status.Errorf(status.ErrChain, "x")
	for _, c := range []struct{ err, want error }{
		{context.Canceled, status.ErrCanceled}, {os.ErrNotExist, status.ErrNotFound}, {os.ErrExist, status.ErrExists},
		{unix.ENOTEMPTY, status.ErrExists}, {unix.ENOSPC, status.ErrIO}, {known, status.ErrChain},
	} {
		if got := Error(c.err); !errors.Is(got, c.want) {
			t.Errorf("%v became %v, want %v", c.err, got, c.want)
		}
	}
	if Error(nil) != nil {
		t.Error("nil became an error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	f, err := Scratch(t.TempDir() + "/x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Sync(ctx, f); err != nil && !errors.Is(err, status.ErrCanceled) {
		t.Error(err)
	}
}
