package prefix

import (
	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
)

const (
	lanes      = 32
	blockWords = 1 << 16 // words of a block, so that 16 bits hold a word number and a lane's length
	maxKeyBits = 12      // of a base word's key
	maxTotal   = 24      // bits of a code and its plain bits
	maxTable   = 1 << 14 // entries of all decoding tables: 64 KiB on a GPU, and the gaps
)

func init() { codec.Register(factory{}) }

type factory struct{}

func (factory) ID() codec.ID { return codec.Prefix }

func (factory) Plan(t dtype.Type, samples []codec.Block, _ uint64, level codec.Level) codec.Encoder {
	switch t.WordBytes() {
	case 1:
		return newEncoder[uint8, uint8](t, samples, level)
	case 2:
		return newEncoder[uint16, uint16](t, samples, level)
	case 4:
		return newEncoder[uint32, uint16](t, samples, level)
	default:
		return newEncoder[uint64, uint16](t, samples, level)
	}
}

func (factory) NewDecoder(t dtype.Type, data []byte) (codec.Decoder, error) {
	tab, err := parseTables(t, data)
	if err != nil {
		return nil, err
	}
	switch t.WordBytes() {
	case 1:
		return newDecoder[uint8, uint8](tab), nil
	case 2:
		return newDecoder[uint16, uint16](tab), nil
	case 4:
		return newDecoder[uint32, uint16](tab), nil
	default:
		return newDecoder[uint64, uint16](tab), nil
	}
}

// layout says how the words of a type are cut up: what is coded, and where the
// key of a base word lies.
type layout struct {
	wordBits  uint
	coded     uint // bits of the coded part, 8 or 16
	codeShift uint // of the coded part in the word: above the plain bits of floats
	signed    bool // coded parts that are no floats stand for a whole residual word, sign-extended
	keyBits   uint // of the coded part of a base word, without its sign; 0 for integers
	exponent  uint // lowest bit of the exponent in the coded part
}

func layoutOf(t dtype.Type) layout {
	l := layout{wordBits: uint(8 * t.WordBytes()), coded: 16}
	l.coded = min(l.coded, l.wordBits)
	shift, width := t.Exponent()
	switch {
	case width > 0:
		l.codeShift = l.wordBits - l.coded
		l.keyBits = l.coded - 1
		l.exponent = uint(shift) - l.codeShift
	case l.wordBits > 16:
		l.signed = true
	}
	return l
}

// planes returns the number of planes of 16 plain bits.
func (l *layout) planes() int { return int(l.codeShift / 16) }

// group returns how many words a lane owns in each row.
func (l *layout) group() int {
	if l.wordBits == 8 {
		return 16
	}
	return 8
}

// align returns what the bytes of a block are a multiple of: planes are read
// 16 bytes at a time.
func (l *layout) align() int {
	if l.planes() > 0 {
		return 16
	}
	return codec.Align
}

// part is the type of the coded part of a word.
type part interface{ ~uint8 | ~uint16 }
