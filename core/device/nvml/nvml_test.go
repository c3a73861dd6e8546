package nvml

import (
	"errors"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/tpde-project/tpde/core/status"
)

// gpu answers as an H200 would, but for what edit changes.
func gpu(edit func(*mock.Device)) *Library {
	number := func(n int) func() (int, nvml.Return) { return func() (int, nvml.Return) { return n, nvml.SUCCESS } }
	d := &mock.Device{
		GetNameFunc:                   func() (string, nvml.Return) { return "NVIDIA H200", nvml.SUCCESS },
		GetMemoryInfoFunc:             func() (nvml.Memory, nvml.Return) { return nvml.Memory{Total: 10, Free: 7, Used: 3}, nvml.SUCCESS },
		GetCurrPcieLinkGenerationFunc: number(1),
		GetCurrPcieLinkWidthFunc:      number(8),
		GetMaxPcieLinkGenerationFunc:  number(5),
		GetMaxPcieLinkWidthFunc:       number(16),
	}
	edit(d)
	return &Library{calls: &mock.Interface{
		ErrorStringFunc: func(r nvml.Return) string { return "error " + string(rune('0'+r)) },
		DeviceGetHandleByPciBusIdFunc: func(id string) (nvml.Device, nvml.Return) {
			if id != "0000:19:00.0" {
				return nil, nvml.ERROR_NOT_FOUND
			}
			return d, nvml.SUCCESS
		},
	}}
}

func TestGPU(t *testing.T) {
	l := gpu(func(*mock.Device) {})
	g, err := l.GPU("0000:19:00.0")
	if err != nil {
		t.Fatal(err)
	}
	want := GPU{Name: "NVIDIA H200", FreeBytes: 7, TotalBytes: 10, Link: Link{Generation: 1, Width: 8, MaxGeneration: 5, MaxWidth: 16}}
	if *g != want {
		t.Errorf("got %+v, expected %+v", *g, want)
	}
	if _, err := l.GPU("0000:20:00.0"); !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "0000:20:00.0") {
		t.Errorf("an unknown GPU: %v", err)
	}
}

// Virtual machines hide the link; the rest must still be told.
func TestPartsMissing(t *testing.T) {
	g, err := gpu(func(d *mock.Device) {
		d.GetMaxPcieLinkGenerationFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	}).GPU("0000:19:00.0")
	if err != nil || g.FreeBytes != 7 || g.MemoryError != nil || g.LinkError == nil || !strings.Contains(g.LinkError.Error(), "MaxPcieLinkGeneration") {
		t.Errorf("got %+v, %v", g, err)
	}
}

// Where there is no driver, the process must live on.
func TestOpen(t *testing.T) {
	l, err := Open()
	if err == nil {
		t.Skipf("this machine has NVML %s", l.Version)
	}
	if !errors.Is(err, status.ErrUnsupported) || !strings.Contains(err.Error(), "NVIDIA driver") {
		t.Errorf("got %v", err)
	}
}
