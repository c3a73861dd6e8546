// Package prefix codes every word of a tensor, for changes that are dense:
// fine-tunes, quantised bases, or no base at all. FORMAT.md beside this file
// specifies the bytes.
//
// The code of a residual word is an interval code (package interval) chosen by
// the exponent of its base word, which the decoder has: an optimizer step of
// fixed size moves a small weight by many ulps and a large one by none. One
// look-up and one shift decode a word.
//
// Words of 32 and 64 bits are coded by their high 16 bits if they are floats,
// with the other bits as they are: they are noise wherever changes are dense.
// Integers are coded by the low 16 bits of their residual.
//
// A block is dealt out to 32 lanes in groups of 8 or 16 words, as a warp reads
// it, and every lane has a bit string of its own whose start is in the block's
// lane table. A CPU decodes several lanes at once, because the position of the
// next code depends on this one's length.
package prefix
