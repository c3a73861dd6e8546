package codectest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// RunKernel builds testdata/kernel.cc of the calling package, which compiles
// code of kernels/ for the CPU, with more flags for the compiler, and returns
// what it answers to the requests. The package is anywhere in the source tree.
// Undefined behaviour and stray reads and writes end it with an error.
func RunKernel(t *testing.T, requests []byte, flags ...string) []byte {
	t.Helper()
	compiler, err := exec.LookPath("c++")
	if err != nil {
		t.Skip("there is no C++ compiler")
	}
	root := ".." // tests run in the folder of their package
	for ; !exists(filepath.Join(root, "go.mod")); root = filepath.Join(root, "..") {
		if len(root) > 100 {
			t.Fatal("there is no go.mod above the package")
		}
	}
	// What go test sees the test read is what it runs the test again for.
	sources, _ := filepath.Glob(filepath.Join(root, "kernels", "*"))
	for _, source := range append(sources, "testdata/kernel.cc") {
		if _, err := os.Stat(source); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(t.TempDir(), "kernel")
	build := exec.Command(compiler, append(flags, "-std=c++17", "-O1", "-Wall", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas",
		"-fsanitize=undefined,address", "-fno-sanitize-recover", "-I"+filepath.Join(root, "kernels"), "-o", program, "testdata/kernel.cc")...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.Command(program)
	cmd.Stdin = bytes.NewReader(requests)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	return out
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
