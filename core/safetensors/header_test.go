package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

const empty = `{"dtype":"U8","shape":[0],"data_offsets":[0,0]}`

// one returns a header with one tensor "a" that has the given fields.
func one(dtype, shape, offsets string) string {
	return fmt.Sprintf(`{"a":{"dtype":%s,"shape":%s,"data_offsets":%s}}`, dtype, shape, offsets)
}

func TestParseRefuses(t *testing.T) {
	deep := strings.Repeat("[", 200) + strings.Repeat("]", 200)
	for _, c := range []struct {
		name, text string
		want       error
		says       string
	}{
		{"nothing", ``, status.ErrCorrupt, "begin with '{'"},
		{"blank first", ` {}`, status.ErrCorrupt, "begin with '{'"},
		{"array", `[]`, status.ErrCorrupt, "begin with '{'"},
		{"byte order mark", "\ufeff{}", status.ErrCorrupt, "begin with '{'"},
		{"not closed", `{`, status.ErrCorrupt, "the text ends"},
		{"text behind", `{}x`, status.ErrCorrupt, "after the closing"},
		{"zero behind", "{}\x00", status.ErrCorrupt, "after the closing"},
		{"not UTF-8", "{\"\xff\":" + empty + "}", status.ErrCorrupt, "UTF-8"},
		{"key twice", `{"a":` + empty + `,"a":` + empty + `}`, status.ErrCorrupt, "twice"},
		{"key twice, escaped", `{"a":` + empty + `,"\u0061":` + empty + `}`, status.ErrCorrupt, "twice"},
		{"metadata twice", `{"__metadata__":{},"__metadata__":{}}`, status.ErrCorrupt, "twice"},
		{"metadata key twice", `{"__metadata__":{"a":"b","a":"c"}}`, status.ErrCorrupt, "twice"},
		{"metadata not a string", `{"__metadata__":{"a":1}}`, status.ErrCorrupt, "a string"},
		{"metadata null", `{"__metadata__":null}`, status.ErrCorrupt, "expected '{'"},
		{"field twice", `{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, status.ErrCorrupt, "twice"},
		{"field missing", `{"a":{"dtype":"U8","shape":[0]}}`, status.ErrCorrupt, `"data_offsets" is missing`},
		{"field in capitals", `{"a":{"Dtype":"U8","shape":[0],"data_offsets":[0,0]}}`, status.ErrCorrupt, `"dtype" is missing`},
		{"array form", `{"a":["U8",[0],[0,0]]}`, status.ErrCorrupt, "expected '{'"},
		{"unknown dtype", one(`"U9"`, `[0]`, `[0,0]`), status.ErrUnsupported, "U9"},
		{"dtype in small letters", one(`"u8"`, `[0]`, `[0,0]`), status.ErrUnsupported, "u8"},
		{"fraction", one(`"U8"`, `[0]`, `[0.0,0]`), status.ErrCorrupt, "unsigned integer"},
		{"exponent", one(`"U8"`, `[0]`, `[0,0e0]`), status.ErrCorrupt, "unsigned integer"},
		{"negative", one(`"U8"`, `[-1]`, `[0,0]`), status.ErrCorrupt, "unsigned integer"},
		{"leading zero", one(`"U8"`, `[00]`, `[0,0]`), status.ErrCorrupt, "unsigned integer"},
		{"65 bits", one(`"U8"`, `[0]`, `[18446744073709551616,0]`), status.ErrCorrupt, "64 bits"},
		{"three offsets", one(`"U8"`, `[0]`, `[0,0,0]`), status.ErrCorrupt, "at most 2"},
		{"one offset", one(`"U8"`, `[0]`, `[0]`), status.ErrCorrupt, "expected 2"},
		{"too many dimensions", one(`"U8"`, `[`+strings.Repeat("0,", MaxDims)+`0]`, `[0,0]`), status.ErrCorrupt, "at most 64"},
		{"size too small", one(`"U16"`, `[2]`, `[0,3]`), status.ErrCorrupt, "needs 4 bytes"},
		{"shape overflows", one(`"U8"`, `[4294967296,4294967296]`, `[0,0]`), status.ErrCorrupt, "overflows"},
		{"shape overflows before a 0", one(`"U8"`, `[4294967296,4294967296,0]`, `[0,0]`), status.ErrCorrupt, "overflows"},
		{"bits overflow", one(`"F64"`, `[9223372036854775808]`, `[0,0]`), status.ErrCorrupt, "2^64"},
		{"half a byte", one(`"F4"`, `[1]`, `[0,1]`), status.ErrCorrupt, "whole bytes"},
		{"end before begin", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,0]}}`, status.ErrCorrupt, "before they begin"},
		{"hole", `{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, status.ErrCorrupt, "hole"},
		{"overlap", `{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}`, status.ErrCorrupt, "overlap"},
		{"empty tensor out of place", one(`"U8"`, `[0]`, `[1,1]`), status.ErrCorrupt, "hole"},
		{"control character", "{\"\x01\":" + empty + "}", status.ErrCorrupt, "control character"},
		{"half a surrogate", `{"\ud800":` + empty + `}`, status.ErrCorrupt, "surrogate"},
		{"broken surrogates", `{"\ud800\u0041":` + empty + `}`, status.ErrCorrupt, "surrogate"},
		{"unknown escape", `{"\x":` + empty + `}`, status.ErrCorrupt, "an escape"},
		{"short escape", `{"\u00`, status.ErrCorrupt, "4 hexadecimal"},
		{"comma at the end", `{"a":` + empty + `,}`, status.ErrCorrupt, "a string"},
		{"too deep", `{"a":{"x":` + deep + `}}`, status.ErrCorrupt, "deep"},
		{"bad value", `{"a":{"x":nul}}`, status.ErrCorrupt, "a value"},
		{"bad number", `{"a":{"x":-}}`, status.ErrCorrupt, "number"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.want, c.says)
			}
		})
	}
}

