package checkpoint

import (
	"context"
	"os"
	"testing"

	"github.com/tpde-project/tpde/core/dtype"
	"github.com/tpde-project/tpde/core/status"
)

// Reading a mapped file behind its end would end the process, and with it the
// training run that the library is part of.
func TestFilesThatGetShorter(t *testing.T) {
	dir := t.TempDir()
	tensor := random("w", dtype.F32, 1, 512, 1024)
	write(t, dir+"/base", fileOf([]tens{tensor}))
	write(t, dir+"/target", fileOf([]tens{tensor.step(20, 2)}))
	mustPack(t, open(t, dir+"/base"), open(t, dir+"/target"), dir+"/delta", PackOptions{})
	ctx := context.Background()
	for _, victim := range []string{"base", "target"} {
		whole, err := os.ReadFile(dir + "/" + victim)
		if err != nil {
			t.Fatal(err)
		}
		for _, workers := range []int{1, 4} {
			base, target := open(t, dir+"/base"), open(t, dir+"/target")
			if err := os.Truncate(dir+"/"+victim, 5000); err != nil {
				t.Fatal(err)
			}
			_, err := Pack(ctx, base, target, dir+"/new", PackOptions{Workers: workers}, nil)
			wantError(t, err, status.ErrIO, "shorter")
			_, err = Verify(ctx, base, []string{dir + "/delta"}, target, UnpackOptions{Workers: workers}, nil)
			wantError(t, err, status.ErrIO, "shorter")
			if victim == "base" {
				_, err = Unpack(ctx, base, []string{dir + "/delta"}, dir+"/new", UnpackOptions{Workers: workers}, nil)
				wantError(t, err, status.ErrIO, "shorter")
			}
			if _, err := os.Stat(dir + "/new"); err == nil {
				t.Error("an output is left")
			}
			noLitter(t, dir)
			write(t, dir+"/"+victim, whole)
		}
	}
}
