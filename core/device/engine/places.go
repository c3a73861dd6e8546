package engine

import (
	"encoding/binary"
	"sort"

	"github.com/tpde-project/tpde/core/codec/zstd"
	"github.com/tpde-project/tpde/core/container"
)

// placeBytes is the size of a place in an image.
const placeBytes = 16

// bufferAlign is what the buffers that planes are decompressed to are padded
// to.
const bufferAlign = 16

// place says what the chunks of a zstd tensor before a chunk take of scratch
// memory: bytes of buffers, and slots of nvCOMP's batch. Both follow from the
// chunk records: every plane has a slot and a buffer, whether it is compressed
// or not, because the host does not see the blob.
type place struct {
	buffer uint64
	slot   uint64
}

// placesOf returns the places of all chunks, one more that says what all of
// them take, and the size of the largest plane.
func placesOf(x *container.Index) (places []place, largest uint64) {
	places = make([]place, 1, len(x.Records)+1)
	size := x.Type.WordBytes()
	var sum place
	for i := range x.Records {
		r := &x.Records[i]
		planes := zstd.Planes(int(r.UncompressedBytes)/size, int(r.Deltas), size)
		sum.slot += uint64(planes)
		sum.buffer += uint64(planes) * alignUp(uint64(r.Deltas), bufferAlign)
		places = append(places, sum)
		if planes > 0 {
			largest = max(largest, uint64(r.Deltas))
		}
	}
	return places, largest
}

// appendPlaces appends struct Place of kernels/zstd.cuh for each chunk.
func appendPlaces(dst []byte, places []place) []byte {
	le := binary.LittleEndian
	for i, p := range places[:len(places)-1] {
		dst = le.AppendUint64(dst, p.buffer)
		dst = le.AppendUint32(dst, uint32(p.slot))
		dst = le.AppendUint32(dst, uint32(places[i+1].slot-p.slot))
	}
	return dst
}

// fit returns the end of the longest run of chunks from first on that takes at
// most `room` bytes of scratch.
func fit(places []place, first int, room uint64) int {
	n := sort.Search(len(places)-1-first, func(i int) bool { return cost(places[first], places[first+i+1]) > room })
	return first + n
}

// slotBytes is about what a slot takes besides its buffer, as if it were a
// larger buffer: nvCOMP 6 wants 3.05 bytes of temporary memory for each byte
// of buffers, and 6.9 KB for each slot.
const slotBytes = 2304

// cost returns what the chunks between two places take.
func cost(from, to place) uint64 {
	return to.buffer - from.buffer + slotBytes*(to.slot-from.slot)
}

func alignUp(n, to uint64) uint64 { return (n + to - 1) &^ (to - 1) }