func file(text string, data ...byte) []byte {
	return append(append(Prefix([]byte(text)), text...), data...)
}

func TestParseFileRefuses(t *testing.T) {
	long := binary.LittleEndian.AppendUint64(nil, MaxTextBytes+1)
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"no length", []byte("1234567"), status.ErrCorrupt},
		{"an index of shards", []byte(`{"weight_map": {"a": "model-00001-of-00002.safetensors"}}`), status.ErrCorrupt},
		{"too long a header", append(long, make([]byte, 100)...), status.ErrLimit},
		{"header cut short", file("{}")[:9], status.ErrCorrupt},
		{"data missing", file(one(`"U8"`, `[2]`, `[0,2]`), 1), status.ErrCorrupt},
		{"data behind", file(one(`"U8"`, `[2]`, `[0,2]`), 1, 2, 3), status.ErrCorrupt},
	} {
		if _, err := ParseFile(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}

func TestParseKeepsWhatTheLibraryAccepts(t *testing.T) {
	text := "{ \"__metadata__\" : {\"k\\n\":\"\\ud83d\\ude00\\/\"},\n" +
		`"late":{"data_offsets":[2,4],"shape":[],"dtype":"BF16","note":{"x":[1.5e-3,-0,true,null,"y"]}},` +
		`"early":{"dtype":"F4","shape":[2,2],"data_offsets":[0,2]},` +
		`"none":{"dtype":"F64","shape":[0,18446744073709551615],"data_offsets":[2,2]}}` + "\t \r\n"
	h, err := ParseFile(file(text, 1, 2, 3, 4))
	if err != nil {
		t.Fatal(err)
	}
	if string(h.Text) != text {
		t.Error("the text was changed")
	}
	var names []string
	for _, e := range h.Tensors {
		names = append(names, e.Name)
	}
	if want := []string{"early", "none", "late"}; !slices.Equal(names, want) {
		t.Errorf("order %v, want %v", names, want)
	}
	if h.Metadata["k\n"] != "\U0001f600/" || len(h.Metadata) != 1 {
		t.Errorf("metadata %q", h.Metadata)
	}
	if h.FileBytes() != uint64(8+len(text)+4) {
		t.Errorf("file of %d bytes", h.FileBytes())
	}
}

// What safetensors 0.8.0 (Python) writes for one tensor of two elements of
// every dtype that torch has; save(tensors) of safetensors.torch.
const library = `{"c":{"dtype":"U64","shape":[2],"data_offsets":[0,16]},"b":{"dtype":"I64","shape":[2],"data_offsets":[16,32]},` +
	`"a":{"dtype":"F64","shape":[2],"data_offsets":[32,48]},"d":{"dtype":"C64","shape":[2],"data_offsets":[48,64]},` +
	`"e":{"dtype":"F32","shape":[2],"data_offsets":[64,72]},"g":{"dtype":"U32","shape":[2],"data_offsets":[72,80]},` +
	`"f":{"dtype":"I32","shape":[2],"data_offsets":[80,88]},"h":{"dtype":"BF16","shape":[2],"data_offsets":[88,92]},` +
	`"i":{"dtype":"F16","shape":[2],"data_offsets":[92,96]},"k":{"dtype":"U16","shape":[2],"data_offsets":[96,100]},` +
	`"j":{"dtype":"I16","shape":[2],"data_offsets":[100,104]},"s":{"dtype":"F8_E5M2FNUZ","shape":[2],"data_offsets":[104,106]},` +
	`"r":{"dtype":"F8_E4M3FNUZ","shape":[2],"data_offsets":[106,108]},"q":{"dtype":"F8_E8M0","shape":[2],"data_offsets":[108,110]},` +
	`"l":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[110,112]},"m":{"dtype":"F8_E5M2","shape":[2],"data_offsets":[112,114]},` +
	`"n":{"dtype":"I8","shape":[2],"data_offsets":[114,116]},"o":{"dtype":"U8","shape":[2],"data_offsets":[116,118]},` +
	`"t":{"dtype":"F4","shape":[4],"data_offsets":[118,120]},"p":{"dtype":"BOOL","shape":[2],"data_offsets":[120,122]}}    `

func TestFormatWritesWhatTheLibraryWrites(t *testing.T) {
	types := map[string]dtype.Type{
		"a": dtype.F64, "b": dtype.I64, "c": dtype.U64, "d": dtype.C64, "e": dtype.F32, "f": dtype.I32, "g": dtype.U32,
		"h": dtype.BF16, "i": dtype.F16, "j": dtype.I16, "k": dtype.U16, "l": dtype.F8E4M3, "m": dtype.F8E5M2, "n": dtype.I8,
		"o": dtype.U8, "p": dtype.Bool, "q": dtype.F8E8M0, "r": dtype.F8E4M3FNUZ, "s": dtype.F8E5M2FNUZ, "t": dtype.F4,
	}
	var list []Tensor
	for name, typ := range types {
		n := uint64(2)
		if name == "t" {
			n = 4
		}
		list = append(list, Tensor{Name: name, Type: typ, Shape: []uint64{n}})
	}
	Sort(list)
	text, err := Format(list, nil)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != library {
		t.Errorf("got  %s\nwant %s", text, library)
	}

	// Names that need escapes, an empty and a 0-dimensional tensor, metadata.
	list = []Tensor{
		{Name: "b", Type: dtype.U8, Shape: []uint64{1}},
		{Name: "z\"\n\u00e9\x7f\u2028\t\x01\b\f/\\<>&", Type: dtype.F32},
		{Name: "a", Type: dtype.F32, Shape: []uint64{0, 3}},
	}
	Sort(list)
	if text, err = Format(list, []Pair{{"format", "pt"}, {"a", "<"}}); err != nil {
		t.Fatal(err)
	}
	want := `{"__metadata__":{"format":"pt","a":"<"},"a":{"dtype":"F32","shape":[0,3],"data_offsets":[0,0]},"z\"\n` +
		"\u00e9\x7f\u2028" + `\t\u0001\b\f/\\<>&":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}     `
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}

func TestFormatRefuses(t *testing.T) {
	huge := Tensor{Name: "a", Type: dtype.U8, Shape: []uint64{1 << 63}}
	if _, err := Format([]Tensor{huge, huge}, nil); !errors.Is(err, status.ErrLimit) {
		t.Errorf("got %v", err)
	}
	if _, err := Format([]Tensor{{Name: "a", Type: dtype.F4, Shape: []uint64{1}}}, nil); !errors.Is(err, status.ErrArgument) {
		t.Errorf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(library))
	f.Add([]byte(`{}`))
	f.Add([]byte(one(`"F32"`, `[1,2]`, `[0,8]`)))
	f.Add([]byte(`{"__metadata__":{"a":"\ud83d\ude00"},"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1],"y":[{},-1.5e+3,null]}}  `))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := Parse(bytes.Clone(text))
		if err != nil {
			if status.Of(err) == status.Internal {
				t.Fatalf("error without a status: %v", err)
			}
			return
		}
		// What was accepted is laid out without holes and can be written again.
		again, err := Format(slices.Clone(h.Tensors), nil)
		if err != nil {
			t.Fatalf("cannot write what was read: %v", err)
		}
		g, err := Parse(again)
		if err != nil {
			t.Fatalf("cannot read what was written: %v\n%s", err, again)
		}
		same := func(a, b Tensor) bool {
			return a.Name == b.Name && a.Type == b.Type && slices.Equal(a.Shape, b.Shape) && a.Begin == b.Begin && a.End == b.End
		}
		if !slices.EqualFunc(h.Tensors, g.Tensors, same) {
			t.Fatalf("read %v, written and read %v", h.Tensors, g.Tensors)
		}
	})
}
