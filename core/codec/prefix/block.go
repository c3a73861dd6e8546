package prefix

import (
	"encoding/binary"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

// slack is how many bytes a decoder may read behind the strings.
const slack = bitio.Slack

// parsed is a block cut into its sections, whose sizes are right.
type parsed struct {
	planes     []byte
	starts     [lanes + 1]int // bit position of each lane; the last is the end
	strings    []byte
	exceptions []byte // word numbers
	values     []byte // target words
	rest       []byte // what follows the block
}

// parseBlock cuts up the data of a block of words words.
func parseBlock(l *layout, words int, data []byte) (p parsed, err error) {
	whole := len(data)
	take := func(n int) []byte {
		if n > len(data) {
			err = status.Errorf(status.ErrCorrupt, "prefix block of %d words needs %d bytes more, %d are left", words, n, len(data))
			return nil
		}
		out := data[:n]
		data = data[n:]
		return out
	}
	align := func(to int) {
		for _, x := range take(-(whole - len(data)) & (to - 1)) {
			if x != 0 {
				err = status.Errorf(status.ErrCorrupt, "prefix block is not padded with zeros")
			}
		}
	}
	if p.planes = take(l.planes() * ((2*words + 15) / 16 * 16)); err != nil {
		return p, err
	}
	for from := 2 * words; from < len(p.planes); from += (2*words + 15) / 16 * 16 {
		for _, x := range p.planes[from : (from+15)/16*16] {
			if x != 0 {
				return p, status.Errorf(status.ErrCorrupt, "prefix planes are not padded with zeros")
			}
		}
	}
	head := take(4)
	if err != nil {
		return p, err
	}
	h := binary.LittleEndian.Uint32(head)
	least, width, exceptions := int(h&0xffff), uint(h>>16&31), int(h>>21)
	if width > 16 {
		return p, status.Errorf(status.ErrCorrupt, "prefix lane table has entries of %d bits, expected at most 16", width)
	}
	if exceptions == manyExceptions {
		if more := take(4); err == nil {
			n := binary.LittleEndian.Uint32(more)
			if n < manyExceptions || uint64(n) > uint64(words) {
				err = status.Errorf(status.ErrCorrupt, "prefix block has %d exceptions, expected %d to %d", n, manyExceptions, words)
			}
			exceptions = int(n)
		}
	}
	table := take(int(width) * lanes / 8)
	if err != nil {
		return p, err
	}
	r := bitio.NewReader(table)
	for i := range lanes {
		p.starts[i+1] = p.starts[i] + least + int(r.Get(width))
	}
	p.strings = take((p.starts[lanes] + 7) / 8)
	if err == nil && !bitio.ZeroFrom(p.strings, p.starts[lanes]) {
		err = status.Errorf(status.ErrCorrupt, "prefix strings are not padded with zeros")
	}
	align(codec.Align)
	p.exceptions = take(2 * exceptions)
	align(codec.Align)
	p.values = take(exceptions * int(l.wordBits/8))
	align(l.align())
	p.rest = data
	return p, err
}

// except sets the words that a block lists behind its strings.
func except[T word.Word](out []T, p *parsed) error {
	next := 0
	for i := range len(p.exceptions) / 2 {
		at := int(binary.LittleEndian.Uint16(p.exceptions[2*i:]))
		if at < next || at >= len(out) {
			return status.Errorf(status.ErrCorrupt, "prefix exception %d is word %d, expected %d to %d", i, at, next, len(out)-1)
		}
		size := word.Size[T]()
		copy(word.Bytes(out[at:at+1]), p.values[i*size:(i+1)*size])
		next = at + 1
	}
	return nil
}
