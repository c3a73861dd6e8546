// Package info says what the GPU engine finds on this machine: the driver and
// its GPUs, NVRTC, nvCOMP and NVML. It never fails: what is missing is told
// with the reason.
package info

import (
	"encoding/json"
	"fmt"

	"github.com/tpde-project/tpde/core/device/cuda"
	"github.com/tpde-project/tpde/core/device/nvcomp"
	"github.com/tpde-project/tpde/core/device/nvml"
	"github.com/tpde-project/tpde/core/device/nvrtc"
)

// Library is one of the libraries that the engine uses.
type Library struct {
	Found   bool   `json:"found"`
	Version string `json:"version,omitempty"`
	Path    string `json:"path,omitempty"`
	Error   string `json:"error,omitempty"` // why it was not found, and what to install
}

// GPU is one that the process may use.
type GPU struct {
	Name              string     `json:"name"`
	ComputeCapability string     `json:"compute_capability"`
	MemoryTotal       uint64     `json:"memory_total"`
	MemoryFree        *uint64    `json:"memory_free"` // null if NVML does not tell
	PCIe              *nvml.Link `json:"pcie"`        // null if NVML does not tell
}

// Report is everything.
type Report struct {
	Driver Library `json:"driver"` // version: of the CUDA that it supports
	GPUs   []GPU   `json:"gpus"`
	NVRTC  Library `json:"nvrtc"`
	NvCOMP Library `json:"nvcomp"`
	NVML   Library `json:"nvml"`
}

func missing(err error) Library { return Library{Error: err.Error()} }

// Collect looks for everything.
func Collect() *Report {
	r := &Report{GPUs: []GPU{}}
	driverMajor := 0
	driver, err := cuda.Open()
	if err != nil {
		r.Driver = missing(err)
	} else {
		driverMajor = driver.Version / 1000
		r.Driver = Library{Found: true, Version: fmt.Sprintf("%d.%d", driverMajor, driver.Version%1000/10), Path: driver.Path}
	}
	if c, err := nvrtc.Open(driverMajor); err != nil {
		r.NVRTC = missing(err)
	} else {
		r.NVRTC = Library{Found: true, Version: c.Version(), Path: c.Path}
	}
	if n, err := nvcomp.Open(); err != nil {
		r.NvCOMP = missing(err)
	} else {
		r.NvCOMP = Library{Found: true, Version: n.Version(), Path: n.Path}
	}
	management, err := nvml.Open()
	if err != nil {
		r.NVML = missing(err)
	} else {
		r.NVML = Library{Found: true, Version: management.Version}
	}
	if driver != nil {
		if err := r.addGPUs(driver, management); err != nil {
			r.Driver.Error = err.Error()
		}
	}
	return r
}

// addGPUs adds every GPU; management may be nil.
func (r *Report) addGPUs(driver *cuda.Driver, management *nvml.Library) error {
	n, err := driver.DeviceCount()
	if err != nil {
		return err
	}
	for i := range n {
		v, err := driver.Device(i)
		if err != nil {
			return err
		}
		g := GPU{Name: v.Name, ComputeCapability: fmt.Sprintf("%d.%d", v.Major, v.Minor), MemoryTotal: v.MemoryBytes}
		if management != nil {
			if m, err := management.GPU(v.BusID); err != nil {
				r.NVML.Error = err.Error()
			} else {
				g.add(m)
			}
		}
		r.GPUs = append(r.GPUs, g)
	}
	return nil
}

// add adds what NVML could tell.
func (g *GPU) add(m *nvml.GPU) {
	if m.MemoryError == nil {
		g.MemoryFree = &m.FreeBytes
	}
	if m.LinkError == nil {
		g.PCIe = &m.Link
	}
}

// JSON returns the report as text.
func (r *Report) JSON() ([]byte, error) { return json.MarshalIndent(r, "", "  ") }
