package zstd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/codec/codectest"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/word"
)

func appendWords(b []byte, words ...int) []byte {
	for _, w := range words {
		b = binary.LittleEndian.AppendUint32(b, uint32(w))
	}
	return b
}

// vector is a chunk as it is or damaged.
type vector struct {
	typ                   dtype.Type
	words, planes, deltas int
	data                  []byte
}

// vectors are chunks of all word sizes, levels and widths of gaps, each also
// damaged in many ways.
func vectors(t *testing.T) []vector {
	r := rand.New(rand.NewPCG(5, 6))
	var all []vector
	for _, typ := range []dtype.Type{dtype.U8, dtype.BF16, dtype.F32, dtype.F64} {
		for _, words := range []int{200, 3000, 70_000} {
			for _, density := range []float64{0.02, 0.5, 1} {
				for _, level := range []codec.Level{codec.LevelFast, codec.LevelDefault, codec.LevelSmall} {
					size := typ.WordBytes()
					res := word.Bytes(make([]uint64, words*size/8+1))[:words*size]
					for i := range words {
						if i == 0 || r.Float64() < density {
							res[i*size] = byte(1 + r.ExpFloat64()*3)
							res[i*size+size-1] |= byte(r.IntN(50) / 49 << 7)
						}
					}
					b := codec.Block{Type: typ, Base: make([]byte, len(res)), Residual: res}
					data, deltas, err := newEncoder(typ, []codec.Block{b}, level).Encode(nil, b)
					if err != nil {
						t.Fatal(err)
					}
					v := vector{typ, words, Planes(words, int(deltas), size), int(deltas), data}
					all = append(all, v)
					for range 60 {
						v.data = bytes.Clone(data)
						switch r.IntN(4) {
						case 0: // the directory
							v.data[r.IntN(4*v.planes)] ^= 1 << r.IntN(8)
						case 1:
							v.data[r.IntN(len(data))] ^= 1 << r.IntN(8)
						case 2:
							v.data = v.data[:r.IntN(len(data))&^3]
						case 3:
							v.data = append(v.data, make([]byte, 4+4*r.IntN(3))...)
						}
						all = append(all, v)
					}
				}
			}
		}
	}
	return all
}

// TestKernelDirectory compares what a GPU takes for a good chunk with what the
// CPU does: they must differ only in frames whose blocks do not decode.
func TestKernelDirectory(t *testing.T) {
	all := vectors(t)
	var requests []byte
	for _, v := range all {
		requests = append(appendWords(requests, 0, v.planes, v.deltas, len(v.data)), v.data...)
	}
	answers := codectest.RunKernel(t, requests)
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const bad, stored, frame, filled = 0, 1, 2, 3
	accepted, refused, undecodable := 0, 0, 0
	for i, v := range all {
		var w work
		want, wantErr := w.readChunk(v.data, v.planes, v.deltas)
		var got [][]byte
		good, decodes := true, true
		for range v.planes {
			kind, value, at := binary.LittleEndian.Uint32(answers), binary.LittleEndian.Uint32(answers[4:]), binary.LittleEndian.Uint32(answers[8:])
			answers = answers[12:]
			var plane []byte
			switch kind {
			case bad:
				good = false
			case stored:
				plane = v.data[at : at+value]
			case frame:
				plane, err = d.DecodeAll(v.data[at:at+value], nil)
				decodes = decodes && err == nil && len(plane) == v.deltas
			case filled:
				plane = bytes.Repeat([]byte{byte(value)}, v.deltas)
			}
			got = append(got, plane)
		}
		switch {
		case wantErr == nil && !good:
			t.Fatalf("vector %d, %v: refused, but the CPU decodes it", i, v.typ)
		case wantErr != nil && good && decodes:
			t.Fatalf("vector %d, %v: taken, but the CPU refuses it: %v", i, v.typ, wantErr)
		case wantErr != nil && good:
			undecodable++
		case wantErr != nil:
			refused++
		default:
			accepted++
			for k := range want {
				if !bytes.Equal(want[k], got[k]) {
					t.Fatalf("vector %d, %v: plane %d differs", i, v.typ, k)
				}
			}
		}
	}
	if len(answers) != 0 || min(accepted, refused, undecodable) < 50 {
		t.Errorf("%d taken, %d refused, %d only by their blocks, %d bytes left over", accepted, refused, undecodable, len(answers))
	}
}

// TestKernelJoin compares the words that planes stand for, gaps that lead
// beyond the chunk and values of 0 included.
func TestKernelJoin(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	type request struct {
		size, words, gaps, deltas int
		planes                    [][]byte
	}
	var all []request
	var requests []byte
	for range 4000 {
		q := request{size: 1 << r.IntN(4), gaps: []int{0, 1, 2, 4}[r.IntN(4)], words: 1 + r.IntN(300)}
		q.deltas = q.words
		if q.gaps > 0 {
			q.deltas = 1 + r.IntN(40)
		}
		far := r.IntN(8) == 0
		for k := range q.gaps + q.size {
			p := make([]byte, q.deltas, pad(q.deltas))
			for i := range p {
				switch {
				case k >= q.gaps:
					p[i] = byte(r.Uint32())
				case far:
					p[i] = byte(r.Uint32() >> r.IntN(32))
				case k == 0:
					p[i] = byte(r.IntN(max(1, q.words/q.deltas)))
				}
			}
			q.planes = append(q.planes, p)
		}
		all = append(all, q)
		requests = appendWords(requests, 1, q.size, q.words, q.gaps, q.deltas)
		for _, p := range q.planes {
			requests = append(requests, p[:cap(p)]...)
		}
	}
	answers := codectest.RunKernel(t, requests)
	good := 0
	for i, q := range all {
		var w work
		res := word.Bytes(make([]uint64, q.words*q.size/8+1))[:q.words*q.size]
		var err error
		switch q.size {
		case 1:
			err = decodeWords(word.View[uint8](res), q.planes, q.gaps, q.deltas, &w)
		case 2:
			err = decodeWords(word.View[uint16](res), q.planes, q.gaps, q.deltas, &w)
		case 4:
			err = decodeWords(word.View[uint32](res), q.planes, q.gaps, q.deltas, &w)
		case 8:
			err = decodeWords(word.View[uint64](res), q.planes, q.gaps, q.deltas, &w)
		}
		ok := binary.LittleEndian.Uint32(answers) == 1
		answers = answers[4:]
		if ok != (err == nil) {
			t.Fatalf("request %d: %v, the CPU says %v", i, ok, err)
		}
		if !ok {
			continue
		}
		good++
		if !bytes.Equal(answers[:len(res)], res) {
			t.Fatalf("request %d: %x, expected %x", i, answers[:len(res)], res)
		}
		answers = answers[len(res):]
	}
	if good < 500 || len(all)-good < 500 {
		t.Errorf("%d of %d good", good, len(all))
	}
}
