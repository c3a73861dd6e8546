package interval

import (
	"math"
	"math/bits"
	"slices"
)

// lengths returns the lengths of an optimal prefix code for symbols of the
// given frequencies, of which none is longer than its limit, by package-merge.
// ok is false if there is none, or package-merge misses it because the limits
// differ. A single symbol needs no bits.
//
// Package-merge buys coins of 2^-1, 2^-2, ...: the list of a level holds the
// symbols that may have a code that long, and pairs of the level below.
func lengths(counts []int, limits []uint) (out []uint, ok bool) {
	n := len(counts)
	out = make([]uint, n)
	if n == 1 {
		return out, true
	}
	type packet struct {
		weight  int
		symbols [MaxSymbols]uint8 // how often each symbol is in it
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return counts[a] - counts[b] })
	longest := slices.Max(limits)
	var below []packet
	for level := longest; level >= 1; level-- {
		list := make([]packet, 0, n+len(below)/2)
		pair := 0 // the next of the level below, which ascend, too
		pairs := func(limit int) {
			for ; pair+1 < len(below) && below[pair].weight+below[pair+1].weight < limit; pair += 2 {
				x := below[pair]
				x.weight += below[pair+1].weight
				for s := range x.symbols[:n] {
					x.symbols[s] += below[pair+1].symbols[s]
				}
				list = append(list, x)
			}
		}
		for _, s := range order {
			if limits[s] >= level {
				pairs(counts[s])
				x := packet{weight: counts[s]}
				x.symbols[s] = 1
				list = append(list, x)
			}
		}
		pairs(math.MaxInt)
		below = list
	}
	for _, x := range below[:min(2*n-2, len(below))] {
		for s, k := range x.symbols[:n] {
			out[s] += uint(k)
		}
	}
	space := 0
	for s, length := range out {
		if length == 0 || length > limits[s] {
			return nil, false
		}
		space += 1 << (MaxLength - length)
	}
	return out, space == 1<<MaxLength
}

// log2 returns the logarithm of v > 0 in 1/256 bit, rounded down, by the nine
// highest bits of v.
func log2(v int) int {
	n := bits.Len64(uint64(v)) - 1
	return n<<8 + int(fractions[uint64(v)<<(63-n)>>55&255])
}

// fractions holds 256 * log2(1 + i/256), rounded down.
var fractions = func() (table [256]uint8) {
	for i := range table {
		x := uint64(256+i) << 23 // in [2^31, 2^32)
		for range 8 {            // squaring doubles the logarithm
			x = x * x >> 31
			table[i] <<= 1
			if x >= 1<<32 {
				table[i]++
				x >>= 1
			}
		}
	}
	return table
}()
