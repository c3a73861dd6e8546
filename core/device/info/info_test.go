package info

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/dl/dltest"
	"github.com/tpde-project/tpde/core/device/nvml"
)

// Whatever the machine has, every part is found or has a reason.
func TestCollect(t *testing.T) {
	text, err := Collect().JSON()
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"driver", "nvrtc", "nvcomp", "nvml"} {
		var l Library
		if err := json.Unmarshal(all[name], &l); err != nil {
			t.Fatal(err)
		}
		if l.Found == (l.Error != "") || l.Found != (l.Version != "") {
			t.Errorf("%s: %+v", name, l)
		}
	}
	var gpus []GPU
	if err := json.Unmarshal(all["gpus"], &gpus); err != nil || gpus == nil {
		t.Errorf("gpus is %s, expected a list", all["gpus"])
	}
}

// The compiler of a wheel is found where there is no driver.
func TestCompilerWithoutDriver(t *testing.T) {
	dl.SetSearch(dltest.SitePackages(t))
	if r := Collect(); !r.NVRTC.Found || r.NVRTC.Path == "" {
		t.Errorf("%+v", r.NVRTC)
	}
}

func TestPartsMissing(t *testing.T) {
	var g GPU
	g.add(&nvml.GPU{FreeBytes: 5, LinkError: errors.New("hidden")})
	if g.MemoryFree == nil || *g.MemoryFree != 5 || g.PCIe != nil {
		t.Errorf("%+v", g)
	}
	g = GPU{}
	g.add(&nvml.GPU{Link: nvml.Link{Generation: 5}, MemoryError: errors.New("hidden")})
	if g.MemoryFree != nil || g.PCIe == nil || g.PCIe.Generation != 5 {
		t.Errorf("%+v", g)
	}
}
