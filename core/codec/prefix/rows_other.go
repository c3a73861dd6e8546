//go:build !amd64 || purego

package prefix

type rowArgs struct{}

func newRowArgs(*tables, []uint32) *rowArgs { return nil }

func (d *decoder[T, P]) rows([]P, []P, []byte, *[lanes]uint) int { return 0 }

func rowSlack(int) int { return 0 }

type findArgs struct{}

// findStep is how many words are done without assembly where it has stopped.
const findStep = 1 << 16

func newFindArgs(*tables, *lookup) *findArgs { return nil }

func (e *encoder[T, P]) findFast(*encodeState[P], int) int { return 0 }
