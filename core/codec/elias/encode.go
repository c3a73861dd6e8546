package elias

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

// exceptionFlag in the first word of a block says that a count of exceptions follows.
const exceptionFlag = 1 << 31

type encoder[T word.Word] struct {
	tables     tables
	marshaled  []byte
	chunkWords int
	steps      stepTable
	ctx        [maxContexts]context
	pool       sync.Pool // *encodeState[T]
}

// context is what the encoder needs to know of a context.
type context struct {
	class uint8
	code  uint8
}

// event is a word that has a value.
type event[T word.Word] struct {
	residual T
	ctx      uint8
	next     uint16 // gap to the next event of its class in the lane
}

type encodeState[T word.Word] struct {
	w          bitio.Writer
	events     []event[T]
	exceptions []uint32
}

func newEncoder[T word.Word](t dtype.Type, samples []codec.Block, level codec.Level) *encoder[T] {
	return encoderOf[T](planTables[T](t, samples, level))
}

func encoderOf[T word.Word](t tables, chunkWords int) *encoder[T] {
	e := &encoder[T]{tables: t, marshaled: t.marshal(), chunkWords: chunkWords, steps: newStepTable(&t)}
	for c := range e.ctx {
		e.ctx[c] = context{t.class[t.context(c)], t.code[t.context(c)]}
	}
	e.pool.New = func() any { return new(encodeState[T]) }
	return e
}

func (e *encoder[T]) Tables() []byte  { return e.marshaled }
func (e *encoder[T]) ChunkWords() int { return e.chunkWords }

func (e *encoder[T]) Encode(dst []byte, b codec.Block) ([]byte, uint32, error) {
	s := e.pool.Get().(*encodeState[T])
	defer e.pool.Put(s)
	base, res := word.View[T](b.Base), word.View[T](b.Residual)
	var deltas uint32
	for len(res) > 0 {
		n := min(len(res), blockWords)
		var d uint32
		dst, d = e.block(dst, base[:n], res[:n], s)
		deltas += d
		base, res = base[n:], res[n:]
	}
	return dst, deltas, nil
}

// block appends one block to dst.
func (e *encoder[T]) block(dst []byte, base, res []T, s *encodeState[T]) ([]byte, uint32) {
	s.w.Reset(s.w.Finish(1))
	s.exceptions = s.exceptions[:0]
	var lengths [lanes]uint32
	var deltas uint32
	pos := 0
	for l := range lanes {
		first, d := e.collect(base, res, l, s)
		deltas += d
		e.emit(first, s)
		end := s.w.Pos()
		lengths[l] = uint32(end - pos)
		pos = end
	}
	dst = appendLaneTable(dst, &lengths, len(s.exceptions))
	dst = append(dst, s.w.Finish(4)...)
	slices.Sort(s.exceptions) // lanes found them in their own order
	dst = append(dst, word.Bytes(s.exceptions)...)
	start := len(dst)
	for _, i := range s.exceptions {
		v := res[i]
		dst = append(dst, word.Bytes([]T{v})...)
	}
	for (len(dst)-start)%codec.Align != 0 {
		dst = append(dst, 0)
	}
	return dst, deltas
}

// collect finds the events of a lane. It returns the first gap of each class,
// packed, and the number of changed words, and fills s.events.
func (e *encoder[T]) collect(base, res []T, lane int, s *encodeState[T]) (first uint64, deltas uint32) {
	size := word.Size[T]()
	group, stride := groupBytes/size, lanes*groupBytes
	events := s.events[:0]
	last := [maxGaps]int{-1, -1, -1}
	var count uint64 // unchanged words of each class since its last event, packed
	shift := e.tables.shift & 63

	closeGap := func(class uint8) {
		gap := uint16(count >> (16 * class))
		if last[class] < 0 {
			first |= uint64(gap) << (16 * class)
		} else {
			events[last[class]].next = gap
		}
		count &^= 0xffff << (16 * class)
	}
	baseBytes, resBytes := word.Bytes(base), word.Bytes(res)
	for off := lane * groupBytes; ; off += stride {
		var unchanged uint64
		off, unchanged = e.steps.count(size, baseBytes, resBytes, off, stride, shift)
		count += unchanged
		from := off / size
		if from >= len(res) {
			break
		}
		to := min(from+group, len(res))
		r, b := res[from:to], base[from:to]
		b = b[:len(r)]
		for j, v := range r {
			c := uint8(uint64(b[j]) >> shift & (maxContexts - 1))
			x := &e.ctx[c]
			if v == 0 && x.class != dense {
				count += e.steps[c]
				continue
			}
			if v != 0 {
				deltas++
			}
			if x.code == codeSign && v != 1 && v != ^T(0) {
				s.exceptions = append(s.exceptions, uint32(from+j))
				count += e.steps[c]
				continue
			}
			if x.class != dense {
				closeGap(x.class)
				last[x.class] = len(events)
			}
			events = append(events, event[T]{residual: v, ctx: c})
		}
	}
	for class := range uint8(len(e.tables.gaps)) {
		closeGap(class)
	}
	s.events = events
	return first, deltas
}

// emit writes the bit string of a lane: the first gap of each class, then each
// event's value and, unless it is dense, the next gap of its class.
func (e *encoder[T]) emit(first uint64, s *encodeState[T]) {
	for class, k := range e.tables.gaps {
		s.w.PutGamma(first>>(16*class)&0xffff, uint(k))
	}
	for i := range s.events {
		ev := &s.events[i]
		x := &e.ctx[ev.ctx]
		putValue(&s.w, ev.residual, x)
		if x.class != dense {
			s.w.PutGamma(uint64(ev.next), uint(e.tables.gaps[x.class]))
		}
	}
}

// putValue writes a residual word in the value code of its context.
func putValue[T word.Word](w *bitio.Writer, v T, x *context) {
	switch x.code {
	case codeSign:
		w.Put(uint64(v)>>1&1, 1) // 1 is +1, all ones are -1
	case codeVerbatim:
		putWord(w, v)
	default:
		z := word.Zigzag(v)
		if x.class != dense {
			z-- // never zero in a gap class
		}
		k := uint(x.code)
		zeros := uint(bits.Len64(uint64(z)>>k+1)) - 1
		switch {
		case zeros >= maxZeros:
			w.Put(0, maxZeros)
			putWord(w, v)
		case k <= 40:
			w.Put(uint64(z)+1<<k, 2*zeros+1+k)
		default: // longer than put takes at once
			w.Put(uint64(z)>>k+1, 2*zeros+1)
			w.PutLong(uint64(z), k)
		}
	}
}

func putWord[T word.Word](w *bitio.Writer, v T) { w.PutLong(uint64(v), uint(8*word.Size[T]())) }

// appendLaneTable writes the head of a block: the least length of a lane's bit
// string, and what each has beyond it.
func appendLaneTable(dst []byte, lengths *[lanes]uint32, exceptions int) []byte {
	least, most := lengths[0], lengths[0]
	for _, n := range lengths {
		least, most = min(least, n), max(most, n)
	}
	width := uint(bits.Len32(most - least))
	head := least | uint32(width)<<24
	if exceptions > 0 {
		head |= exceptionFlag
	}
	dst = binary.LittleEndian.AppendUint32(dst, head)
	if exceptions > 0 {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(exceptions))
	}
	w := bitio.Writer{}
	for _, n := range lengths {
		w.Put(uint64(n-least), width)
	}
	return append(dst, w.Finish(4)...)
}
