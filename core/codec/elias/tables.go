package elias

import (
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

const (
	maxContexts  = 32
	maxGaps      = 3       // gap classes
	dense        = maxGaps // the class in which every word has a value
	codeSign     = 0xfe    // value code: one bit, +1 or -1
	codeVerbatim = 0xff    // value code: the plain residual word
)

// tables are the parameters of a tensor: the gap parameter of each class, and
// the class and value code of each context.
type tables struct {
	shift, mask uint64 // context of a base word w: w>>shift & mask
	gaps        []uint8
	class       [maxContexts]uint8
	code        [maxContexts]uint8 // k below the word width, codeSign or codeVerbatim
}

// newTables fixes the contexts of a type: the low bits of the exponent, or a
// single context if there is none.
func newTables(t dtype.Type) tables {
	shift, width := t.Exponent()
	return tables{shift: uint64(shift), mask: 1<<min(width, 5) - 1}
}

func (t *tables) contexts() int { return int(t.mask) + 1 }

// context returns the context that the low 5 bits of w>>shift stand for.
func (t *tables) context(low int) int { return low & int(t.mask) }

// marshal writes the tables: classes, gap parameters, then runs of contexts
// that are alike.
func (t *tables) marshal() []byte {
	out := append([]byte{byte(len(t.gaps))}, t.gaps...)
	for from := 0; from < t.contexts(); {
		to := from + 1
		for to < t.contexts() && t.class[to] == t.class[from] && t.code[to] == t.code[from] {
			to++
		}
		out = append(out, byte(to-from-1)|t.class[from]<<5, t.code[from])
		from = to
	}
	return out
}

func parseTables(dt dtype.Type, data []byte) (tables, error) {
	t := newTables(dt)
	if len(data) == 0 || data[0] > maxGaps || len(data) < 1+int(data[0]) {
		return t, status.Errorf(status.ErrCorrupt, "elias tables of %d bytes, expected a count of at most %d gap classes and their parameters", len(data), maxGaps)
	}
	t.gaps, data = data[1:1+data[0]], data[1+data[0]:]
	for c, k := range t.gaps {
		if k >= maxGapBits {
			return t, status.Errorf(status.ErrCorrupt, "elias gap class %d has parameter %d, expected less than %d", c, k, maxGapBits)
		}
	}
	next := 0
	for ; len(data) >= 2; data = data[2:] {
		run, class, code := int(data[0]&31)+1, data[0]>>5, data[1]
		switch {
		case class > dense || class < dense && int(class) >= len(t.gaps):
			return t, status.Errorf(status.ErrCorrupt, "elias context %d has class %d of %d", next, class, len(t.gaps))
		case code == codeSign && class == dense,
			code != codeSign && code != codeVerbatim && int(code) >= 8*dt.WordBytes():
			return t, status.Errorf(status.ErrCorrupt, "elias context %d has value code %d, which class %d of %v does not allow", next, code, class, dt)
		case run > t.contexts()-next:
			return t, status.Errorf(status.ErrCorrupt, "elias tables name more than %d contexts", t.contexts())
		}
		for range run {
			t.class[next], t.code[next] = class, code
			next++
		}
	}
	if next != t.contexts() || len(data) != 0 {
		return t, status.Errorf(status.ErrCorrupt, "elias tables name %d contexts and have %d bytes left, expected %d and 0", next, len(data), t.contexts())
	}
	return t, nil
}
