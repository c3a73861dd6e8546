package elias

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

type decoder[T word.Word] struct {
	tables tables
	steps  stepTable
	ctx    [maxContexts]decodeContext
	pool   sync.Pool // *[]byte: a block's bit strings with bitio.Slack behind them
}

// decodeContext is what the decoder needs to know of a context.
type decodeContext struct {
	test  uint64 // bit of the packed counters that tells whether a word has a value
	class uint8
	code  uint8
	gap   uint8 // gap parameter of the class
}

func newDecoder[T word.Word](t tables) *decoder[T] {
	d := &decoder[T]{tables: t, steps: newStepTable(&t)}
	for i := range d.ctx {
		c := t.context(i)
		class := t.class[c]
		x := decodeContext{test: 1 << (16*class + 15), class: class, code: t.code[c]}
		if class != dense {
			x.gap = t.gaps[class]
		}
		d.ctx[i] = x
	}
	d.pool.New = func() any { return new([]byte) }
	return d
}

func (d *decoder[T]) Decode(b codec.Block, data []byte, deltas uint32) error {
	base, res := word.View[T](b.Base), word.View[T](b.Residual)
	clear(res)
	buf := d.pool.Get().(*[]byte)
	defer d.pool.Put(buf)
	var found uint32
	for len(res) > 0 {
		n := min(len(res), blockWords)
		rest, changed, err := d.block(base[:n], res[:n], data, buf)
		if err != nil {
			return err
		}
		found += changed
		base, res, data = base[n:], res[n:], rest
	}
	if len(data) != 0 {
		return status.Errorf(status.ErrCorrupt, "elias chunk has %d bytes after its last block", len(data))
	}
	if found != deltas {
		return status.Errorf(status.ErrCorrupt, "elias chunk holds %d deltas, expected %d", found, deltas)
	}
	return nil
}

// block decodes one block into res, which is zero, and returns the data behind
// it and the number of changed words.
func (d *decoder[T]) block(base, res []T, data []byte, buf *[]byte) (rest []byte, deltas uint32, err error) {
	h, err := parseHead(data)
	if err != nil {
		return nil, 0, err
	}
	size := (h.starts[lanes] + 31) / 32 * 4
	if size > len(h.rest) {
		return nil, 0, status.Errorf(status.ErrCorrupt, "elias block needs %d bytes of bit strings, %d are left", size, len(h.rest))
	}
	strings, rest := h.rest[:size], h.rest[size:]
	if !bitio.ZeroFrom(strings, h.starts[lanes]) {
		return nil, 0, status.Errorf(status.ErrCorrupt, "elias bit strings are not padded with zeros")
	}
	*buf = append(append((*buf)[:0], strings...), make([]byte, bitio.Slack)...)
	for l := range lanes {
		end, n, ok := d.lane(base, res, l, *buf, uint(h.starts[l]))
		if !ok || end != uint(h.starts[l+1]) {
			return nil, 0, status.Errorf(status.ErrCorrupt, "elias lane %d ends at bit %d or in an open gap, expected bit %d", l, end, h.starts[l+1])
		}
		deltas += n
	}
	if h.exceptions > 0 {
		if rest, err = d.except(res, rest, h.exceptions); err != nil {
			return nil, 0, err
		}
	}
	return rest, deltas + uint32(h.exceptions), nil
}

// lane decodes the bit string of a lane, which starts at bit pos of buf. ok
// says that it is well formed; the caller compares end with what it expects.
//
// The counters of the gap classes are packed 16 bits apart, each 2^15 above
// what is left of its gap. Each word subtracts the step of its class; a counter
// that falls below 2^15 says that the word has a value. The dense class has a
// counter that stands at 2^15 at all times, so that each of its words does.
func (d *decoder[T]) lane(base, res []T, lane int, buf []byte, pos uint) (end uint, deltas uint32, ok bool) {
	size := word.Size[T]()
	group, stride := groupBytes/size, lanes*groupBytes
	shift := d.tables.shift & 63
	counters := uint64(full)
	ok = true
	for class, k := range d.tables.gaps {
		gap, n := readGap(bitio.Window(buf, pos), uint(k))
		pos += n
		counters += gap << (16 * class)
	}
	bytes := word.Bytes(base)
	for off := lane * groupBytes; ; off += stride {
		off, counters = d.steps.skip(size, bytes, off, stride, shift, counters)
		from := off / size
		if from >= len(res) {
			break
		}
		to := min(from+group, len(res))
		b, r := base[from:to], res[from:to]
		r = r[:len(b)]
		for j, w := range b {
			c := uint64(w) >> shift & (maxContexts - 1)
			counters -= d.steps[c]
			x := &d.ctx[c]
			if counters&x.test != 0 {
				continue
			}
			v, n, good := readValue[T](buf, pos, x)
			pos += n
			ok = ok && good
			r[j] = v
			if v != 0 {
				deltas++
			}
			gap := uint64(0)
			if x.class != dense {
				gap, n = readGap(bitio.Window(buf, pos), uint(x.gap))
				pos += n
			}
			// The counter stands at 2^15-1.
			counters += d.steps[c] * (gap + 1)
		}
	}
	return pos, deltas, ok && counters == full
}

