package prefix

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

// manyExceptions in a block's head says that their number follows.
const manyExceptions = 1<<11 - 1

type encoder[T word.Word, P part] struct {
	tables     tables
	marshaled  []byte
	chunkWords int
	lookup     lookup
	pageOf     []uint32  // by key: number of the first page of its context
	standIn    []uint32  // by that number: entry of the word in place of one that the code leaves out
	findArgs   *findArgs // nil where there is no assembly for the tables
	pool       sync.Pool
}

type encodeState[P part] struct {
	base, res  []P      // coded parts of a block
	room       []P      // of base and res, where they are not the words themselves
	pairs      []uint64 // see find
	out        []byte   // bit strings
	exceptions []uint16 // word numbers in the block
}

func newEncoder[T word.Word, P part](t dtype.Type, samples []codec.Block, level codec.Level) *encoder[T, P] {
	tab, chunkWords := planTables[T, P](t, samples, level)
	return encoderOf[T, P](tab, chunkWords)
}

func encoderOf[T word.Word, P part](t tables, chunkWords int) *encoder[T, P] {
	e := &encoder[T, P]{tables: t, marshaled: t.marshal(), chunkWords: chunkWords, lookup: t.lookup()}
	perContext := 256
	if t.layout.coded == 8 {
		perContext = 1
	}
	for _, c := range t.contexts.table(&t.layout) {
		e.pageOf = append(e.pageOf, uint32(int(c)*perContext))
	}
	e.standIn = make([]uint32, len(t.codes)*perContext)
	for i := range t.codes {
		s := t.codes[i].Symbols[t.codes[i].Shortest()]
		e.standIn[i*perContext] = uint32(s.Bits)<<s.Raw<<8 | uint32(s.Length) + uint32(s.Raw)
	}
	e.findArgs = newFindArgs(&e.tables, &e.lookup)
	e.pool.New = func() any { return new(encodeState[P]) }
	return e
}

func (e *encoder[T, P]) Tables() []byte  { return e.marshaled }
func (e *encoder[T, P]) ChunkWords() int { return e.chunkWords }

func (e *encoder[T, P]) Encode(dst []byte, b codec.Block) ([]byte, uint32, error) {
	s := e.pool.Get().(*encodeState[P])
	defer e.pool.Put(s)
	base, res := word.View[T](b.Base), word.View[T](b.Residual)
	for from := 0; from < len(res); from += blockWords {
		to := min(from+blockWords, len(res))
		dst = e.block(dst, base[from:to], res[from:to], s)
	}
	return dst, uint32(len(res)), nil
}

// block appends one block to dst.
func (e *encoder[T, P]) block(dst []byte, base, res []T, s *encodeState[P]) []byte {
	start := len(dst)
	dst = e.cut(dst, base, res, s)
	var lengths [lanes]uint32
	strings := e.strings(s, &lengths)
	dst = appendHead(dst, &lengths, len(s.exceptions))
	dst = append(dst, strings...)
	dst = pad(dst, start, codec.Align)
	dst = append(dst, word.Bytes(s.exceptions)...)
	dst = pad(dst, start, codec.Align)
	for _, i := range s.exceptions {
		target := base[i] + res[i]
		dst = append(dst, word.Bytes([]T{target})...)
	}
	return pad(dst, start, e.tables.layout.align())
}

// pad appends zeros until what lies from start on is a multiple of align.
func pad(dst []byte, start, align int) []byte {
	for (len(dst)-start)%align != 0 {
		dst = append(dst, 0)
	}
	return dst
}

// cut fills s with the coded parts of base and of the residual and with the
// words that are exceptions whatever the codes, and appends the planes to dst.
func (e *encoder[T, P]) cut(dst []byte, base, res []T, s *encodeState[P]) []byte {
	l := &e.tables.layout
	s.exceptions = s.exceptions[:0]
	if word.Size[T]() == word.Size[P]() {
		s.base, s.res = word.View[P](word.Bytes(base)), word.View[P](word.Bytes(res))
		return dst
	}
	s.own(len(res))
	if l.signed {
		for i, v := range res {
			s.res[i] = P(v)
			if v != T(int16(v)) { // not what a sign-extended part stands for
				s.exceptions = append(s.exceptions, uint16(i))
			}
		}
		return dst
	}
	start := len(dst)
	for plane := range uint(l.planes()) {
		at := len(dst)
		dst = append(dst, make([]byte, 2*len(res))...)
		p := dst[at:]
		for i, v := range res {
			binary.LittleEndian.PutUint16(p[2*i:], uint16((base[i]+v)>>(16*plane)))
		}
		dst = pad(dst, start, l.align())
	}
	for i, v := range res {
		s.base[i] = P(base[i] >> l.codeShift)
		s.res[i] = P((base[i]+v)>>l.codeShift) - s.base[i]
	}
	return dst
}

