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
	Processors   int // streaming multiprocessors
	Shared       SharedMemory

	handle C.int
}

// SharedMemory says how much shared memory a device has, in bytes.
type SharedMemory struct {
	Processor int // of a multiprocessor
	Block     int // that a thread block may ask for, once AllowShared has been called
	Reserved  int // that every thread block takes besides
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
	for _, a := range []struct {
		number int // CU_DEVICE_ATTRIBUTE_*
		value  *int
	}{
		{75, &v.Major},            // COMPUTE_CAPABILITY_MAJOR
		{76, &v.Minor},            // COMPUTE_CAPABILITY_MINOR
		{16, &v.Processors},       // MULTIPROCESSOR_COUNT
		{81, &v.Shared.Processor}, // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
		{97, &v.Shared.Block},     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
		{111, &v.Shared.Reserved}, // RESERVED_SHARED_MEMORY_PER_BLOCK
	} {
		if *a.value, err = d.attribute(v, a.number); err != nil {
			return nil, err
		}
	}
	return v, nil
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
