// Package nvrtc compiles CUDA C++ with NVRTC, NVIDIA's compiler as a library.
// It needs neither a GPU nor a driver.
//
// Everything is safe for concurrent use: NVRTC is.
package nvrtc

/*
#include <stdlib.h>

typedef void *program;

static int call_version(void *f, int *major, int *minor) { return ((int (*)(int *, int *))f)(major, minor); }
static const char *call_error(void *f, int result) { return ((const char *(*)(int))f)(result); }
static int call_count(void *f, int *n) { return ((int (*)(int *))f)(n); }
static int call_create(void *f, program *p, const char *source, const char *name, int headers,
                       const char *const *contents, const char *const *names) {
  return ((int (*)(program *, const char *, const char *, int, const char *const *, const char *const *))f)(
      p, source, name, headers, contents, names);
}
static int call_compile(void *f, program p, int options, const char *const *list) {
  return ((int (*)(program, int, const char *const *))f)(p, options, list);
}
static int call_size(void *f, program p, size_t *n) { return ((int (*)(program, size_t *))f)(p, n); }
static int call_get(void *f, program p, char *out) { return ((int (*)(program, char *))f)(p, out); }
static int call_destroy(void *f, program p) { return ((int (*)(program *))f)(&p); }
*/
import "C"

import (
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/status"
)

// The major versions that are known to have the functions used here.
const (
	oldest = 12
	newest = 13
)

const install = "install it with the CUDA build of torch, or with: pip install nvidia-cuda-nvrtc (CUDA 13) or nvidia-cuda-nvrtc-cu12 (CUDA 12)"

// Compiler is an open NVRTC.
type Compiler struct {
	Major, Minor int
	Path         string
	archs        []int // ascending

	version, errorText, archCount, archList, create, compile, destroy unsafe.Pointer
	logSize, log, cubinSize, cubin, ptxSize, ptx                      unsafe.Pointer
}

var lazy [newest + 1]dl.Lazy[Compiler]

// Open opens NVRTC, once. It takes the newest that is not newer than CUDA
// maxMajor, whose code an older driver would not load; 0 sets no limit.
func Open(maxMajor int) (*Compiler, error) {
	if maxMajor == 0 || maxMajor > newest {
		maxMajor = newest
	}
	if maxMajor < oldest {
		return nil, status.Errorf(status.ErrUnsupported, "the driver supports CUDA %d, expected %d or newer: update the NVIDIA driver", maxMajor, oldest)
	}
	return lazy[maxMajor].Get(func() (*Compiler, error) { return open(maxMajor) })
}

func open(maxMajor int) (*Compiler, error) {
	l := dl.Library{Title: "NVRTC", Install: install}
	for v := maxMajor; v >= oldest; v-- {
		l.Files = append(l.Files, fmt.Sprintf("libnvrtc.so.%d", v))
		l.Folders = append(l.Folders, fmt.Sprintf("nvidia/cu%d/lib", v))
	}
	l.Folders = append(l.Folders, "nvidia/cuda_nvrtc/lib")
	h, err := l.Open()
	if err != nil {
		return nil, err
	}
	c := &Compiler{Path: h.Path}
	err = h.Symbols(map[string]*unsafe.Pointer{
		"nvrtcVersion": &c.version, "nvrtcGetErrorString": &c.errorText,
		"nvrtcGetNumSupportedArchs": &c.archCount, "nvrtcGetSupportedArchs": &c.archList,
		"nvrtcCreateProgram": &c.create, "nvrtcCompileProgram": &c.compile, "nvrtcDestroyProgram": &c.destroy,
		"nvrtcGetProgramLogSize": &c.logSize, "nvrtcGetProgramLog": &c.log,
		"nvrtcGetCUBINSize": &c.cubinSize, "nvrtcGetCUBIN": &c.cubin,
		"nvrtcGetPTXSize": &c.ptxSize, "nvrtcGetPTX": &c.ptx,
	})
	if err != nil {
		return nil, err
	}
	var major, minor, n C.int
	if err := c.check("nvrtcVersion", C.call_version(c.version, &major, &minor)); err != nil {
		return nil, err
	}
	c.Major, c.Minor = int(major), int(minor)
	// The wheels of 13.0, which torch takes, do not tell the loader where their part for built-in functions is.
	h.OpenBeside(fmt.Sprintf("libnvrtc-builtins.so.%d.%d", major, minor))
	if err := c.check("nvrtcGetNumSupportedArchs", C.call_count(c.archCount, &n)); err != nil {
		return nil, err
	}
	archs := make([]C.int, max(n, 1))
	if err := c.check("nvrtcGetSupportedArchs", C.call_count(c.archList, &archs[0])); err != nil {
		return nil, err
	}
	for _, a := range archs[:n] {
		c.archs = append(c.archs, int(a))
	}
	slices.Sort(c.archs)
	return c, nil
}

