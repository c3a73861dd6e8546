package rice

import (
	"slices"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/word"
)

type encoder[T word.Word] struct {
	tables     *tables
	marshaled  []byte
	chunkWords int
	class      *classifier
	finders    []*finder[T] // by context; nil where there are no values
	pool       sync.Pool    // *encodeState
}

// encodeState is the working memory of one chunk.
type encodeState struct {
	w          bitio.Writer
	buf        []byte
	found      [scanWords]found
	passed     [classes]uint32
	lists      [classes]list
	exceptions []uint32
}

// list is the events of a class.
type list struct {
	next   uint32 // rank of the word behind the last event
	events []event
}

type event struct {
	distance, at uint32
	value        uint8 // number of the symbol, or 1 for a change of -1
}

func newEncoder[T word.Word](t *tables, chunkWords int) *encoder[T] {
	e := &encoder[T]{tables: t, marshaled: t.marshal(), chunkWords: chunkWords, class: newClassifier(t), finders: newFinders[T](t)}
	e.pool.New = func() any { return new(encodeState) }
	return e
}

// newFinders makes a finder for each context that has values.
func newFinders[T word.Word](t *tables) []*finder[T] {
	byCode := make([]*finder[T], len(t.codes))
	for i := range t.codes {
		byCode[i] = newFinder[T](&t.codes[i].Code)
	}
	out := make([]*finder[T], len(t.contexts))
	for i, c := range t.contexts {
		if t.hasValues(c.class) {
			out[i] = byCode[c.code]
		}
	}
	return out
}

func (e *encoder[T]) Tables() []byte  { return e.marshaled }
func (e *encoder[T]) ChunkWords() int { return e.chunkWords }

func (e *encoder[T]) Encode(dst []byte, b codec.Block) ([]byte, uint32, error) {
	s := e.pool.Get().(*encodeState)
	defer e.pool.Put(s)
	base, res := word.View[T](b.Base), word.View[T](b.Residual)
	deltas := e.collect(base, res, s)

	var h head
	for c := range s.lists {
		h.events[c] = len(s.lists[c].events)
	}
	h.exceptions = len(s.exceptions)
	e.measure(base, s, &h)

	s.w.Reset(s.buf)
	h.write(&s.w, e.tables)
	e.writeDistances(s)
	e.writeValues(base, res, s)
	s.buf = s.w.Finish(codec.Align)
	dst = append(dst, s.buf...)
	return appendExceptions(dst, res, s.exceptions), deltas, nil
}

// collect finds the events and exceptions of a chunk, and returns the number of
// changed words.
func (e *encoder[T]) collect(base, res []T, s *encodeState) (deltas uint32) {
	for c := range s.lists {
		l := &s.lists[c]
		*l = list{events: l.events[:0]}
	}
	s.exceptions = s.exceptions[:0]
	s.passed = [classes]uint32{}
	for first := 0; first < len(res); first += scanWords {
		end := min(first+scanWords, len(res))
		n := scan(e.class, base[first:end], res[first:end], uint32(first), &s.passed, s.found[:])
		for _, f := range s.found[:n] {
			v := res[f.at]
			if v != 0 {
				deltas++
			}
			e.add(s, f, base[f.at], v)
		}
	}
	slices.Sort(s.exceptions) // scan may list one class before another
	return deltas
}

// add makes a word an event, an exception, or in the dense class both.
func (e *encoder[T]) add(s *encodeState, f found, w, v T) {
	k := key(e.class, w)
	c := classOf(e.class.steps[k])
	value := 0
	if find := e.finders[e.class.context[k]]; find != nil {
		value = find.find(v)
		if value < 0 && c == dense {
			value = find.code.Shortest()
			s.exceptions = append(s.exceptions, f.at)
		}
	} else if v+1 <= 2 { // 1 or -1; which of them, no processor can predict
		value = int(v >> (8*word.Size[T]() - 1))
	} else {
		value = -1
	}
	if value < 0 {
		s.exceptions = append(s.exceptions, f.at)
		return
	}
	l := &s.lists[c]
	l.events = append(l.events, event{f.rank - l.next, f.at, uint8(value)})
	l.next = f.rank + 1
}

// writeDistances writes the low bits and signs of all gap classes, and then the
// quotients.
func (e *encoder[T]) writeDistances(s *encodeState) {
	for c, g := range e.tables.gaps {
		low := uint(g.low)
		for _, x := range s.lists[c].events {
			s.w.Put(uint64(x.distance)&(1<<low-1), low)
		}
	}
	for c, g := range e.tables.gaps {
		if !g.coded {
			for _, x := range s.lists[c].events {
				s.w.Put(uint64(x.value), 1)
			}
		}
	}
	for c, g := range e.tables.gaps {
		for _, x := range s.lists[c].events {
			q := x.distance >> g.low
			for ; q >= 32; q -= 32 {
				s.w.Put(0, 32)
			}
			s.w.Put(1, uint(q+1))
		}
	}
}

// symbol returns the symbol of an event.
func (e *encoder[T]) symbol(base []T, x event) *interval.Symbol {
	return &e.finders[e.class.context[key(e.class, base[x.at])]].code.Symbols[x.value]
}

// measure fills in the lengths of the lanes.
func (e *encoder[T]) measure(base []T, s *encodeState, h *head) {
	total := h.values(e.tables)
	lanes := lanesOf(total)
	if lanes == 1 {
		return
	}
	lane, read := 0, 0
	for c := range s.lists {
		l := &s.lists[c]
		if c >= len(e.tables.gaps) && c != dense || !e.tables.hasValues(uint8(c)) {
			continue
		}
		for _, x := range l.events {
			if read == laneStart(lane+1, lanes, total) {
				lane++
			}
			symbol := e.symbol(base, x)
			h.lanes[lane] += int(symbol.Length + symbol.Raw)
			read++
		}
	}
}

// writeValues writes the codes of the events that have one.
func (e *encoder[T]) writeValues(base, res []T, s *encodeState) {
	for c := range s.lists {
		l := &s.lists[c]
		if c >= len(e.tables.gaps) && c != dense || !e.tables.hasValues(uint8(c)) {
			continue
		}
		for _, v := range l.events {
			x := e.symbol(base, v)
			plain := uint64(res[v.at]) - x.Base
			if plain >= 1<<x.Raw {
				plain = 0 // an exception
			}
			if n := uint(x.Length + x.Raw); n <= 57 {
				s.w.Put(uint64(x.Bits)<<x.Raw|plain, n)
			} else {
				s.w.Put(uint64(x.Bits), uint(x.Length))
				s.w.PutLong(plain, uint(x.Raw))
			}
		}
	}
}