// readGap reads a gap off a window and returns its length in bits. A gap that
// no encoder writes comes out as one that no lane can close, and below 2^15, so
// that the counters stay apart.
func readGap(win uint64, k uint) (gap uint64, n uint) {
	zeros := uint(bits.LeadingZeros64(win))
	if zeros > maxGapBits {
		return beyondLane, maxGapBits
	}
	n = 2*zeros + 1 + k
	return min(win>>(64-n)-1<<k, beyondLane), n
}

// readValue reads the residual word of an event. ok is false for a word that
// no encoder writes there: an unchanged one in a gap class.
func readValue[T word.Word](buf []byte, pos uint, x *decodeContext) (v T, n uint, ok bool) {
	win := bitio.Window(buf, pos)
	switch x.code {
	case codeSign:
		return 1 - T(win>>63)<<1, 1, true
	case codeVerbatim:
		v = readWord[T](buf, pos)
		return v, uint(8 * word.Size[T]()), v != 0 || x.class == dense
	}
	zeros := uint(bits.LeadingZeros64(win))
	if zeros >= maxZeros {
		v = readWord[T](buf, pos+maxZeros)
		return v, uint(maxZeros + 8*word.Size[T]()), v != 0 || x.class == dense
	}
	k := uint(x.code)
	n = 2*zeros + 1 + k
	var z T
	if word.Size[T]() < 8 {
		z = T(win>>(64-n) - 1<<k)
	} else {
		q := win>>(63-2*zeros) - 1
		z = T(q<<k | readWord[uint64](buf, pos+2*zeros+1)>>1>>(63-k))
	}
	if x.class != dense {
		z++
		return word.Unzigzag(z), n, z != 0
	}
	return word.Unzigzag(z), n, true
}

// readWord reads a plain word of T's width.
func readWord[T word.Word](buf []byte, pos uint) T {
	if word.Size[T]() < 8 {
		return T(bitio.Window(buf, pos) >> (64 - 8*word.Size[T]()))
	}
	return T(bitio.Window(buf, pos)>>32<<32 | bitio.Window(buf, pos+32)>>32)
}

// except sets the words that are listed behind the bit strings.
func (d *decoder[T]) except(res []T, data []byte, n int) (rest []byte, err error) {
	size := word.Size[T]()
	values := (n*size + codec.Align - 1) / codec.Align * codec.Align
	if n > len(res) || 4*n+values > len(data) {
		return nil, status.Errorf(status.ErrCorrupt, "elias block lists %d exceptions in %d words and %d bytes", n, len(res), len(data))
	}
	at, words := data[:4*n], data[4*n:4*n+values]
	next := uint32(0)
	for i := range n {
		p := binary.LittleEndian.Uint32(at[4*i:])
		if p < next || uint64(p) >= uint64(len(res)) || res[p] != 0 {
			return nil, status.Errorf(status.ErrCorrupt, "elias exception %d is at word %d, expected an unchanged word from %d on", i, p, next)
		}
		copy(word.Bytes(res[p:p+1]), words[i*size:])
		if res[p] == 0 {
			return nil, status.Errorf(status.ErrCorrupt, "elias exception %d is an unchanged word", i)
		}
		next = p + 1
	}
	for _, pad := range words[n*size:] {
		if pad != 0 {
			return nil, status.Errorf(status.ErrCorrupt, "elias exceptions are not padded with zeros")
		}
	}
	return data[4*n+values:], nil
}
