package engine
import ("testing";"os";"fmt";"time";"strings")
func TestZZ(t *testing.T) {
	c := openCompiler(t)
	t.Setenv("TPDE_CACHE", t.TempDir())
	arch := os.Getenv("ARCH"); if arch == "" { arch = "sm_90" }
	for v, m := range entries[riceDecode].variants {
		if f := os.Getenv("VARIANT"); f != "" && !strings.Contains(","+f+",", ","+m+",") { continue }
		start := time.Now()
		cubin, err := compile(c, newKernelID(riceDecode, v), arch)
		if err != nil { t.Error(err); continue }
		os.WriteFile(fmt.Sprintf("/tmp/rice_%d.cubin", v), cubin, 0o644)
		fmt.Println(v, m, len(cubin), time.Since(start))
	}
}
