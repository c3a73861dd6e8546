//go:build !amd64 || purego

package rice

import "github.com/tpde-project/tpde/core/word"

func locateGroups[T word.Word](*classifier, []T, *slots, []uint32, *progress) (done int, ok bool) {
	return 0, true
}

func scanGroups[T word.Word](*classifier, []T, []T, uint32, *[classes]uint32, []found) (done, n int) {
	return 0, 0
}
