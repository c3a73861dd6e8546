package interval

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// TestCounterDoesAsSorting also uses one counter several times, which must
// leave nothing behind.
func TestCounterDoesAsSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var bytes Counter[uint8]
	var words Counter[uint16]
	for _, n := range []int{1, 2, 63, 64, 65, 1000, 100000, 3} {
		b, w := make([]uint8, n), make([]uint16, n)
		for i := range n {
			b[i], w[i] = uint8(rng.Uint32()), uint16(int16(rng.NormFloat64()*300))
		}
		gotBytes, gotWords := bytes.HistogramOf(b), words.HistogramOf(w)
		slices.Sort(b)
		slices.Sort(w)
		if !reflect.DeepEqual(gotBytes, HistogramOf(b)) || !reflect.DeepEqual(gotWords, HistogramOf(w)) {
			t.Fatalf("%d words: counted otherwise than sorted", n)
		}
	}
}
