//go:build !purego

package rice

import (
	"unsafe"

	"github.com/tpde-project/tpde/core/word"
	"golang.org/x/sys/cpu"
)

// hasGroups says that this machine runs the assembly.
var hasGroups = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VBMI &&
	cpu.X86.HasBMI1 && cpu.X86.HasBMI2 && cpu.X86.HasPOPCNT

// groupKeys is how many keys the assembly can tell apart.
const groupKeys = 256

// groupWords is how many words it does at once.
const groupWords = 64

// groupArgs is what the assembly works on; groups_amd64.s knows its layout.
type groupArgs struct {
	base, res unsafe.Pointer
	groups    int               // of groupWords words, to be done; those left if locate stops
	first     int               // position of the first word
	table     *[groupKeys]uint8 // class of each key
	mask      uint64            // of the keys in 64 bits of the base, before they are shifted
	shift     uint64
	classes   int              // gap classes
	counts    [classes]int     // locate: words up to the next event; scan: words before the group
	slots     [classes]*uint32 // locate: of the next event of each class
	denseEnd  *uint32          // locate: end of the slots of the dense class
	out       *found           // scan: where those found go
	bytes     int              // scan: that they take
}

// locate16 and locate32 do what locate does for words of 16 and 32 bits. They
// stop if there are more dense words than slots.
//
//go:noescape
func locate16(a *groupArgs)

//go:noescape
func locate32(a *groupArgs)

// scan16 and scan32 do what scan does for words of 16 and 32 bits.
//
//go:noescape
func scan16(a *groupArgs)

//go:noescape
func scan32(a *groupArgs)

// fast reports whether the assembly can do words of these tables.
func (k *classifier) fast(wordBytes int) bool {
	return hasGroups && (wordBytes == 2 || wordBytes == 4) && k.keys <= groupKeys
}

func (k *classifier) args(base unsafe.Pointer, words int) *groupArgs {
	return &groupArgs{
		base: base, groups: words / groupWords, table: &k.class,
		mask: k.lanes << k.shift, shift: uint64(k.shift), classes: k.gaps,
	}
}

// locateGroups does as many words as it can from the first on, and returns how
// many; ok is as locate has it.
func locateGroups[T word.Word](k *classifier, base []T, at *slots, ranks []uint32, p *progress) (done int, ok bool) {
	if !k.fast(word.Size[T]()) || len(base) < groupWords {
		return 0, true
	}
	a := k.args(unsafe.Pointer(unsafe.SliceData(base)), len(base))
	for c := range a.slots {
		a.slots[c] = &ranks[p.next[c]]
		a.counts[c] = int(ranks[p.next[c]]) - int(p.passed[c])
	}
	a.denseEnd = &ranks[at.end[dense]]
	groups := a.groups
	if word.Size[T]() == 2 {
		locate16(a)
	} else {
		locate32(a)
	}
	start := uintptr(unsafe.Pointer(unsafe.SliceData(ranks)))
	for c := range a.slots {
		p.next[c] = int(uintptr(unsafe.Pointer(a.slots[c]))-start) / 4
		p.passed[c] = ranks[p.next[c]] - uint32(a.counts[c])
	}
	return groups * groupWords, a.groups == 0
}

// scanGroups does as many words as it can from the first on, and returns how
// many, and how many it found.
func scanGroups[T word.Word](k *classifier, base, res []T, first uint32, passed *[classes]uint32, out []found) (done, n int) {
	if !k.fast(word.Size[T]()) || len(res) < groupWords {
		return 0, 0
	}
	a := k.args(unsafe.Pointer(unsafe.SliceData(base)), len(res))
	a.res, a.first, a.out = unsafe.Pointer(unsafe.SliceData(res)), int(first), unsafe.SliceData(out)
	for c := range passed {
		a.counts[c] = int(passed[c])
	}
	done = a.groups * groupWords
	if word.Size[T]() == 2 {
		scan16(a)
	} else {
		scan32(a)
	}
	for c := range passed {
		passed[c] = uint32(a.counts[c])
	}
	return done, a.bytes / int(unsafe.Sizeof(found{}))
}
