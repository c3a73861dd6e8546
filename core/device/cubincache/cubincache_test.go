package cubincache

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// counted returns a compile function and the number of its calls.
func counted(image []byte) (func() ([]byte, error), *int) {
	calls := new(int)
	return func() ([]byte, error) { *calls++; return image, nil }, calls
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	hidden, _ := filepath.Glob(filepath.Join(dir, ".*"))
	return append(names, hidden...)
}

func TestColdAndWarm(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	t.Setenv("TPDE_CACHE", dir)
	compile, calls := counted([]byte("cubin"))
	key := KeyOf("source", "sm_90")
	for i := range 3 {
		if image, err := Get(key, compile); err != nil || string(image) != "cubin" || *calls != 1 {
			t.Fatalf("call %d: %q, %v, compiled %d times", i, image, err, *calls)
		}
	}
	if image, err := Get(KeyOf("source", "sm_80"), compile); err != nil || string(image) != "cubin" || *calls != 2 {
		t.Errorf("another architecture: %q, %v, compiled %d times", image, err, *calls)
	}
	if n := files(t, dir); len(n) != 2 {
		t.Errorf("files %v, expected two and nothing temporary", n)
	}
}

func TestKeyDependsOnEveryBoundary(t *testing.T) {
	seen := map[Key]string{}
	for _, parts := range [][]string{{"ab", "c"}, {"a", "bc"}, {"abc"}, {"abc", ""}, {"", "abc"}, {"c", "ab"}} {
		k := KeyOf(parts...)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %s have the same key", parts, other)
		}
		seen[k] = fmt.Sprintf("%q", parts)
	}
}

func TestFolder(t *testing.T) {
	t.Setenv("HOME", "/home/somebody")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("TPDE_CACHE", "")
	if got := Folder(); got != "/home/somebody/.cache/tpde" {
		t.Errorf("got %s", got)
	}
	t.Setenv("XDG_CACHE_HOME", "/var/cache/somebody")
	if got := Folder(); got != "/var/cache/somebody/tpde" {
		t.Errorf("got %s", got)
	}
	t.Setenv("TPDE_CACHE", "/tmp/here")
	if got := Folder(); got != "/tmp/here" {
		t.Errorf("got %s", got)
	}
}

// Every byte of a stored file is covered, and so is its length.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TPDE_CACHE", dir)
	want := []byte("a compiled kernel")
	key := KeyOf("k")
	compile, calls := counted(want)
	if _, err := Get(key, compile); err != nil {
		t.Fatal(err)
	}
	path := files(t, dir)[0]
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		*calls = 0
		if got, err := Get(key, compile); err != nil || !bytes.Equal(got, want) || *calls != 1 {
			t.Fatalf("%s: %q, %v, compiled %d times", what, got, err, *calls)
		}
		*calls = 0
		if got, err := Get(key, compile); err != nil || !bytes.Equal(got, want) || *calls != 0 {
			t.Fatalf("%s: not repaired: %q, %v, compiled %d times", what, got, err, *calls)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		check(fmt.Sprintf("byte %d", i), bad)
		check(fmt.Sprintf("cut at %d", i), good[:i])
	}
	check("longer", append(bytes.Clone(good), 0))
}

func TestUnusableFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	key := KeyOf("k")
	occupied := t.TempDir()
	if err := os.MkdirAll(filepath.Join(occupied, fmt.Sprintf("%x.cubin", key), "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for what, dir := range map[string]string{
		"below a file": filepath.Join(file, "below"), "a file": file, "not allowed": "/proc/tpde", "name taken by a folder": occupied,
	} {
		t.Setenv("TPDE_CACHE", dir)
		compile, calls := counted([]byte("cubin"))
		if image, err := Get(key, compile); err != nil || string(image) != "cubin" || *calls != 1 {
			t.Errorf("%s: %q, %v, compiled %d times", what, image, err, *calls)
		}
	}
	t.Setenv("TPDE_CACHE", "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if image, err := Get(key, func() ([]byte, error) { return []byte("cubin"), nil }); err != nil || string(image) != "cubin" {
		t.Errorf("no home: %q, %v", image, err)
	}
}

func TestFailureIsNotStored(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TPDE_CACHE", dir)
	failed := errors.New("does not compile")
	if _, err := Get(KeyOf("k"), func() ([]byte, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
	if n := files(t, dir); len(n) != 0 {
		t.Errorf("files %v", n)
	}
}

// Several processes, of several goroutines each, on the same keys at once.
func TestProcesses(t *testing.T) {
	if os.Getenv("TPDE_TEST_CHILD") != "" {
		hammer(t)
		return
	}
	dir := t.TempDir()
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestProcesses$")
			cmd.Env = append(os.Environ(), "TPDE_TEST_CHILD=1", "TPDE_CACHE="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	group.Wait()
	if n := files(t, dir); len(n) != 8 {
		t.Errorf("files %v, expected 8 and nothing temporary", n)
	}
}

func hammer(t *testing.T) {
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for i := range 200 {
				image := bytes.Repeat([]byte{byte(i % 8)}, 10_000)
				key := KeyOf(fmt.Sprint(i % 8))
				got, err := Get(key, func() ([]byte, error) { return image, nil })
				if err != nil || !bytes.Equal(got, image) {
					t.Errorf("round %d: %d bytes, %v", i, len(got), err)
				}
			}
		})
	}
	group.Wait()
}
