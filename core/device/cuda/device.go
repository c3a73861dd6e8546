package cuda

/*
#include "calls.h"
*/
import "C"

// Device is a GPU that the process may use.
type Device struct {
	Ordinal      int // as torch counts
	Name         string
	Major, Minor int    // compute capability
	BusID        string // on PCIe, as NVML takes it
	MemoryBytes  uint64

	handle C.int
}

// DeviceCount returns the number of GPUs that the process may use.
func (d *Driver) DeviceCount() (int, error) {
	var n C.int
	err := d.check("cuDeviceGetCount", C.cuda_call_device_count(d.calls, &n))
	return int(n), err
}

// Device describes a GPU.
func (d *Driver) Device(ordinal int) (*Device, error) {
	v := &Device{Ordinal: ordinal}
	if err := d.check("cuDeviceGet", C.cuda_call_device_get(d.calls, &v.handle, C.int(ordinal))); err != nil {
		return nil, err
	}
	var text [256]C.char
	if err := d.check("cuDeviceGetName", C.cuda_call_device_name(d.calls, &text[0], C.int(len(text)), v.handle)); err != nil {
		return nil, err
	}
	v.Name = C.GoString(&text[0])
	if err := d.check("cuDeviceGetPCIBusId", C.cuda_call_device_bus_id(d.calls, &text[0], C.int(len(text)), v.handle)); err != nil {
		return nil, err
	}
	v.BusID = C.GoString(&text[0])
	var total C.size_t
	if err := d.check("cuDeviceTotalMem", C.cuda_call_device_memory(d.calls, &total, v.handle)); err != nil {
		return nil, err
	}
	v.MemoryBytes = uint64(total)
	var err error
	const computeMajor, computeMinor = 75, 76 // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
	if v.Major, err = d.attribute(v, computeMajor); err != nil {
		return nil, err
	}
	v.Minor, err = d.attribute(v, computeMinor)
	return v, err
}

func (d *Driver) attribute(v *Device, number int) (int, error) {
	var value C.int
	err := d.check("cuDeviceGetAttribute", C.cuda_call_device_attribute(d.calls, &value, C.int(number), v.handle))
	return int(value), err
}

// Primary returns the primary context of the device, which is the one that
// torch and everything else built on CUDA's runtime works in. It is retained
// for good.
func (d *Driver) Primary(v *Device) (Context, error) {
	var c C.uintptr_t
	err := d.check("cuDevicePrimaryCtxRetain", C.cuda_call_primary_retain(d.calls, &c, v.handle))
	return Context(c), err
}
