package elias

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/dtype"
)

// DeviceTableBytes is the size of the tables as a GPU takes them.
const DeviceTableBytes = 288

// DeviceTables validates the codec tables of a tensor and expands them to
// struct Tables of kernels/elias.cuh: little-endian 32-bit words, one for each
// value of the low 5 bits of base word >> shift.
func DeviceTables(dt dtype.Type, data []byte) ([]byte, error) {
	t, err := parseTables(dt, data)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	out := make([]byte, 0, DeviceTableBytes)
	for i := range maxContexts { // step: one in the byte of the class
		out = le.AppendUint32(out, 1<<(8*t.class[t.context(i)]))
	}
	for i := range maxContexts { // code: value code, class, gap parameter of the class
		class := uint32(t.class[t.context(i)])
		code := uint32(t.code[t.context(i)]) | class<<8
		if class != dense {
			code |= uint32(t.gaps[class]) << 16
		}
		out = le.AppendUint32(out, code)
	}
	var gaps [maxGaps]uint8
	copy(gaps[:], t.gaps)
	for _, k := range gaps {
		out = le.AppendUint32(out, uint32(k))
	}
	out = le.AppendUint32(out, uint32(len(t.gaps)))
	out = le.AppendUint32(out, uint32(t.shift))
	return append(out, make([]byte, DeviceTableBytes-len(out))...), nil
}
