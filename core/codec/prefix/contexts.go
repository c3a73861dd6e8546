package prefix

import "slices"

// contexts tells the context of a base word: runs of its key, which is its
// coded part without the sign, shifted right.
type contexts struct {
	shift  uint     // of the coded part
	starts []uint16 // of all runs but the first, which starts at key 0; ascending
}

// keys returns how many keys there are.
func (c *contexts) keys(l *layout) int { return 1 << (l.keyBits - c.shift) }

// of returns the context of a key.
func (c *contexts) of(key uint16) int {
	i, found := slices.BinarySearch(c.starts, key)
	if found {
		i++
	}
	return i
}

// table returns the context of every key.
func (c *contexts) table(l *layout) []uint8 {
	t := make([]uint8, c.keys(l))
	for key := range t {
		t[key] = uint8(c.of(uint16(key)))
	}
	return t
}
