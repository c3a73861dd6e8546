package prefix

import (
	"encoding/binary"
	"sync"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/word"
)

type decoder[T word.Word, P part] struct {
	tables  tables
	first   []uint32 // by key: number of the first entry of its context
	table   []uint32 // entries, see entry
	rowArgs *rowArgs // nil where there is no assembly for the tables
	pool    sync.Pool
}

type decodeState[P part] struct {
	strings []byte
	parts   []P // coded parts of base and target, where they are not the words themselves
}

func newDecoder[T word.Word, P part](t tables) *decoder[T, P] {
	d := &decoder[T, P]{tables: t, table: t.decoding()}
	for _, c := range t.contexts.table(&t.layout) {
		d.first = append(d.first, uint32(c)<<t.index)
	}
	d.rowArgs = newRowArgs(&d.tables, d.table)
	d.pool.New = func() any { return new(decodeState[P]) }
	return d
}

// Decode rebuilds the target and takes the base off it.
func (d *decoder[T, P]) Decode(b codec.Block, data []byte, deltas uint32) error {
	if err := d.Rebuild(b.Residual, b.Base, data, deltas); err != nil {
		return err
	}
	residual.Compute(residual.Bit, b.Type, b.Residual, b.Base, b.Residual, nil)
	return nil
}

// Rebuild implements codec.Rebuilder.
func (d *decoder[T, P]) Rebuild(dst, base, data []byte, deltas uint32) error {
	s := d.pool.Get().(*decodeState[P])
	defer d.pool.Put(s)
	out, from := word.View[T](dst), word.View[T](base)
	if int64(deltas) != int64(len(out)) {
		return status.Errorf(status.ErrCorrupt, "prefix chunk stores %d words, expected %d", deltas, len(out))
	}
	for len(out) > 0 {
		n := min(len(out), blockWords)
		rest, err := d.block(out[:n], from[:n], data, s)
		if err != nil {
			return err
		}
		out, from, data = out[n:], from[n:], rest
	}
	if len(data) != 0 {
		return status.Errorf(status.ErrCorrupt, "prefix chunk has %d bytes left", len(data))
	}
	return nil
}

// block rebuilds one block and returns the data behind it. out may be base.
func (d *decoder[T, P]) block(out, base []T, data []byte, s *decodeState[P]) (rest []byte, err error) {
	l := &d.tables.layout
	p, err := parseBlock(l, len(out), data)
	if err != nil {
		return nil, err
	}
	s.strings = append(append(s.strings[:0], p.strings...), make([]byte, slack+rowSlack(len(out)))...)
	if word.Size[T]() == word.Size[P]() {
		if err := d.strings(word.View[P](word.Bytes(out)), word.View[P](word.Bytes(base)), s.strings, &p); err != nil {
			return nil, err
		}
	} else {
		parts := s.own(len(out))
		for i, w := range base {
			parts[i] = P(w >> l.codeShift)
		}
		if l.signed { // against a part of zero, a part is its residual
			clear(parts)
		}
		if err := d.strings(parts, parts, s.strings, &p); err != nil {
			return nil, err
		}
		join(l, out, base, parts, p.planes)
	}
	return p.rest, except(out, &p)
}

// own returns room for n parts.
func (s *decodeState[P]) own(n int) []P {
	if cap(s.parts) < n {
		s.parts = make([]P, n)
	}
	return s.parts[:n]
}

// join makes words of their coded parts and the planes, or of the base and
// sign-extended residuals.
func join[T word.Word, P part](l *layout, out, base []T, parts []P, planes []byte) {
	if l.signed {
		for i, v := range parts {
			out[i] = base[i] + T(int16(v))
		}
		return
	}
	for i, v := range parts {
		out[i] = T(v) << l.codeShift
	}
	for plane := range uint(l.planes()) {
		for i := range out {
			out[i] |= T(binary.LittleEndian.Uint16(planes[2*i:])) << (16 * plane)
		}
		planes = planes[(2*len(out)+15)/16*16:]
	}
}

