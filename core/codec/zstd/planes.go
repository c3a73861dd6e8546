package zstd

import "github.com/tpde-project/tpde/core/word"

// splitWords cuts n words of T into planes: byte k of word i becomes
// planes[k][i]. There may be fewer planes than bytes in a word, if the bytes
// left out are zero.
func splitWords[T word.Word](planes [][]byte, words []T) {
	for k, p := range planes {
		shift := 8 * k
		p = p[:len(words)]
		for i, v := range words {
			p[i] = byte(v >> shift)
		}
	}
}

// joinWords undoes splitWords. The common cases have loops of their own, which
// touch every word once.
func joinWords[T word.Word](words []T, planes [][]byte) {
	n := len(words)
	switch len(planes) {
	case 1:
		p := planes[0][:n]
		for i := range words {
			words[i] = T(p[i])
		}
	case 2:
		p, q := planes[0][:n], planes[1][:n]
		for i := range words {
			words[i] = T(uint16(p[i]) | uint16(q[i])<<8)
		}
	case 4:
		p, q, r, s := planes[0][:n], planes[1][:n], planes[2][:n], planes[3][:n]
		for i := range words {
			words[i] = T(uint32(p[i]) | uint32(q[i])<<8 | uint32(r[i])<<16 | uint32(s[i])<<24)
		}
	default:
		joinWords(words, planes[:4])
		for k := 4; k < len(planes); k++ {
			p, shift := planes[k][:n], 8*k
			for i := range words {
				words[i] |= T(p[i]) << shift
			}
		}
	}
}

// splitValues cuts the zigzagged words of src into planes. scratch is reused.
func splitValues[T word.Word](planes [][]byte, src []T, scratch *[]byte) {
	z := word.View[T](grow(scratch, len(src)*word.Size[T]()))
	for i, v := range src {
		z[i] = word.Zigzag(v)
	}
	splitWords(planes, z)
}

// splitChanged is splitValues of the words that numbers says.
func splitChanged[T word.Word](planes [][]byte, src []T, numbers []uint32, scratch *[]byte) {
	z := word.View[T](grow(scratch, len(numbers)*word.Size[T]()))
	for i, n := range numbers {
		z[i] = word.Zigzag(src[n])
	}
	splitWords(planes, z)
}

// grow returns n bytes of *buf, aligned to 8, with any contents.
func grow(buf *[]byte, n int) []byte {
	if cap(*buf) < n {
		*buf = word.Bytes(make([]uint64, (n+7)/8))
	}
	*buf = (*buf)[:n]
	return *buf
}

// planesOf cuts count planes of n bytes out of *buf. Each has room behind it,
// which lets a decoder write a few bytes too many instead of minding the end.
func planesOf(buf *[]byte, planes [][]byte, count, n int) [][]byte {
	const slack = 32
	stride := pad(n) + slack
	all := grow(buf, count*stride)
	planes = planes[:0]
	for k := range count {
		planes = append(planes, all[k*stride:k*stride+n:(k+1)*stride])
	}
	return planes
}
