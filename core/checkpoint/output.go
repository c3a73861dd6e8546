package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tpde-project/tpde/core/atomicfile"
	"github.com/tpde-project/tpde/core/status"
)

// checkOutput refuses an output that is one of the inputs, lies in an input
// folder or contains an input. It follows links, so that a second name of the
// same file does not help.
func checkOutput(out string, sources ...*Source) error {
	info, err := os.Stat(out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return atomicfile.Error(err)
	}
	for _, s := range sources {
		if s.below != nil {
			if err := checkOutput(out, s.below); err != nil {
				return err
			}
		}
		if info != nil {
			for _, in := range s.inputs {
				if os.SameFile(info, in) {
					return status.Errorf(status.ErrExists, "the output %s is also an input (%s)", out, s.label)
				}
			}
		}
		if s.path == "" {
			continue
		}
		switch inside, err := within(out, s.path); {
		case err != nil:
			return err
		case inside && s.folder:
			return status.Errorf(status.ErrExists, "the output %s is or lies in the input folder %s", out, s.path)
		}
		switch around, err := within(s.path, out); {
		case err != nil:
			return err
		case around:
			return status.Errorf(status.ErrExists, "the output %s is or contains the input %s", out, s.path)
		}
	}
	return nil
}

// within reports whether path is folder or lies below it, once links are
// resolved. The end of path need not exist.
func within(path, folder string) (bool, error) {
	want, err := os.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, atomicfile.Error(err)
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return false, atomicfile.Error(err)
	}
	for {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if info, err := os.Stat(path); err == nil && os.SameFile(info, want) {
			return true, nil
		}
		up := filepath.Dir(path)
		if up == path {
			return false, nil
		}
		path = up
	}
}

// sameSource reports whether two sources are the same checkpoint under two
// names.
func sameSource(a, b *Source) bool {
	if a == b {
		return true
	}
	if a.path == "" || b.path == "" {
		return false
	}
	x, err1 := os.Stat(a.path)
	y, err2 := os.Stat(b.path)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// destination is where Unpack puts the target.
type destination struct {
	path   string // of the file or folder
	parent string // folder that has to be made for a file first; "" if it is there
}

// resolveDestination interprets the output path for a target that is a folder
// or the single file called name.
func resolveDestination(out string, folder bool, name string, overwrite bool) (destination, error) {
	if out == "" {
		return destination{}, status.Errorf(status.ErrArgument, "the output path is empty")
	}
	slash := strings.HasSuffix(out, "/")
	out = filepath.Clean(out)
	d := destination{path: out}
	info, err := os.Lstat(out)
	there := err == nil
	if there && info.Mode()&fs.ModeSymlink != 0 {
		if info, err = os.Stat(out); err == nil && (folder || info.IsDir()) {
			// Renaming onto a link would replace the link and not the folder.
			if d.path, err = filepath.EvalSymlinks(out); err != nil {
				return d, atomicfile.Error(err)
			}
		}
	}
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return d, atomicfile.Error(err)
	case folder && there:
		return d, checkReplaceable(d.path, overwrite)
	case !folder && there && info != nil && info.IsDir():
		entries, err := os.ReadDir(d.path)
		if err != nil {
			return d, atomicfile.Error(err)
		}
		if len(entries) > 0 && !slash {
			return d, status.Errorf(status.ErrExists, "%s is a folder that is not empty; the target is one file", out)
		}
		d.path = filepath.Join(d.path, name)
		return d, checkAbsent(d.path, overwrite)
	case !folder && slash:
		d.parent, d.path = out, filepath.Join(out, name)
		return d, nil
	case !folder:
		return d, checkAbsent(d.path, overwrite)
	}
	return d, nil
}

func checkAbsent(path string, overwrite bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return atomicfile.Error(err)
	case info.IsDir():
		return status.Errorf(status.ErrExists, "%s is a folder, expected a file or nothing", path)
	case info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe|fs.ModeSocket|fs.ModeIrregular) != 0:
		// Renaming onto it would put a file in the place of /dev/null.
		return status.Errorf(status.ErrExists, "%s is a device, pipe or socket, expected a file or nothing", path)
	case !overwrite:
		return status.Errorf(status.ErrExists, "%s exists already", path)
	}
	return nil
}

// checkReplaceable refuses to put a folder where something stands that the
// user did not ask to replace, or would hardly want to lose.
func checkReplaceable(path string, overwrite bool) error {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, unix.ENOTDIR):
		return status.Errorf(status.ErrExists, "%s is a file, the target is a folder", path)
	case err != nil:
		return atomicfile.Error(err)
	case len(entries) == 0:
		return nil
	case !overwrite:
		return status.Errorf(status.ErrExists, "%s exists already and is not empty", path)
	}
	found := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), extension) })
	if !found {
		return status.Errorf(status.ErrExists, "%s does not look like a checkpoint (it has no %s file), so it is not replaced; remove it first", path, extension)
	}
	return nil
}

// checkSpace fails early where the file system says that it has no room.
func checkSpace(folder string, need uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil || st.Bsize <= 0 {
		return nil // the write will tell
	}
	if free := st.Bavail * uint64(st.Bsize); st.Blocks > 0 && free < need {
		return status.Errorf(status.ErrIO, "%s has %d bytes free, the output takes %d", folder, free, need)
	}
	return nil
}
