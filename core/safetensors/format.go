package safetensors

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Pair is one entry of __metadata__.
type Pair struct{ Key, Value string }

// rank is the library's order of dtypes (0.8), lowest alignment first. Files
// hold the highest first.
var rank = func() map[dtype.Type]int {
	order := []dtype.Type{
		dtype.Bool, dtype.F4, dtype.F6E2M3, dtype.F6E3M2, dtype.U8, dtype.I8,
		dtype.F8E5M2, dtype.F8E4M3, dtype.F8E8M0, dtype.F8E4M3FNUZ, dtype.F8E5M2FNUZ,
		dtype.I16, dtype.U16, dtype.F16, dtype.BF16, dtype.I32, dtype.U32, dtype.F32,
		dtype.C64, dtype.F64, dtype.I64, dtype.U64,
	}
	m := make(map[dtype.Type]int, len(order))
	for i, t := range order {
		m[t] = i
	}
	return m
}()

// Sort puts tensors in the order in which the library writes them: by dtype,
// the largest alignment first, then by name.
func Sort(tensors []Tensor) {
	slices.SortFunc(tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(rank[b.Type], rank[a.Type]), cmp.Compare(a.Name, b.Name))
	})
}

// Format lays the tensors out one after the other, in the order given, sets
// their offsets and returns the text of the header, padded to a multiple of 8
// bytes as the library pads it. Names must be unique and valid UTF-8.
func Format(tensors []Tensor, metadata []Pair) ([]byte, error) {
	var end uint64
	for i := range tensors {
		t := &tensors[i]
		n, err := t.Type.Bytes(t.Shape)
		if err != nil {
			return nil, status.InTensor(err, t.Name)
		}
		if end+n < end {
			return nil, status.Errorf(status.ErrLimit, "the tensors have more than 2^64 bytes")
		}
		t.Begin, t.End = end, end+n
		end += n
	}
	text := appendText(nil, tensors, metadata)
	if len(text) > MaxTextBytes {
		return nil, status.Errorf(status.ErrLimit, "a safetensors header of %d bytes: at most %d are allowed", len(text), MaxTextBytes)
	}
	return text, nil
}

// Prefix returns the length field that stands in front of text.
func Prefix(text []byte) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
}

func appendText(text []byte, tensors []Tensor, metadata []Pair) []byte {
	text = append(text, '{')
	comma := false
	key := func(k string) {
		if comma {
			text = append(text, ',')
		}
		comma = true
		text = append(appendString(text, k), ':')
	}
	if metadata != nil {
		key(MetadataKey)
		text = append(text, '{')
		comma = false
		for _, p := range metadata {
			key(p.Key)
			text = appendString(text, p.Value)
		}
		text = append(text, '}')
		comma = true
	}
	for i := range tensors {
		t := &tensors[i]
		key(t.Name)
		text = append(text, `{"dtype":"`...)
		text = append(text, t.Type.String()...)
		text = append(text, `","shape":[`...)
		for j, d := range t.Shape {
			if j > 0 {
				text = append(text, ',')
			}
			text = strconv.AppendUint(text, d, 10)
		}
		text = append(text, `],"data_offsets":[`...)
		text = strconv.AppendUint(text, t.Begin, 10)
		text = append(text, ',')
		text = strconv.AppendUint(text, t.End, 10)
		text = append(text, "]}"...)
	}
	text = append(text, '}')
	for len(text)%8 != 0 {
		text = append(text, ' ')
	}
	return text
}

// appendString quotes s as serde_json does: only what must be escaped is.
func appendString(text []byte, s string) []byte {
	text = append(text, '"')
	for i := range len(s) {
		switch c := s[i]; c {
		case '"', '\\':
			text = append(text, '\\', c)
		case '\b':
			text = append(text, `\b`...)
		case '\f':
			text = append(text, `\f`...)
		case '\n':
			text = append(text, `\n`...)
		case '\r':
			text = append(text, `\r`...)
		case '\t':
			text = append(text, `\t`...)
		default:
			if c < 0x20 {
				text = fmt.Appendf(text, `\u%04x`, c)
			} else {
				text = append(text, c)
			}
		}
	}
	return append(text, '"')
}