func (c *Compiler) check(call string, result C.int) error {
	return c.checkLog(call, result, "")
}

// checkLog is check with more to say.
func (c *Compiler) checkLog(call string, result C.int, log string) error {
	if result == 0 {
		return nil
	}
	return status.Errorf(status.ErrInternal, "%s of NVRTC %d.%d at %s: %s%s", call, c.Major, c.Minor, c.Path, C.GoString(C.call_error(c.errorText, result)), log)
}

// Version returns the version in the form 13.2.
func (c *Compiler) Version() string { return fmt.Sprintf("%d.%d", c.Major, c.Minor) }

// Target returns the architecture to compile for so that a device of this
// compute capability (90 for 9.0) can load the result: its own, or, for a
// device that this NVRTC does not know yet, the newest PTX, which the driver
// translates. A device that is too old is status.ErrUnsupported.
func (c *Compiler) Target(capability int) (string, error) {
	if slices.Contains(c.archs, capability) {
		return fmt.Sprintf("sm_%d", capability), nil
	}
	for _, a := range slices.Backward(c.archs) {
		if a < capability {
			return fmt.Sprintf("compute_%d", a), nil
		}
	}
	return "", status.Errorf(status.ErrUnsupported, "NVRTC %s at %s does not compile for compute capability %d.%d, expected one of %v: install an older NVRTC", c.Version(), c.Path, capability/10, capability%10, c.archs)
}

// Source is a program to compile.
type Source struct {
	Name    string // of the file, for messages
	Text    string
	Headers map[string]string // texts of files that can be included
	Options []string          // without the architecture
}

// Compile compiles for an architecture of Target and returns what the driver
// loads: a cubin for sm_*, PTX with its final zero byte for compute_*.
func (c *Compiler) Compile(s Source, arch string) ([]byte, error) {
	var arena arena
	defer arena.free()
	names, texts := arena.strings(len(s.Headers)), arena.strings(len(s.Headers))
	i := 0
	for name, text := range s.Headers {
		names[i], texts[i] = arena.string(name), arena.string(text)
		i++
	}
	var p C.program
	err := c.check("nvrtcCreateProgram", C.call_create(c.create, &p, arena.string(s.Text), arena.string(s.Name), C.int(i), &texts[0], &names[0]))
	if err != nil {
		return nil, err
	}
	defer C.call_destroy(c.destroy, p)

	options := append([]string{"--gpu-architecture=" + arch}, s.Options...)
	list := arena.strings(len(options))
	for i, o := range options {
		list[i] = arena.string(o)
	}
	if result := C.call_compile(c.compile, p, C.int(len(options)), &list[0]); result != 0 {
		log, err := c.get(p, "nvrtcGetProgramLog", c.logSize, c.log)
		if err != nil {
			log = []byte(err.Error())
		}
		return nil, c.checkLog("nvrtcCompileProgram", result, fmt.Sprintf(": %s with %s:\n%s", s.Name, strings.Join(options, " "), strings.TrimRight(string(log), "\x00\n")))
	}
	if strings.HasPrefix(arch, "compute_") {
		return c.get(p, "nvrtcGetPTX", c.ptxSize, c.ptx)
	}
	return c.get(p, "nvrtcGetCUBIN", c.cubinSize, c.cubin)
}

// get reads one of a program's outputs.
func (c *Compiler) get(p C.program, call string, size, fill unsafe.Pointer) ([]byte, error) {
	var n C.size_t
	if err := c.check(call+"Size", C.call_size(size, p, &n)); err != nil {
		return nil, err
	}
	out := make([]byte, max(n, 1))
	if err := c.check(call, C.call_get(fill, p, (*C.char)(unsafe.Pointer(&out[0])))); err != nil {
		return nil, err
	}
	return out[:n], nil
}

// arena owns the C memory of one compilation.
type arena []unsafe.Pointer

func (a *arena) string(s string) *C.char {
	p := C.CString(s)
	*a = append(*a, unsafe.Pointer(p))
	return p
}

// strings returns an array of n strings, which has at least one place.
func (a *arena) strings(n int) []*C.char {
	n = max(n, 1)
	p := C.calloc(C.size_t(n), C.size_t(unsafe.Sizeof((*C.char)(nil))))
	*a = append(*a, p)
	return unsafe.Slice((**C.char)(p), n)
}

func (a arena) free() {
	for _, p := range a {
		C.free(p)
	}
}
