package residual

import "github.com/tpde-project/tpde/core/dtype"

// Compute fills res with the residual words that take base to target. For Add
// it returns the numbers of the words that no v reproduces, appended to
// exceptions in increasing order; their residual word is 0. For Bit there are
// never any. Add needs a type with t.HasAdd().
//
// The three slices have the same length and are aligned to the word size. res
// may be base or target.
func Compute(kind Kind, t dtype.Type, res, base, target []byte, exceptions []uint32) []uint32 {
	if kind == Add {
		return computeAdd(t, res, base, target, exceptions)
	}
	done := subVectors(res, target, base, t.WordBytes())
	subWords(res[done:], target[done:], base[done:], topBits(t.WordBytes()))
	return exceptions
}

// Apply sets dst to base plus res. Words whose residual is 0 keep the bits of
// base, whatever they are. dst may be base or res.
//
// The three slices have the same length and are aligned to the word size.
func Apply(kind Kind, t dtype.Type, dst, base, res []byte) {
	if kind == Add {
		applyAdd(t, dst, base, res)
		return
	}
	addWords(dst, base, res, topBits(t.WordBytes()))
}
