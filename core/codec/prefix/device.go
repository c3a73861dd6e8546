package prefix

import (
	"encoding/binary"
	"math/bits"

	"github.com/tpde-project/tpde/core/dtype"
)

// deviceHead is the size of struct Tables of kernels/prefix_block.cuh.
const deviceHead = 48

// deviceIndex is the least index of expanded tables, kIndex there: that of the
// tables that Plan makes, for which the kernel has a faster path.
const deviceIndex = 8

// copiesBytes is what two or more copies of the entries take of shared memory at most,
// 32 KiB and the gaps: of one context there is one for each lane.
const copiesBytes = 33 << 10

// maxRamp is how many numbers a ramp has at most: their entries take 48 KiB, which
// leaves something of what any GPU has. Tables of Plan have windowKeys + 1.
const maxRamp = 48

// DeviceTables validates the codec tables of a tensor and expands them to what
// kernels/prefix.cuh looks codes up in: struct Tables, then the context of each
// key in 8 bits, then the entries, with a gap of one between those of two contexts.
// Behind the contexts, and behind the entries, there are zeros up to a multiple of 16
// bytes. The contexts are numbered anew, so that the kernel can calculate them, if
// there is room for that, and its loop that does is for such codes.
func DeviceTables(dt dtype.Type, data []byte) ([]byte, error) {
	t, err := parseTables(dt, data)
	if err != nil {
		return nil, err
	}
	l := &t.layout
	t.index = max(t.index, deviceIndex)
	contexts, entries := t.contexts.table(l), t.decoding()
	r := rampOf(&t.contexts)
	ok := r.last < maxRamp && t.index == deviceIndex && t.longest <= totalBits
	if ok {
		contexts, entries = r.expand(contexts, entries, t.index)
	} else {
		r = ramp{}
	}
	each := 1 << t.index
	gapped := len(entries) + len(entries)/each - 1
	copies := 32
	for copies > 1 && 4*gapped*copies > copiesBytes {
		copies /= 2
	}
	le := binary.LittleEndian
	out := make([]byte, 0, deviceHead+len(contexts)+4*gapped+32)
	for _, v := range []uint32{
		uint32(t.contexts.shift + r.shift), uint32(len(contexts) - 1), uint32(t.index), uint32(t.longest),
		uint32(alignUp(len(contexts), 16)), uint32(alignUp(gapped, 4)), flag(l.signed), uint32(copies),
		flag(ok), uint32(r.first), uint32(r.last), 0,
	} {
		out = le.AppendUint32(out, v)
	}
	out = append(out, contexts...)
	out = append(out, make([]byte, -len(out)&15)...)
	for i, e := range entries { // the length in bits 0-4, the bias in bits 16-31
		if i > 0 && i%each == 0 {
			out = le.AppendUint32(out, 0)
		}
		out = le.AppendUint32(out, e&31|e>>8<<16)
	}
	return append(out, make([]byte, -len(out)&15)...), nil
}

func flag(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

// ramp numbers contexts so that arithmetic finds them: key>>shift - first, between 0
// and last. Keys in a row have the same code where their contexts are one.
type ramp struct {
	shift       uint
	first, last int
}

// rampOf returns the shortest ramp.
func rampOf(c *contexts) (r ramp) {
	if len(c.starts) == 0 {
		return r
	}
	all := uint16(0)
	for _, s := range c.starts {
		all |= s
	}
	r.shift = uint(bits.TrailingZeros16(all))
	r.first = int(c.starts[0]>>r.shift) - 1
	r.last = int(c.starts[len(c.starts)-1]>>r.shift) - r.first
	return r
}

// expand returns the number of each key>>shift, and the entries of each number,
// where contexts has the context of each key and entries 2^index for each context.
func (r ramp) expand(contexts []uint8, entries []uint32, index uint) (numbers []uint8, repeated []uint32) {
	numbers = make([]uint8, len(contexts)>>r.shift)
	for key := range numbers {
		numbers[key] = uint8(max(min(key-r.first, r.last), 0))
	}
	for n := range r.last + 1 {
		c := int(contexts[(r.first+n)<<r.shift])
		repeated = append(repeated, entries[c<<index:(c+1)<<index]...)
	}
	return numbers, repeated
}

// DeviceShared returns how many bytes of shared memory the kernel takes for
// expanded tables: a byte for each key, aligned to all of them, and copies of the
// entries.
func DeviceShared(tables []byte) int {
	le := binary.LittleEndian
	return 2*int(le.Uint32(tables[16:])) + 4*int(le.Uint32(tables[20:]))*int(le.Uint32(tables[28:]))
}

// DeviceStage returns how many bytes of shared memory a warp takes for a block,
// but for its planes, of a chunk of so many words and bytes.
func DeviceStage(dt dtype.Type, words, bytes int) int {
	l := layoutOf(dt)
	// It lies as it lies in the blob, up to 12 bytes behind a multiple of 16.
	return alignUp(max(bytes-l.planes()*2*min(words, blockWords), 0)+12, 16)
}

// DeviceQueue returns how many bytes of shared memory a warp takes for rows that
// are on their way, unless the base is quantised: kQueueWords of
// kernels/prefix_block.cuh.
func DeviceQueue(dt dtype.Type) int {
	rows, pieces := 0, 0 // of 16 bytes that a lane loads of a row
	switch layoutOf(dt).wordBits {
	case 32:
		rows, pieces = 2, 2+1
	case 64:
		rows, pieces = 1, 4+3
	}
	return rows * pieces * 32 * 16
}

func alignUp(n, to int) int { return (n + to - 1) / to * to }
