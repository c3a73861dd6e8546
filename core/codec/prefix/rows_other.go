//go:build !amd64 || purego

package prefix

type rowArgs struct{}

func newRowArgs(*tables, []uint32) *rowArgs { return nil }

func (d *decoder[T, P]) rows([]P, []P, []byte, *[lanes]uint) int { return 0 }

func rowSlack(int) int { return 0 }
