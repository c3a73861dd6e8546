package engine

import (
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tpde-project/tpde/core/device/cubincache"
	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/nvrtc"
	"github.com/tpde-project/tpde/core/status"
)

// device is what is loaded on one GPU. Nothing is ever unloaded.
type device struct {
	context cuda.Context
	target  string // architecture to compile for
	limits  limits
	// tensorCores says whether they multiply 16-bit floats of both types.
	tensorCores bool
	// early says whether kernels may start before what is in their stream has ended:
	// they wait for it themselves, if they are compiled for 9.0 or later.
	early bool

	functions [kernelIDs]atomic.Uintptr // cuda.Function; 0 if not loaded yet

	mu      sync.Mutex             // of what follows, and of loading
	modules map[string]cuda.Module // by kernelID.module
}

// device returns the state of a GPU, retaining its primary context at first.
func (e *Engine) device(ordinal int) (*device, error) {
	if ordinal < 0 || ordinal >= maxDevices {
		return nil, status.Errorf(status.ErrLimit, "device %d, expected 0 to %d", ordinal, maxDevices-1)
	}
	if d := e.devices[ordinal].Load(); d != nil {
		return d, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.devices[ordinal].Load(); d != nil {
		return d, nil
	}
	v, err := e.driver.Device(ordinal)
	if err != nil {
		return nil, err
	}
	d := &device{modules: map[string]cuda.Module{}, limits: limits{v.Processors, v.Shared}, tensorCores: v.Major >= 8}
	if d.target, err = e.compiler.Target(10*v.Major + v.Minor); err != nil {
		return nil, err
	}
	_, arch, _ := strings.Cut(d.target, "_")
	n, err := strconv.Atoi(arch)
	if err != nil {
		return nil, status.Errorf(status.ErrInternal, "architecture %q, expected a number behind _", d.target)
	}
	d.early = n >= 90 && e.driver.CanLaunchEarly()
	if d.context, err = e.driver.Primary(v); err != nil {
		return nil, err
	}
	e.devices[ordinal].Store(d)
	return d, nil
}

// function returns a kernel, compiling and loading it at first. The context of
// the device is current.
func (e *Engine) function(d *device, k kernelID) (cuda.Function, error) {
	if f := d.functions[k].Load(); f != 0 {
		return cuda.Function(f), nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if f := d.functions[k].Load(); f != 0 {
		return cuda.Function(f), nil
	}
	m, ok := d.modules[k.module()]
	if !ok {
		image, err := compile(e.compiler, k, d.target)
		if err != nil {
			return 0, err
		}
		if m, err = e.driver.LoadModule(image); err != nil {
			return 0, status.Errorf(status.ErrUnsupported, "%s, compiled for %s by NVRTC %s, does not load into the driver, which supports CUDA %d.%d: %v",
				k.file(), d.target, e.compiler.Version(), e.driver.Version/1000, e.driver.Version%1000/10, err)
		}
		d.modules[k.module()] = m
	}
	f, err := e.driver.Function(m, k.name())
	if err != nil {
		return 0, err
	}
	if k.launch().staged {
		if err := e.driver.AllowShared(f, d.limits.shared.Block-spareBytes); err != nil {
			return 0, err
		}
	}
	d.functions[k].Store(uintptr(f))
	return f, nil
}

// compile returns the code of a kernel for an architecture, from the cache on
// disk if it is there.
func compile(c *nvrtc.Compiler, k kernelID, target string) ([]byte, error) {
	parts := []string{c.Version(), target, strings.Join(k.options(), " "), k.file(), sources[k.file()]}
	h := headers()
	names := make([]string, 0, len(h))
	for name := range h {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		parts = append(parts, name, h[name])
	}
	return cubincache.Get(cubincache.KeyOf(parts...), func() ([]byte, error) {
		return c.Compile(nvrtc.Source{Name: k.file(), Text: sources[k.file()], Headers: h, Options: k.options()}, target)
	})
}
