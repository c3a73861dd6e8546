package elias

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
)

// head is the parsed head of a block.
type head struct {
	starts     [lanes + 1]int // bit position of each lane; the last is the end
	exceptions int
	rest       []byte // what follows the lane table
}

func parseHead(data []byte) (head, error) {
	var h head
	if len(data) < 4 {
		return h, status.Errorf(status.ErrCorrupt, "elias block has %d bytes, expected at least 4", len(data))
	}
	first, data := binary.LittleEndian.Uint32(data), data[4:]
	least, width := int(first&(1<<24-1)), uint(first>>24&0x7f)
	if width > 24 {
		return h, status.Errorf(status.ErrCorrupt, "elias lane table has entries of %d bits, expected at most 24", width)
	}
	if first&exceptionFlag != 0 {
		if len(data) < 4 {
			return h, status.Errorf(status.ErrCorrupt, "elias block is cut short in its head")
		}
		n := binary.LittleEndian.Uint32(data)
		if n == 0 || n > blockWords {
			return h, status.Errorf(status.ErrCorrupt, "elias block has %d exceptions, expected 1 to %d", n, blockWords)
		}
		h.exceptions, data = int(n), data[4:]
	}
	size := int(width) * lanes / 8
	if len(data) < size {
		return h, status.Errorf(status.ErrCorrupt, "elias lane table needs %d bytes, %d are left", size, len(data))
	}
	var table [24*lanes/8 + bitio.Slack]byte
	copy(table[:], data[:size])
	for l := range lanes {
		n := least
		if width > 0 {
			n += int(bitio.Window(table[:], uint(l)*width) >> (64 - width))
		}
		h.starts[l+1] = h.starts[l] + n
	}
	h.rest = data[size:]
	return h, nil
}
