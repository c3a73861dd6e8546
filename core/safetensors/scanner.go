package safetensors

import (
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// maxDepth bounds the nesting of values that are skipped.
const maxDepth = 100

// scanner reads the JSON of a header. encoding/json is too forgiving for
// untrusted headers: it takes the last of two equal keys, ignores the case of
// field names and repairs broken surrogates.
type scanner struct {
	text []byte // valid UTF-8
	pos  int
}

func (s *scanner) errorf(format string, args ...any) error {
	return status.Errorf(status.ErrCorrupt, "safetensors header, byte %d: %s", s.pos, fmt.Sprintf(format, args...))
}

// peek returns the next byte, 0 at the end (a byte that JSON never has).
func (s *scanner) peek() byte {
	if s.pos < len(s.text) {
		return s.text[s.pos]
	}
	return 0
}

func (s *scanner) blank() {
	for {
		switch s.peek() {
		case ' ', '\t', '\n', '\r':
			s.pos++
		default:
			return
		}
	}
}

func (s *scanner) expect(c byte) error {
	if s.blank(); s.peek() != c {
		return s.unexpected(fmt.Sprintf("%q", c))
	}
	s.pos++
	return nil
}

func (s *scanner) unexpected(want string) error {
	if s.pos >= len(s.text) {
		return s.errorf("expected %s, the text ends", want)
	}
	return s.errorf("expected %s, found %q", want, s.peek())
}

// object reads an object and calls value at each value, with its key.
func (s *scanner) object(value func(key string) error) error {
	return s.list('{', '}', func() error {
		s.blank()
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		return value(key)
	})
}

// list reads items between open and end, with commas between them.
func (s *scanner) list(open, end byte, item func() error) error {
	if err := s.expect(open); err != nil {
		return err
	}
	if s.blank(); s.peek() == end {
		s.pos++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch s.blank(); s.peek() {
		case ',':
			s.pos++
		case end:
			s.pos++
			return nil
		default:
			return s.unexpected(fmt.Sprintf("',' or %q", end))
		}
	}
}

func (s *scanner) metadata() (map[string]string, error) {
	m := map[string]string{}
	err := s.object(func(key string) error {
		if _, dup := m[key]; dup {
			return s.errorf("%s has the key %q twice", MetadataKey, key)
		}
		s.blank()
		v, err := s.str()
		if err != nil {
			return err
		}
		m[key] = v
		return nil
	})
	return m, err
}

func (s *scanner) tensor(name string) (Tensor, error) {
	t := Tensor{Name: name}
	var offsets []uint64
	seen := map[string]bool{}
	err := s.object(func(key string) error {
		if seen[key] {
			return s.errorf("field %q stands there twice", key)
		}
		seen[key] = true
		s.blank()
		var err error
		switch key {
		case "dtype":
			var v string
			if v, err = s.str(); err == nil {
				t.Type, err = dtype.Parse(v)
			}
		case "shape":
			t.Shape, err = s.numbers(MaxDims)
		case "data_offsets":
			if offsets, err = s.numbers(2); err == nil && len(offsets) != 2 {
				err = s.errorf("data_offsets has %d numbers, expected 2", len(offsets))
			}
		default: // ignored, as the library does
			err = s.skip(0)
		}
		return err
	})
	if err != nil {
		return t, err
	}
	for _, field := range []string{"dtype", "shape", "data_offsets"} {
		if !seen[field] {
			return t, s.errorf("field %q is missing", field)
		}
	}
	t.Begin, t.End = offsets[0], offsets[1]
	return t, nil
}

func (s *scanner) numbers(most int) ([]uint64, error) {
	list := []uint64{}
	err := s.list('[', ']', func() error {
		if len(list) == most {
			return s.errorf("expected at most %d numbers", most)
		}
		s.blank()
		v, err := s.number()
		list = append(list, v)
		return err
	})
	return list, err
}

// number reads an unsigned integer: no sign, fraction, exponent or leading 0.
func (s *scanner) number() (uint64, error) {
	start := s.pos
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.pos++
	}
	digits := string(s.text[start:s.pos])
	if digits == "" {
		return 0, s.unexpected("an unsigned integer")
	}
	if c := s.peek(); c == '.' || c == 'e' || c == 'E' || (digits[0] == '0' && len(digits) > 1) {
		return 0, s.errorf("%q is not an unsigned integer", string(s.text[start:min(s.pos+1, len(s.text))]))
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, s.errorf("%s does not fit in 64 bits", digits)
	}
	return v, nil
}

