// Package cubincache keeps compiled kernels on disk, so that only the first
// process that needs a kernel compiles it.
//
// The folder is $TPDE_CACHE, else $XDG_CACHE_HOME/tpde, else ~/.cache/tpde. A
// file is named by everything that its contents depend on, so it never goes
// stale and is never changed:
//
//	8 bytes   magic "TPDECUB1"
//	32 bytes  SHA-256 of the rest
//	...       what the driver loads
//
// The cache only ever saves time: a folder that cannot be written, a file that
// is cut short or damaged, another process that writes the same file, all just
// mean that the kernel is compiled.
package cubincache

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"

	"github.com/tpde-project/tpde/core/atomicfile"
)

const (
	magic    = "TPDECUB1"
	maxBytes = 64 << 20 // of a file that is worth reading
)

// Key names what was compiled.
type Key [sha256.Size]byte

// KeyOf hashes the source, headers, options, compiler version and architecture
// of a kernel, in any fixed order.
func KeyOf(parts ...string) Key {
	h := sha256.New()
	for _, p := range parts {
		// With its length, so that moving text from one part to another gives
		// another key.
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	return Key(h.Sum(nil))
}

// Folder returns the folder of the cache, "" if the environment names none.
func Folder() string {
	if dir := os.Getenv("TPDE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir() // $XDG_CACHE_HOME or ~/.cache
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "tpde")
}

// Get returns what is stored under key, or else what compile returns, which is
// then stored. Only compile can make it fail.
func Get(key Key, compile func() ([]byte, error)) ([]byte, error) {
	folder := Folder()
	if folder == "" {
		return compile()
	}
	path := filepath.Join(folder, hex.EncodeToString(key[:])+".cubin")
	if image, ok := read(path); ok {
		return image, nil
	}
	image, err := compile()
	if err == nil {
		write(path, image)
	}
	return image, err
}

func read(path string) ([]byte, bool) {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() || info.Size() > maxBytes {
		return nil, false
	}
	data, err := os.ReadFile(path)
	if err != nil || len(data) < len(magic)+sha256.Size || string(data[:len(magic)]) != magic {
		return nil, false
	}
	image := data[len(magic)+sha256.Size:]
	sum := sha256.Sum256(image)
	return image, bytes.Equal(sum[:], data[len(magic):len(magic)+sha256.Size])
}

// write stores an image if it can. The file appears whole or not at all; if a
// crash of the machine tears it all the same, its checksum shows it.
func write(path string, image []byte) {
	if os.MkdirAll(filepath.Dir(path), 0o700) != nil {
		return
	}
	f, err := atomicfile.Create(path)
	if err != nil {
		return
	}
	defer f.Close()
	sum := sha256.Sum256(image)
	for _, part := range [][]byte{[]byte(magic), sum[:], image} {
		if _, err := f.Write(part); err != nil {
			return
		}
	}
	f.Publish(true)
}
