package rice

import (
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/codec/interval"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

type decoder[T word.Word] struct {
	tables      *tables
	class       *classifier
	readers     []*valueReader[T] // by context; nil where there are no values
	codes       []*interval.Code  // as readers
	placeholder []T               // by context: what stands for an exception in the dense class
	pool        sync.Pool         // *decodeState[T]
}

// decodeState is the working memory of one chunk: what it codes.
type decodeState[T word.Word] struct {
	buf       []byte // the bit string with slack behind it
	slots     slots
	positions []uint32 // of the events, by slot; their ranks at first
	values    []T      // of the events, by slot
	listed    exceptions[T]
}

func newDecoder[T word.Word](t *tables) *decoder[T] {
	d := &decoder[T]{tables: t, class: newClassifier(t)}
	readers := make([]*valueReader[T], len(t.codes))
	for i := range t.codes {
		readers[i] = newValueReader[T](&t.codes[i].Code)
	}
	d.readers = make([]*valueReader[T], len(t.contexts))
	d.codes = make([]*interval.Code, len(t.contexts))
	d.placeholder = make([]T, len(t.contexts))
	for i, c := range t.contexts {
		if t.hasValues(c.class) {
			code := &t.codes[c.code].Code
			d.readers[i], d.codes[i] = readers[c.code], code
			d.placeholder[i] = T(code.Symbols[code.Shortest()].Base)
		}
	}
	d.pool.New = func() any { return new(decodeState[T]) }
	return d
}

func (d *decoder[T]) Decode(b codec.Block, data []byte, deltas uint32) error {
	s := d.pool.Get().(*decodeState[T])
	defer d.pool.Put(s)
	if err := d.read(word.View[T](b.Base), data, deltas, s); err != nil {
		return err
	}
	res := word.View[T](b.Residual)
	clear(res)
	s.patch(res)
	return nil
}

// Rebuild implements codec.Rebuilder. In place, it writes changed words only.
func (d *decoder[T]) Rebuild(dst, base, data []byte, deltas uint32) error {
	s := d.pool.Get().(*decodeState[T])
	defer d.pool.Put(s)
	if err := d.read(word.View[T](base), data, deltas, s); err != nil {
		return err
	}
	if len(dst) > 0 && &dst[0] != &base[0] {
		copy(dst, base)
	}
	s.patch(word.View[T](dst))
	return nil
}

// patch adds what a chunk codes to words.
func (s *decodeState[T]) patch(words []T) {
	for c, start := range s.slots.start {
		end := s.slots.end[c]
		values := s.values[start:end]
		for i, p := range s.positions[start:end] {
			words[p] += values[i]
		}
	}
	for i, p := range s.listed.positions {
		words[p] += s.listed.words[i]
	}
}

// read reads everything that a chunk codes into s.
func (d *decoder[T]) read(base []T, data []byte, deltas uint32, s *decodeState[T]) error {
	r := bitio.NewReader(data)
	h, err := readHead(r, d.tables, len(base))
	if err != nil {
		return err
	}
	listed := 0
	if h.exceptions > 0 {
		listed = exceptionSize(h.exceptions, len(base), word.Size[T]())
	}
	if listed > len(data) || len(data)%codec.Align != 0 {
		return status.Errorf(status.ErrCorrupt, "rice chunk has %d bytes, expected a multiple of %d and room for %d exceptions", len(data), codec.Align, h.exceptions)
	}
	strings := data[:len(data)-listed]
	if err := d.readStrings(base, h, strings, uint(r.Pos()), s); err != nil {
		return err
	}
	s.listed.positions, s.listed.words = s.listed.positions[:0], s.listed.words[:0]
	if h.exceptions > 0 {
		if err := s.listed.read(data[len(strings):], h.exceptions, len(base)); err != nil {
			return err
		}
		if err := d.merge(&s.listed, &s.slots, base, s.positions, s.values); err != nil {
			return err
		}
	}
	changed := h.total() + len(s.listed.positions)
	for _, v := range s.values[s.slots.start[dense]:s.slots.end[dense]] {
		if v == 0 {
			changed--
		}
	}
	if uint64(changed) != uint64(deltas) {
		return status.Errorf(status.ErrCorrupt, "rice chunk holds %d deltas, expected %d", changed, deltas)
	}
	return nil
}

// readStrings reads the events from the bit string, in which the head takes
// start bits.
func (d *decoder[T]) readStrings(base []T, h *head, strings []byte, start uint, s *decodeState[T]) error {
	at := slotsOf(h)
	s.slots = at
	s.buf = append(append(s.buf[:0], strings...), make([]byte, bitio.Slack)...)
	if cap(s.positions) < at.size {
		s.positions, s.values = make([]uint32, at.size), make([]T, at.size)
	}
	s.positions, s.values = s.positions[:at.size], s.values[:at.size]
	size := uint(8 * len(strings))
	where := sectionsOf(d.tables, h, start)
	pos, ok := readRanks(d.tables, h, &at, s.buf, where, size, len(base), s.positions)
	if !ok {
		return status.Errorf(status.ErrCorrupt, "the distances of a rice chunk end at bit %d of %d, or lead beyond its %d words", pos, size, len(base))
	}
	if !locate(d.class, base, &at, s.positions) {
		return status.Errorf(status.ErrCorrupt, "the events of a rice chunk do not agree with its base")
	}
	readSigns(d.tables, &at, s.buf, where.signs, s.values)
	pos, ok = d.readValues(h, &at, s.buf, pos, base, s.positions, s.values)
	if !ok || pos > size || size-pos >= 8*codec.Align || !bitio.ZeroFrom(strings, int(pos)) {
		return status.Errorf(status.ErrCorrupt, "the values of a rice chunk end at bit %d of %d, in another lane, or without zero padding", pos, size)
	}
	return nil
}