// strings decodes the bit strings of all lanes, which have slack bytes behind
// them, into the coded parts of the target. out may be base.
func (d *decoder[T, P]) strings(out, base []P, strings []byte, p *parsed) error {
	var pos [lanes]uint
	for l := range pos {
		pos[l] = uint(p.starts[l])
	}
	l := &d.tables.layout
	group := l.group()
	row := lanes * group
	done := d.rows(out, base, strings, &pos)
	for ; done+row <= len(out); done += row {
		for lane := 0; lane < lanes; lane += 4 {
			from := done + lane*group
			d.four(out[from:from+4*group], base[from:from+4*group], strings, (*[4]uint)(pos[lane:]))
		}
	}
	for lane := range lanes {
		if from := done + lane*group; from < len(out) {
			to := min(from+group, len(out))
			pos[lane] = d.one(out[from:to], base[from:to], strings, pos[lane])
		}
		if pos[lane] != uint(p.starts[lane+1]) {
			return status.Errorf(status.ErrCorrupt, "prefix lane %d ends at bit %d, expected bit %d", lane, pos[lane], p.starts[lane+1])
		}
	}
	return nil
}

// one decodes words of one lane and returns the position behind them. Wherever
// data send it, a position stays within the strings: see bitio.Window.
func (d *decoder[T, P]) one(out, base []P, strings []byte, pos uint) uint {
	mask, shift, skip := d.key()
	skip &= 63 // which spares the compiler a test
	base = base[:len(out)]
	for i := range out {
		b := base[i]
		w := bitio.Window(strings, pos)
		e := d.table[d.first[b&mask>>shift]+uint32(w>>1>>skip)]
		out[i] = b + P(w>>1>>((63-e&31)&63)) + P(e>>8)
		pos += uint(e & 31)
	}
	return pos
}

// key returns how keys and table entries are found: mask and shift make the key
// of a base word, and skip+1 the number of an entry of a window.
func (d *decoder[T, P]) key() (mask P, shift, skip uint) {
	return P(1<<d.tables.layout.keyBits - 1), d.tables.contexts.shift & 15, 63 - d.tables.index
}

// four decodes a group of words of each of four lanes, which lie one behind
// the other. What one lane waits for, the others use: the position of a code
// depends on the one before.
func (d *decoder[T, P]) four(out, base []P, strings []byte, pos *[4]uint) {
	mask, shift, skip := d.key()
	skip &= 63 // which spares the compiler a test
	table, first := d.table, d.first
	n := len(out) / 4
	o0, o1, o2, o3 := out[:n], out[n:2*n], out[2*n:3*n], out[3*n:4*n]
	b0, b1, b2, b3 := base[:n], base[n:2*n], base[2*n:3*n], base[3*n:4*n]
	p0, p1, p2, p3 := pos[0], pos[1], pos[2], pos[3]
	for i := 0; i+1 < n; i += 2 {
		w0 := bitio.Window(strings, p0)
		w1 := bitio.Window(strings, p1)
		w2 := bitio.Window(strings, p2)
		w3 := bitio.Window(strings, p3)
		for k := i; k < i+2; k++ {
			e0 := table[first[b0[k]&mask>>shift]+uint32(w0>>1>>skip)]
			e1 := table[first[b1[k]&mask>>shift]+uint32(w1>>1>>skip)]
			e2 := table[first[b2[k]&mask>>shift]+uint32(w2>>1>>skip)]
			e3 := table[first[b3[k]&mask>>shift]+uint32(w3>>1>>skip)]
			o0[k] = b0[k] + P(w0>>1>>((63-e0&31)&63)) + P(e0>>8)
			o1[k] = b1[k] + P(w1>>1>>((63-e1&31)&63)) + P(e1>>8)
			o2[k] = b2[k] + P(w2>>1>>((63-e2&31)&63)) + P(e2>>8)
			o3[k] = b3[k] + P(w3>>1>>((63-e3&31)&63)) + P(e3>>8)
			w0 <<= e0 & 31
			w1 <<= e1 & 31
			w2 <<= e2 & 31
			w3 <<= e3 & 31
			p0 += uint(e0 & 31)
			p1 += uint(e1 & 31)
			p2 += uint(e2 & 31)
			p3 += uint(e3 & 31)
		}
	}
	pos[0], pos[1], pos[2], pos[3] = p0, p1, p2, p3
}
