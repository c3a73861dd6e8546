package residual

import (
	"encoding/binary"
	"math/bits"
)

// CountChanged returns how many words of res are not zero.
func CountChanged(res []byte, wordBytes int) int {
	top := topBits(wordBytes)
	n := 0
	for len(res) > 0 {
		if len(res) >= 8 {
			if x := binary.LittleEndian.Uint64(res); x != 0 {
				n += bits.OnesCount64(nonzero(x, top))
			}
			res = res[8:]
			continue
		}
		n += bits.OnesCount64(nonzero(part(res), top))
		res = nil
	}
	return n
}

// AppendChanged appends the numbers of the words of res that are not zero.
func AppendChanged(dst []uint32, res []byte, wordBytes int) []uint32 {
	top := topBits(wordBytes)
	shift := bits.Len(uint(wordBytes)) - 1 + 3 // from bits to words
	perRound := uint32(8 / wordBytes)
	first := uint32(0)
	for len(res) >= 8 {
		if x := binary.LittleEndian.Uint64(res); x != 0 {
			for m := nonzero(x, top); m != 0; m &= m - 1 {
				dst = append(dst, first+uint32(bits.TrailingZeros64(m)>>shift))
			}
		}
		res = res[8:]
		first += perRound
	}
	for m := nonzero(part(res), top); m != 0; m &= m - 1 {
		dst = append(dst, first+uint32(bits.TrailingZeros64(m)>>shift))
	}
	return dst
}

// nonzero returns the top bit of every word of x that is not zero: adding all
// ones to the lower bits carries into the top bit unless they are all zero.
func nonzero(x, top uint64) uint64 {
	return ((x&^top)+^top)&top | x&top
}
