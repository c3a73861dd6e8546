package main

import "sync"

const slabBytes = 1 << 20

// slabs is a growing result that waits to be copied out. Its memory comes in
// slabs that are used again and again: one slice that doubles would be copied
// several times, and its pages fetched anew for every tensor.
type slabs struct {
	list [][]byte // all but the last are full
	size int
}

var slabPool = sync.Pool{New: func() any {
	b := make([]byte, 0, slabBytes)
	return &b
}}

// Write appends p. It never fails.
func (s *slabs) Write(p []byte) (int, error) {
	n := len(p)
	s.size += n
	for len(p) > 0 {
		if last := len(s.list) - 1; last < 0 || len(s.list[last]) == slabBytes {
			s.list = append(s.list, (*slabPool.Get().(*[]byte))[:0])
		}
		last := &s.list[len(s.list)-1]
		take := min(len(p), slabBytes-len(*last))
		*last = append(*last, p[:take]...)
		p = p[take:]
	}
	return n, nil
}

// copyTo copies everything to dst, which has the size.
func (s *slabs) copyTo(dst []byte) {
	for _, b := range s.list {
		dst = dst[copy(dst, b):]
	}
}

// free gives the slabs back; s is empty then.
func (s *slabs) free() {
	for _, b := range s.list {
		slabPool.Put(&b)
	}
	*s = slabs{}
}
