package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

func TestOutputsThatAreRefused(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := write(t, dir+"/b.safetensors", fileOf(base))
	c := write(t, dir+"/c.safetensors", fileOf(target))
	hub(t, dir+"/folder", target, "{}")
	d := dir + "/d.safetensors"
	mustPack(t, open(t, b), open(t, c), d, PackOptions{})
	mustPack(t, open(t, b), open(t, dir+"/folder"), dir+"/df.safetensors", PackOptions{})
	if err := os.Symlink("folder", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/home/letter.txt", []byte("dear"))
	before := tree(t, dir)
	pipe := t.TempDir() + "/pipe"
	if err := syscall.Mkfifo(pipe, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	force := UnpackOptions{Overwrite: true}
	pack := func(base, target, out string, overwrite bool) error {
		_, err := Pack(ctx, open(t, base), open(t, target), out, PackOptions{Overwrite: overwrite}, nil)
		return err
	}
	unpack := func(base, delta, out string, o UnpackOptions) error {
		_, err := Unpack(ctx, open(t, base), []string{delta}, out, o, nil)
		return err
	}
	for _, x := range []struct {
		name string
		err  error
		want error
		says string
	}{
		{"pack, exists", pack(b, c, d, false), status.ErrExists, "exists already"},
		{"pack, output is base", pack(b, c, b, true), status.ErrExists, "input"},
		{"pack, output is target", pack(b, c, c, true), status.ErrExists, "input"},
		{"pack, output in target", pack(b, dir+"/folder", dir+"/folder/d.safetensors", true), status.ErrExists, "lies in the input folder"},
		{"pack, output in target by a link", pack(b, dir+"/folder", dir+"/link/unet/d.safetensors", true), status.ErrExists, "lies in the input folder"},
		{"pack, output is a folder", pack(b, c, dir+"/home", true), status.ErrExists, "folder"},
		{"pack, output is a pipe", pack(b, c, pipe, true), status.ErrExists, "pipe"},
		{"pack, no folder", pack(b, c, dir+"/none/d.safetensors", true), status.ErrNotFound, "none"},
		{"pack, folder is a file", pack(b, c, b+"/d.safetensors", true), status.ErrIO, "b.safetensors"},
		{"pack, slash", pack(b, c, dir+"/x/", true), status.ErrArgument, "output path"},
		{"pack, index", pack(b, c, d+".index.json", true), status.ErrArgument, "output path"},
		{"pack, same file", pack(b, b, dir+"/x", true), status.ErrArgument, "the same"},
		{"pack, same folder by a link", pack(dir+"/folder", dir+"/link", dir+"/x", true), status.ErrArgument, "the same"},
		{"unpack, exists", unpack(b, d, c, UnpackOptions{}), status.ErrExists, "exists already"},
		{"unpack, output is base", unpack(b, d, b, force), status.ErrExists, "input"},
		{"unpack, output is delta", unpack(b, d, d, force), status.ErrExists, "input"},
		{"unpack, output is a pipe", unpack(b, d, pipe, force), status.ErrExists, "pipe"},
		{"unpack, nothing", unpack(b, d, "", force), status.ErrArgument, "empty"},
		{"unpack, full folder", unpack(b, d, dir+"/home", force), status.ErrExists, "not empty"},
		{"unpack, folder on a file", unpack(b, dir+"/df.safetensors", c, force), status.ErrExists, "is a file"},
		{"unpack, folder exists", unpack(b, dir+"/df.safetensors", dir+"/folder", UnpackOptions{}), status.ErrExists, "not empty"},
		{"unpack, folder around the base", unpack(b, dir+"/df.safetensors", dir, force), status.ErrExists, "input"},
		{"unpack, not a checkpoint", unpack(b, dir+"/df.safetensors", dir+"/home", force), status.ErrExists, "does not look like"},
		{"unpack, no parent", unpack(b, d, dir+"/none/x", force), status.ErrNotFound, "none"},
	} {
		if !errors.Is(x.err, x.want) || !strings.Contains(fmt.Sprint(x.err), x.says) {
			t.Errorf("%s: got %v, want %v saying %q", x.name, x.err, x.want, x.says)
		}
	}
	same := NewSource("m")
	_, err := Pack(ctx, same, same, dir+"/x", PackOptions{}, nil)
	wantError(t, err, status.ErrArgument, "the same")
	_, err = Pack(ctx, open(t, b), open(t, c), dir+"/x", PackOptions{Workers: -1}, nil)
	wantError(t, err, status.ErrArgument, "workers")
	_, err = Pack(ctx, open(t, b), open(t, c), dir+"/x", PackOptions{NumChunks: 1, ChunkBytes: 1}, nil)
	wantError(t, err, status.ErrArgument, "chunk")
	after := tree(t, dir)
	for p, data := range before {
		if after[p] != data {
			t.Errorf("%s was touched", p)
		}
	}
	if len(after) != len(before) {
		t.Errorf("files %q, before %q", sortedNames(after), sortedNames(before))
	}
}

func TestOverwrite(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	hub(t, dir+"/target", target, "{}")
	b := memory(t, base...)
	d := []string{dir + "/d.safetensors"}
	mustPack(t, b, open(t, dir+"/target"), d[0], PackOptions{})
	mustPack(t, b, open(t, dir+"/target"), d[0], PackOptions{Overwrite: true})
	hub(t, dir+"/out", base, "old")
	write(t, dir+"/out/old.txt", []byte("old"))
	if _, err := Unpack(context.Background(), b, d, dir+"/out", UnpackOptions{Overwrite: true}, nil); err != nil {
		t.Fatal(err)
	}
	sameTree(t, dir+"/out", dir+"/target")
	// An empty folder needs no permission.
	if err := os.Mkdir(dir+"/empty", 0o777); err != nil {
		t.Fatal(err)
	}
	mustUnpack(t, b, dir+"/empty", d...)
	sameTree(t, dir+"/empty", dir+"/target")
	noLitter(t, dir)
}

func TestStaleFilesAreRemoved(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := memory(t, base...)
	child := exec.Command(os.Args[0], "-test.run=^TestHelperKilled$")
	child.Env = append(os.Environ(), "TPDE_TEST_DIR="+dir)
	if out, err := child.CombinedOutput(); err == nil {
		t.Fatalf("the helper was not killed: %s", out)
	}
	left, _ := filepath.Glob(dir + "/.tpde-tmp-*")
	if len(left) != 1 {
		t.Fatalf("the killed process left %q", left)
	}
	mustPack(t, b, memory(t, target...), dir+"/other.safetensors", PackOptions{})
	if _, err := os.Stat(left[0]); err != nil {
		t.Error("the litter of another file was touched")
	}
	mustPack(t, b, memory(t, target...), dir+"/out.safetensors", PackOptions{})
	noLitter(t, dir)
}

// TestHelperKilled is the process that TestStaleFilesAreRemoved kills while it
// writes.
func TestHelperKilled(t *testing.T) {
	dir := os.Getenv("TPDE_TEST_DIR")
	if dir == "" {
		t.Skip("only a helper")
	}
	s := newStore(dir+"/out.safetensors", 0)
	if err := s.addBytes("x", []byte("data")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.shards[0].assemble(context.Background(), s.path, nil); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func TestCancel(t *testing.T) {
	dir := t.TempDir()
	var base, target []tens
	for i := range 6 {
		b := random(fmt.Sprint(i), dtype.BF16, uint64(i), 4<<20)
		base, target = append(base, b), append(target, b.step(3, 1))
	}
	b, c := memory(t, base...), memory(t, target...)
	ctx, cancel := context.WithCancel(context.Background())
	var p Progress
	time.AfterFunc(50*time.Millisecond, cancel)
	begin := time.Now()
	_, err := Pack(ctx, b, c, dir+"/d.safetensors", PackOptions{}, &p)
	wantError(t, err, status.ErrCanceled)
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("it took %v", took)
	}
	if names := tree(t, dir); len(names) != 0 {
		t.Errorf("left: %q", sortedNames(names))
	}
	mustPack(t, b, c, dir+"/d.safetensors", PackOptions{})
	done, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Unpack(done, b, []string{dir + "/d.safetensors"}, dir+"/out/", UnpackOptions{}, nil)
	wantError(t, err, status.ErrCanceled)
	_, err = Verify(done, b, []string{dir + "/d.safetensors"}, nil, UnpackOptions{}, nil)
	wantError(t, err, status.ErrCanceled)
	if names := tree(t, dir); len(names) != 1 {
		t.Errorf("left: %q", sortedNames(names))
	}
}

// A full disk is played by a limit on the size of files.
func TestFullDisk(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	write(t, dir+"/b.safetensors", fileOf(base))
	c := write(t, dir+"/c.safetensors", fileOf(target))
	hub(t, dir+"/folder", target, "{}")
	mustPack(t, open(t, dir+"/b.safetensors"), open(t, c), dir+"/d.safetensors", PackOptions{})
	mustPack(t, open(t, dir+"/b.safetensors"), open(t, dir+"/folder"), dir+"/df.safetensors", PackOptions{})
	before := tree(t, dir)
	child := exec.Command(os.Args[0], "-test.run=^TestHelperFullDisk$", "-test.v")
	child.Env = append(os.Environ(), "TPDE_TEST_DIR="+dir)
	out, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: TestHelperFullDisk") {
		t.Fatalf("the helper did not run: %s", out)
	}
	after := tree(t, dir)
	if len(after) != len(before) {
		t.Errorf("files %q, before %q", sortedNames(after), sortedNames(before))
	}
	for p, data := range before {
		if after[p] != data {
			t.Errorf("%s was touched", p)
		}
	}
}

func TestHelperFullDisk(t *testing.T) {
	dir := os.Getenv("TPDE_TEST_DIR")
	if dir == "" {
		t.Skip("only a helper")
	}
	signal.Ignore(syscall.SIGXFSZ) // so that a write fails instead
	b, c := open(t, dir+"/b.safetensors"), open(t, dir+"/c.safetensors")
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 5000, Max: 5000}); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	_, err := Pack(ctx, b, c, dir+"/new.safetensors", PackOptions{}, nil)
	wantError(t, err, status.ErrIO, "file too large")
	_, err = Pack(ctx, b, c, dir+"/d.safetensors", PackOptions{Overwrite: true, MaxShardBytes: 6000}, nil)
	wantError(t, err, status.ErrIO)
	_, err = Unpack(ctx, b, []string{dir + "/d.safetensors"}, dir+"/new.safetensors", UnpackOptions{}, nil)
	wantError(t, err, status.ErrIO, dir, "file too large")
	_, err = Unpack(ctx, b, []string{dir + "/df.safetensors"}, dir+"/folder", UnpackOptions{Overwrite: true}, nil)
	wantError(t, err, status.ErrIO, dir)
	_, err = Unpack(ctx, b, []string{dir + "/d.safetensors"}, dir+"/made/", UnpackOptions{}, nil)
	wantError(t, err, status.ErrIO, dir)
	if _, err := os.Stat(dir + "/made"); err == nil {
		t.Error("the folder was left behind")
	}
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	_, err := Pack(context.Background(), memory(t), memory(t, random("a", dtype.U8, 1, 9)), dir+"/d", PackOptions{}, nil)
	wantError(t, err, status.ErrIO, dir)
}

