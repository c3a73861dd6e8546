package rice

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/dtype"
)

// DeviceHeadBytes is the size of what device tables start with.
const DeviceHeadBytes = 1184

// Kinds of classes on a GPU.
const (
	kindUnit = iota
	kindValued
	kindAbsent
)

// DeviceTables validates the codec tables of a tensor and expands them to
// struct Tables of kernels/rice_state.cuh and the arrays behind it:
// little-endian, each at a multiple of 16 bytes.
func DeviceTables(dt dtype.Type, data []byte) ([]byte, error) {
	t, err := parseTables(dt, data)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	classOf, codeOf := t.byKey()
	keys := len(classOf)

	var steps, codes, symbols, entries []byte
	for _, class := range classOf {
		steps = le.AppendUint32(steps, 1<<(4*class))
	}
	codes = append(codes, codeOf...)
	infos := make([]byte, 0, 16*interval.MaxSymbols)
	for i := range t.codes {
		c := &t.codes[i].Code
		peek, _ := c.Longest()
		infos = le.AppendUint32(infos, uint32(len(entries)/4))
		infos = le.AppendUint32(infos, uint32(peek))
		infos = le.AppendUint64(infos, c.Symbols[c.Shortest()].Base)
		lookup := make([]uint8, 1<<peek)
		c.Lookup(lookup, uint(peek))
		for _, symbol := range lookup {
			s := &c.Symbols[symbol]
			number := uint32(len(symbols)/8) + uint32(symbol)
			entry := uint32(s.Length+s.Raw) | uint32(s.Raw)<<7 | number<<16
			if t.width <= 16 {
				entry = uint32(s.Length+s.Raw) | uint32(s.Base-uint64(s.Bits)<<s.Raw)<<16
			}
			entries = le.AppendUint32(entries, entry)
		}
		for _, s := range c.Symbols {
			symbols = le.AppendUint64(symbols, s.Base)
		}
	}

	out := make([]byte, 0, DeviceHeadBytes)
	shift := t.shift
	if t.width == 64 {
		shift -= 32 // a key lies in the upper half
	}
	for _, v := range []uint32{uint32(shift), uint32(keys), uint32(classOf[0]), uint32(len(entries) / 4)} {
		out = le.AppendUint32(out, v)
	}
	parts := [][]byte{steps, codes, symbols, entries}
	at := DeviceHeadBytes
	for i, p := range parts {
		out = le.AppendUint32(out, uint32(at))
		parts[i] = append(p, make([]byte, -len(p)&15)...)
		at += len(parts[i])
	}
	for c := range classes {
		low, kind, count := uint32(0), uint32(kindAbsent), countCode{}
		switch {
		case c == dense && t.hasDense:
			kind, count = kindValued, t.denseCount
		case c < len(t.gaps):
			g := &t.gaps[c]
			low, kind, count = uint32(g.low), kindUnit, g.count
			if g.coded {
				kind = kindValued
			}
		}
		for _, v := range []uint32{low, kind, uint32(count.order), count.mean} {
			out = le.AppendUint32(out, v)
		}
	}
	out = append(out, infos...)
	out = append(out, make([]byte, DeviceHeadBytes-len(out))...)
	for _, p := range parts {
		out = append(out, p...)
	}
	return out, nil
}

// byKey returns the class and the interval code of every key; where a class has
// no values, the code is 0.
func (t *tables) byKey() (class, code []uint8) {
	next := 0
	for key := range 1 << t.keyBits() {
		if next < len(t.contexts) && int(t.contexts[next].first) == key {
			next++
		}
		class = append(class, t.contexts[next-1].class)
		code = append(code, t.contexts[next-1].code)
	}
	return class, code
}
