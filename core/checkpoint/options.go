package checkpoint

import (
	"bytes"
	"encoding/json"
	"sync/atomic"

	"github.com/tpde-project/tpde/core/codec"
	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/residual"
	"github.com/tpde-project/tpde/core/status"
	"github.com/tpde-project/tpde/core/tensor"
)

// DefaultShardBytes is the most data that one file of a delta holds unless the
// user says otherwise; Hugging Face shards at the same size.
const DefaultShardBytes = 5_000_000_000

// maxWorkers bounds what a caller may ask for; more only costs memory.
const maxWorkers = 1024

// Progress tells how far an operation is, in bytes of the target. It may be
// read at any time.
type Progress struct{ Done, Total atomic.Uint64 }

func (p *Progress) add(n uint64) {
	if p != nil {
		p.Done.Add(n)
	}
}

func (p *Progress) begin(total uint64) {
	if p != nil {
		p.Total.Store(total)
	}
}

// PackOptions control Pack. The zero value is what a careful user would want.
type PackOptions struct {
	Codec         codec.ID
	Residual      residual.Kind // Add is used where the dtype has it, Bit elsewhere
	Level         codec.Level
	Workers       int    // at most this many cores; 0 means all
	NumChunks     uint64 // chunks per tensor; 0 lets the codec decide
	ChunkBytes    uint64 // bytes of the target per chunk; 0 lets the codec decide
	MaxShardBytes uint64 // 0 means DefaultShardBytes
	Overwrite     bool   // replace what stands at the output path
}

// UnpackOptions control Unpack and Verify.
type UnpackOptions struct {
	Workers   int
	Overwrite bool
	Supply    *Supply // gives what deltas rebuild; nil: Unpack rebuilds it itself
}

var levels = map[string]codec.Level{"default": codec.LevelDefault, "fast": codec.LevelFast, "small": codec.LevelSmall}

// packJSON is PackOptions as JSON.
type packJSON struct {
	Codec         string `json:"codec"`
	Residual      string `json:"residual"`
	Level         string `json:"level"`
	Workers       int    `json:"workers"`
	NumChunks     uint64 `json:"num_chunks"`
	ChunkBytes    uint64 `json:"chunk_bytes"`
	MaxShardBytes uint64 `json:"max_shard_bytes"`
	Overwrite     bool   `json:"overwrite"`
}

var packDefaults = packJSON{Codec: "auto", Residual: "bit", Level: "default"}

// ParsePackOptions reads options from a JSON object; nothing at all gives the
// defaults, unknown keys are refused.
func ParsePackOptions(text []byte) (PackOptions, error) {
	raw := packDefaults
	if err := parseOptions(text, &raw); err != nil {
		return PackOptions{}, err
	}
	return raw.options()
}

func (raw *packJSON) options() (o PackOptions, err error) {
	if o.Codec, err = codec.Parse(raw.Codec); err != nil {
		return o, err
	}
	switch raw.Residual {
	case residual.Bit.String():
		o.Residual = residual.Bit
	case residual.Add.String():
		o.Residual = residual.Add
	default:
		return o, status.Errorf(status.ErrArgument, "residual %q is unknown: expected bit or add", raw.Residual)
	}
	level, ok := levels[raw.Level]
	if !ok {
		return o, status.Errorf(status.ErrArgument, "level %q is unknown: expected default, fast or small", raw.Level)
	}
	o.Level, o.Workers, o.NumChunks, o.ChunkBytes = level, raw.Workers, raw.NumChunks, raw.ChunkBytes
	o.MaxShardBytes, o.Overwrite = raw.MaxShardBytes, raw.Overwrite
	return o, o.check()
}

func (o *PackOptions) check() error {
	if o.NumChunks != 0 && o.ChunkBytes != 0 {
		return status.Errorf(status.ErrArgument, "num_chunks (%d) and chunk_bytes (%d) are both set, expected one of them", o.NumChunks, o.ChunkBytes)
	}
	return checkWorkers(o.Workers)
}

// ParseUnpackOptions is ParsePackOptions for Unpack and Verify.
func ParseUnpackOptions(text []byte) (UnpackOptions, error) {
	var raw struct {
		Workers   int  `json:"workers"`
		Overwrite bool `json:"overwrite"`
	}
	if err := parseOptions(text, &raw); err != nil {
		return UnpackOptions{}, err
	}
	return UnpackOptions{Workers: raw.Workers, Overwrite: raw.Overwrite}, checkWorkers(raw.Workers)
}

func checkWorkers(n int) error {
	if n < 0 || n > maxWorkers {
		return status.Errorf(status.ErrArgument, "workers is %d, expected 0 to %d", n, maxWorkers)
	}
	return nil
}

func parseOptions(text []byte, into any) error {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return status.Errorf(status.ErrArgument, "options: %v", err)
	}
	if d.More() {
		return status.Errorf(status.ErrArgument, "options: there is text after the object")
	}
	return nil
}

// tensorOptions are the options for one tensor.
func (o *PackOptions) tensorOptions(t dtype.Type, workers int) tensor.Options {
	to := tensor.Options{Codec: o.Codec, Residual: o.Residual, Level: o.Level, NumChunks: o.NumChunks, Workers: workers}
	if to.Residual == residual.Add && !t.HasAdd() {
		to.Residual = residual.Bit
	}
	if o.ChunkBytes != 0 {
		to.ChunkWords = max(1, o.ChunkBytes/uint64(t.WordBytes()))
	}
	return to
}
