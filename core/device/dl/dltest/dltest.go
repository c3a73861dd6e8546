// Package dltest helps to test packages that open libraries of CUDA: it finds
// the real ones where a Python environment has them and builds fake ones.
package dltest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// SitePackages returns the folders that the environment variable
// TPDE_SITE_PACKAGES names, separated as in PATH. Without it the test is
// skipped.
func SitePackages(t testing.TB) []string {
	t.Helper()
	list := filepath.SplitList(os.Getenv("TPDE_SITE_PACKAGES"))
	if len(list) == 0 {
		t.Skip("TPDE_SITE_PACKAGES does not name the site-packages folder of an environment that has CUDA wheels (those of torch)")
	}
	return list
}

// Build compiles C source to a shared library at path, and skips the test
// where there is no C compiler.
func Build(t testing.TB, path, source string, options ...string) {
	t.Helper()
	compiler, err := exec.LookPath("cc")
	if err != nil {
		t.Skip("there is no C compiler")
	}
	args := append([]string{"-shared", "-fPIC", "-o", path, "-x", "c", "-"}, options...)
	cmd := exec.Command(compiler, args...)
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
