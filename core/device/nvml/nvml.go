// Package nvml asks NVIDIA's management library what a GPU is doing: free
// memory, and the state of its PCIe link, which limits how fast deltas can
// reach it.
//
// It wraps github.com/NVIDIA/go-nvml. That leaves the functions of NVML
// undefined until libnvidia-ml.so.1 is loaded, so a library or program that
// contains this package must be bound lazily (RTLD_LAZY, no -z now, no
// LD_BIND_NOW). Only functions that every NVML has are called: a missing one
// would end the process.
package nvml

import (
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/tpde-project/tpde/core/status"
)

// Link is the state of a PCIe link.
type Link struct {
	Generation    int `json:"generation"`
	Width         int `json:"width"`
	MaxGeneration int `json:"max_generation"` // of GPU and slot together
	MaxWidth      int `json:"max_width"`
}

// GPU is what NVML says of one.
type GPU struct {
	Name                   string
	FreeBytes, TotalBytes  uint64
	Link                   Link
	LinkError, MemoryError error // why a part is missing, as in a virtual machine
}

// Library is an open NVML.
type Library struct {
	Version string // of the library
	Driver  string // version of the driver
	calls   nvml.Interface
}

var opened struct {
	sync.Mutex
	library *Library
}

// Open loads and starts NVML, once; it stays open.
func Open() (*Library, error) {
	opened.Lock()
	defer opened.Unlock()
	if opened.library != nil {
		return opened.library, nil
	}
	l := &Library{calls: nvml.New()}
	switch result := l.calls.Init(); result {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return nil, status.Errorf(status.ErrUnsupported, "NVML (libnvidia-ml.so.1) was not found: it comes with the NVIDIA driver")
	default:
		return nil, l.check("nvmlInit", result)
	}
	var result nvml.Return
	if l.Version, result = l.calls.SystemGetNVMLVersion(); result != nvml.SUCCESS {
		return nil, l.check("nvmlSystemGetNVMLVersion", result)
	}
	if l.Driver, result = l.calls.SystemGetDriverVersion(); result != nvml.SUCCESS {
		return nil, l.check("nvmlSystemGetDriverVersion", result)
	}
	opened.library = l
	return l, nil
}

func (l *Library) check(call string, result nvml.Return) error {
	if result == nvml.SUCCESS {
		return nil
	}
	return status.Errorf(status.ErrUnsupported, "%s: %s", call, l.calls.ErrorString(result))
}

// GPU describes the GPU at a PCIe address, as CUDA prints it. Parts that this
// GPU or driver does not tell have an error of their own.
func (l *Library) GPU(busID string) (*GPU, error) {
	d, result := l.calls.DeviceGetHandleByPciBusId(busID)
	if result != nvml.SUCCESS {
		return nil, l.check("nvmlDeviceGetHandleByPciBusId("+busID+")", result)
	}
	g := &GPU{}
	if g.Name, result = d.GetName(); result != nvml.SUCCESS {
		return nil, l.check("nvmlDeviceGetName", result)
	}
	memory, result := d.GetMemoryInfo()
	g.MemoryError = l.check("nvmlDeviceGetMemoryInfo", result)
	g.FreeBytes, g.TotalBytes = memory.Free, memory.Total
	for _, part := range []struct {
		call string
		get  func() (int, nvml.Return)
		to   *int
	}{
		{"nvmlDeviceGetCurrPcieLinkGeneration", d.GetCurrPcieLinkGeneration, &g.Link.Generation},
		{"nvmlDeviceGetCurrPcieLinkWidth", d.GetCurrPcieLinkWidth, &g.Link.Width},
		{"nvmlDeviceGetMaxPcieLinkGeneration", d.GetMaxPcieLinkGeneration, &g.Link.MaxGeneration},
		{"nvmlDeviceGetMaxPcieLinkWidth", d.GetMaxPcieLinkWidth, &g.Link.MaxWidth},
	} {
		if *part.to, result = part.get(); result != nvml.SUCCESS {
			g.LinkError = l.check(part.call, result)
			break
		}
	}
	return g, nil
}