// own makes base and res the state's own memory, for n parts. A state never
// keeps the caller's for another block.
func (s *encodeState[P]) own(n int) {
	if cap(s.room) < 2*n {
		s.room = make([]P, 2*n)
	}
	s.base, s.res = s.room[:n:n], s.room[n:2*n]
}

// strings returns the bit strings of all lanes, one behind the other, and sets
// their lengths in bits. The result is valid until the state is used again.
func (e *encoder[T, P]) strings(s *encodeState[P], lengths *[lanes]uint32) []byte {
	if need := len(s.res)*maxTotal/8 + 16; len(s.out) < need {
		s.out = make([]byte, need)
	}
	e.find(s)
	for len(s.pairs)%4 != 0 {
		s.pairs = append(s.pairs, 0) // of no bits
	}
	pairs, group := s.pairs, e.tables.layout.group()/2
	b := pending{}
	out, end := s.out, uint32(0)
	for lane := range lanes {
		for off := lane * group; off < len(pairs); off += lanes * group {
			for from := off; from < min(off+group, len(pairs)); from += 4 {
				p := (*[4]uint64)(pairs[from:])
				// Two at once, if they leave room in a register for what is pending.
				x, xn := p[0]>>8<<(p[1]&63)|p[1]>>8, p[0]&63+p[1]&63
				y, yn := p[2]>>8<<(p[3]&63)|p[3]>>8, p[2]&63+p[3]&63
				if max(xn, yn) > 56 {
					for _, x := range p {
						b = b.put(out, x>>8, x&63)
					}
					continue
				}
				b = b.put(out, x, xn)
				b = b.put(out, y, yn)
			}
		}
		pos := uint32(8*b.at) + uint32(b.n)
		lengths[lane], end = pos-end, pos
	}
	slices.Sort(s.exceptions)
	s.exceptions = slices.Compact(s.exceptions)
	return out[:b.at+int(b.n+7)/8]
}

// pending is where a bit string is being written: at bytes are complete, and
// the low n bits of acc follow, less than 8.
type pending struct {
	at     int
	acc, n uint64
}

// put writes n bits to out, which has room for 8 bytes more.
func (b pending) put(out []byte, bits, n uint64) pending {
	acc := b.acc<<(n&63) | bits
	n += b.n
	binary.BigEndian.PutUint64(out[b.at:], acc<<(-n&63))
	return pending{b.at + int(n>>3), acc, n & 7}
}

// find fills s.pairs with what stands in the bit strings for each two words:
// their bits from bit 8 on, and the number of these in bits 0-5.
func (e *encoder[T, P]) find(s *encodeState[P]) {
	n := (len(s.res) + 1) / 2
	if cap(s.pairs) < n {
		s.pairs = make([]uint64, n+3) // strings fills up to four
	}
	s.pairs = s.pairs[:n]
	for at := 0; at < len(s.res); {
		// Assembly stops at words that the codes leave out.
		at += e.findFast(s, at)
		to := len(s.res)
		if e.findArgs != nil {
			to = min(at+findStep, to)
		}
		e.findSome(s, at, to)
		at = to
	}
}

// findSome does the words from an even word number on up to another one.
func (e *encoder[T, P]) findSome(s *encodeState[P], from, to int) {
	l := &e.tables.layout
	mask, shift := P(1<<l.keyBits-1), e.tables.contexts.shift&15
	pageOf, pages, leaf := e.pageOf, e.lookup.pages, e.lookup.leaf
	var first uint32 // of a pair
	r := s.res[from:to]
	b := s.base[from:to][:len(r)]
	pairs := s.pairs[from/2:]
	for j, v := range r {
		page := pageOf[b[j]&mask>>shift]
		x := leaf[pages[page+uint32(v)>>8]+uint32(v)&255]
		if x&leftOut != 0 {
			s.exceptions = append(s.exceptions, uint16(from+j))
			x = e.standIn[page] - uint32(v)<<8
		}
		x += uint32(v) << 8
		if j&1 == 0 {
			first = x
			continue
		}
		pairs[j/2] = (uint64(first>>8)<<(x&31)|uint64(x>>8))<<8 | uint64(first&31+x&31)
	}
	if len(r)&1 != 0 {
		pairs[len(r)/2] = uint64(first>>8)<<8 | uint64(first&31)
	}
}

// appendHead writes the head of a block: see FORMAT.md.
func appendHead(dst []byte, lengths *[lanes]uint32, exceptions int) []byte {
	least, most := slices.Min(lengths[:]), slices.Max(lengths[:])
	width := uint32(bits.Len32(most - least))
	few := min(exceptions, manyExceptions)
	dst = binary.LittleEndian.AppendUint32(dst, least|width<<16|uint32(few)<<21)
	if few == manyExceptions {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(exceptions))
	}
	var w bitio.Writer
	for _, n := range lengths {
		w.Put(uint64(n-least), uint(width))
	}
	return append(dst, w.Finish(codec.Align)...)
}