// Memory does not grow with the checkpoint.
func TestMemoryStaysFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MB")
	}
	dir := t.TempDir()
	var base, target []tens
	for i := range 3 {
		b := random(fmt.Sprint(i), dtype.BF16, uint64(i), 16<<20)
		base, target = append(base, b), append(target, b.step(30, 1))
	}
	write(t, dir+"/b.safetensors", fileOf(base))
	write(t, dir+"/c.safetensors", fileOf(target))
	base, target = nil, nil
	runtime.GC()
	peak := make(chan uint64)
	stop := make(chan struct{})
	go func() {
		var most uint64
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapInuse)
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	mustPack(t, open(t, dir+"/b.safetensors"), open(t, dir+"/c.safetensors"), dir+"/d.safetensors", PackOptions{})
	mustUnpack(t, open(t, dir+"/b.safetensors"), dir+"/got.safetensors", dir+"/d.safetensors")
	close(stop)
	if most := <-peak; most > 160<<20 {
		t.Errorf("the heap grew to %d MiB for tensors of 32 MiB", most>>20)
	} else {
		t.Logf("heap: at most %d MiB", most>>20)
	}
	sameFile(t, dir+"/got.safetensors", dir+"/c.safetensors")
}

func TestOptions(t *testing.T) {
	for _, text := range []string{"", "{}", " \n", `{"codec":"elias","residual":"add","level":"small","workers":2,"num_chunks":3,"max_shard_bytes":9,"overwrite":true}`, `{"chunk_bytes":7}`} {
		if _, err := ParsePackOptions([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	o, _ := ParsePackOptions([]byte(`{"codec":"raw","residual":"add","level":"fast","workers":2,"chunk_bytes":8}`))
	if w := o.tensorOptions(dtype.F32, 1); w.ChunkWords != 2 || w.Residual.String() != "add" || o.tensorOptions(dtype.I32, 1).Residual.String() != "bit" {
		t.Errorf("%+v", w)
	}
	for _, text := range []string{`{"codecs":"x"}`, `{"codec":"x"}`, `{"residual":"x"}`, `{"level":"x"}`, `{"workers":-1}`, `{"workers":2000}`, `{"num_chunks":-1}`,
		`{"num_chunks":1,"chunk_bytes":1}`, `[]`, `{}{}`, `{`, `{"overwrite":1}`} {
		if _, err := ParsePackOptions([]byte(text)); !errors.Is(err, status.ErrArgument) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if u, err := ParseUnpackOptions([]byte(`{"workers":3,"overwrite":true}`)); err != nil || u != (UnpackOptions{Workers: 3, Overwrite: true}) {
		t.Errorf("%v %v", u, err)
	}
	if _, err := ParseUnpackOptions([]byte(`{"codec":"raw"}`)); !errors.Is(err, status.ErrArgument) {
		t.Error(err)
	}
}

// The keys that the C ABI promises.
func TestReportKeys(t *testing.T) {
	base, target := model()
	dir := t.TempDir()
	b := memory(t, base...)
	r := mustPack(t, b, memory(t, target...), dir+"/d.safetensors", PackOptions{})
	v, err := Verify(context.Background(), b, []string{dir + "/d.safetensors"}, memory(t, target...), UnpackOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	keys := func(v any) string {
		text, _ := json.Marshal(v)
		var m map[string]any
		if err := json.Unmarshal(text, &m); err != nil {
			t.Fatal(err)
		}
		return strings.Join(sortedNames(m), " ")
	}
	for _, c := range []struct{ got, want string }{
		{keys(r), "base files out removed seconds target tensors tool totals"},
		{keys(r.InspectReport), "base files removed target tensors tool totals"},
		{keys(r.Totals), "alias changed_target_bytes delta file_bytes new ratio removed stored_bytes target_bytes tensors unchanged verbatim"},
		{keys(r.Tensors[0]), "base_digest chunks codec deltas dtype kind name residual shape stored_bytes target_bytes target_digest words"},
		{keys(r.Files[0]), "bytes kind path sha256"},
		{keys(v), "base bytes files seconds target target_compared"},
		{keys(v.Files[0]), "bytes path sha256 verified"},
	} {
		if c.got != c.want {
			t.Errorf("keys %s, want %s", c.got, c.want)
		}
	}
}
