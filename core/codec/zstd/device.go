package zstd

// Planes returns how many planes a chunk of that many words has, each of
// `deltas` bytes: what a GPU needs to know before it sees the chunk.
func Planes(words, deltas, wordBytes int) int {
	switch deltas {
	case 0:
		return 0
	case words:
		return wordBytes
	}
	return gapBytes(words) + wordBytes
}