// str reads a string and undoes its escapes.
func (s *scanner) str() (string, error) {
	if s.peek() != '"' {
		return "", s.unexpected("a string")
	}
	s.pos++
	start := s.pos
	var out []byte // only once there is an escape
	for {
		c := s.peek()
		switch {
		case s.pos >= len(s.text):
			return "", s.unexpected("the end of a string")
		case c < 0x20:
			return "", s.errorf("control character %#02x in a string", c)
		case c == '"':
			out = append(out, s.text[start:s.pos]...)
			s.pos++
			return string(out), nil
		case c == '\\':
			out = append(out, s.text[start:s.pos]...)
			s.pos++
			var err error
			if out, err = s.escape(out); err != nil {
				return "", err
			}
			start = s.pos
		default:
			s.pos++
		}
	}
}

func (s *scanner) escape(out []byte) ([]byte, error) {
	c := s.peek()
	s.pos++
	switch c {
	case '"', '\\', '/':
		return append(out, c), nil
	case 'b':
		return append(out, '\b'), nil
	case 'f':
		return append(out, '\f'), nil
	case 'n':
		return append(out, '\n'), nil
	case 'r':
		return append(out, '\r'), nil
	case 't':
		return append(out, '\t'), nil
	case 'u':
		r, err := s.hex4()
		if err != nil {
			return nil, err
		}
		if utf16.IsSurrogate(r) {
			if s.peek() != '\\' || s.pos+1 >= len(s.text) || s.text[s.pos+1] != 'u' {
				return nil, s.errorf("half a surrogate pair in a string")
			}
			s.pos += 2
			low, err := s.hex4()
			if err != nil {
				return nil, err
			}
			if r = utf16.DecodeRune(r, low); r == utf8.RuneError {
				return nil, s.errorf("a broken surrogate pair in a string")
			}
		}
		return utf8.AppendRune(out, r), nil
	}
	s.pos--
	return nil, s.unexpected("an escape")
}

func (s *scanner) hex4() (rune, error) {
	if len(s.text)-s.pos < 4 {
		return 0, s.errorf("\\u needs 4 hexadecimal digits")
	}
	var r rune
	for _, c := range s.text[s.pos : s.pos+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, s.errorf("\\u needs 4 hexadecimal digits")
		}
	}
	s.pos += 4
	return r, nil
}

// skip reads any value and forgets it.
func (s *scanner) skip(depth int) error {
	if depth > maxDepth {
		return s.errorf("values are nested more than %d deep", maxDepth)
	}
	s.blank()
	switch c := s.peek(); {
	case c == '{':
		return s.object(func(string) error { return s.skip(depth + 1) })
	case c == '[':
		return s.list('[', ']', func() error { return s.skip(depth + 1) })
	case c == '"':
		_, err := s.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		return s.skipNumber()
	}
	for _, word := range []string{"true", "false", "null"} {
		if len(s.text)-s.pos >= len(word) && string(s.text[s.pos:s.pos+len(word)]) == word {
			s.pos += len(word)
			return nil
		}
	}
	return s.unexpected("a value")
}

func (s *scanner) skipNumber() error {
	if s.peek() == '-' {
		s.pos++
	}
	zero := s.peek() == '0'
	n, err := s.digits()
	if err != nil || zero && n > 1 {
		return s.errorf("malformed number")
	}
	if s.peek() == '.' {
		s.pos++
		if _, err := s.digits(); err != nil {
			return err
		}
	}
	if c := s.peek(); c == 'e' || c == 'E' {
		s.pos++
		if c := s.peek(); c == '+' || c == '-' {
			s.pos++
		}
		if _, err := s.digits(); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) digits() (int, error) {
	n := 0
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.pos++
		n++
	}
	if n == 0 {
		return 0, s.unexpected("a digit")
	}
	return n, nil
}
