// Package residual defines how a target differs from its base, word by word,
// and rebuilds the target from the base and that difference.
//
// There are two kinds. The bit residual is integer arithmetic on the raw bit
// patterns and exact for everything; it is the default. The add residual is a
// float that, added to the base, gives the target bit for bit; a word for which
// there is none is an exception, which the container stores verbatim. In both,
// a residual word of zero bits means that the word is unchanged.
//
// Nothing here allocates but the tables of the 8-bit floats, made on first
// use; everything is safe for concurrent use.
package residual

// Kind says what a residual word means. The numbers are part of the index
// format.
type Kind uint8

const (
	// Bit is bits(target) - bits(base) modulo 2^width, on the raw bit patterns
	// as unsigned integers: exact for every value of every type.
	Bit Kind = 0
	// Add is a value v of the tensor's own float type for which base + v has
	// the bits of target. Elements for which no such v exists are exceptions.
	Add Kind = 1
)

// String returns the name that users type.
func (k Kind) String() string {
	switch k {
	case Bit:
		return "bit"
	case Add:
		return "add"
	}
	return "unknown"
}
