package rice

import (
	"math/bits"

	"github.com/tpde-project/tpde/core/codec/bitio"
	"github.com/tpde-project/tpde/core/status"
)

const (
	leastOrder = 8 // of the code of the least length of a lane
	widthBits  = 5 // of a lane table's width
)

// head is what a chunk starts with. From it follows where its sections start.
type head struct {
	events     [classes]int // of each class; unused classes have none
	exceptions int
	lanes      [maxLanes]int // length in bits of all value strings but the last
}

// total returns the number of events.
func (h *head) total() int {
	n := 0
	for _, e := range h.events {
		n += e
	}
	return n
}

// values returns the number of events that have a value in an interval code.
func (h *head) values(t *tables) int {
	n := h.events[dense]
	for c, g := range t.gaps {
		if g.coded {
			n += h.events[c]
		}
	}
	return n
}

// lanesOf returns how many lanes share values.
func lanesOf(values int) int { return max(1, min((values+laneValues-1)/laneValues, maxLanes)) }

// write appends the head. The lanes are what values says.
func (h *head) write(w *bitio.Writer, t *tables) {
	for c, g := range t.gaps {
		g.count.put(w, h.events[c])
	}
	if t.hasDense {
		t.denseCount.put(w, h.events[dense])
	}
	w.Put(bit(h.exceptions > 0), 1)
	if h.exceptions > 0 {
		w.PutGamma(uint64(h.exceptions-1), 0)
	}
	n := lanesOf(h.values(t)) - 1
	if n == 0 {
		return
	}
	least, width := spread(h.lanes[:n])
	w.PutGamma(uint64(least), leastOrder)
	w.Put(uint64(width), widthBits)
	for _, length := range h.lanes[:n] {
		w.Put(uint64(length-least), width)
	}
}

// spread returns the least of some lengths and the bits that the largest
// difference to it has.
func spread(lengths []int) (least int, width uint) {
	least, most := lengths[0], lengths[0]
	for _, n := range lengths {
		least, most = min(least, n), max(most, n)
	}
	return least, uint(bits.Len(uint(most - least)))
}

// readHead reads the head of a chunk of the given number of words.
func readHead(r *bitio.Reader, t *tables, words int) (*head, error) {
	h := new(head)
	left := words
	ok := true
	count := func(c countCode) int {
		n, good := c.get(r, left)
		if ok = ok && good; !ok {
			return 0
		}
		left -= n
		return n
	}
	for c, g := range t.gaps {
		h.events[c] = count(g.count)
	}
	if t.hasDense {
		h.events[dense] = count(t.denseCount)
	}
	if r.Get(1) != 0 {
		n, good := r.Gamma(0)
		ok = ok && good && n < uint64(words)
		h.exceptions = int(n) + 1
	}
	if !ok || !r.OK() {
		return nil, status.Errorf(status.ErrCorrupt, "rice chunk counts more events or exceptions than its %d words", words)
	}
	return h, h.readLanes(r, lanesOf(h.values(t))-1)
}

// readLanes reads the lengths of n value strings.
func (h *head) readLanes(r *bitio.Reader, n int) error {
	if n == 0 {
		return nil
	}
	least, ok := r.Gamma(leastOrder)
	width := uint(r.Get(widthBits))
	for l := range n {
		h.lanes[l] = int(least) + int(r.Get(width))
	}
	if again, bits := spread(h.lanes[:n]); !ok || !r.OK() || again != int(least) || bits != width {
		return status.Errorf(status.ErrCorrupt, "rice lane table has lengths from %d on and differences of %d bits, expected %d and %d", least, width, again, bits)
	}
	return nil
}
