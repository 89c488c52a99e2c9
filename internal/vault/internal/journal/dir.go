package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// found is a login's file in one directory.
type found struct {
	content
	info fs.FileInfo // nil: there is none
}

// readIn reads the login's file in dir. If there is none, found is empty and there is no error. With errDamaged and errNewer
// found.info is valid.
func readIn(dir, account string) (found, error) {
	root, err := privatedir.Open(dir, false)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return found{}, nil
	case errors.Is(err, syscall.ENOTDIR), err != nil && isFile(dir):
		return found{}, errNoPlace
	case err != nil:
		return found{}, atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	return readFile(root, fileName(account), account)
}

// isFile reports whether what is there is no directory, and not the way to one.
func isFile(dir string) bool {
	info, err := os.Lstat(dir)
	return err == nil && info.Mode()&(fs.ModeDir|fs.ModeSymlink) == 0
}

// ofAnother reports whether dir belongs to another user.
func ofAnother(dir string) bool {
	info, err := os.Lstat(dir)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) != os.Geteuid()
}

// readFile is readIn in a directory that is open.
func readFile(root *os.Root, name, account string) (found, error) {
	f, info, err := open(root, name, os.O_RDONLY)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return found{}, nil
	case err != nil:
		return found{info: info}, atomicfile.Cause(err)
	}
	defer func() { _ = f.Close() }()
	c, err := readStable(f)
	switch {
	case err != nil:
		return found{info: info}, atomicfile.Cause(err)
	case c.newer:
		return found{content: content{seq: c.seq, sum: c.sum}, info: info}, errNewer
	case c.seq == 0:
		return found{info: info}, fmt.Errorf("%w: neither half is whole", errDamaged)
	case c.entry.Account != account:
		return found{info: info}, fmt.Errorf("%w: it is the journal of another login", errDamaged)
	}
	return found{c, info}, nil
}

// open opens a regular file that name itself is, not what it links to. Anything else is errDamaged, with its info.
func open(root *os.Root, name string, flag int) (*os.File, fs.FileInfo, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, info, fmt.Errorf("%w: it is not a regular file", errDamaged)
	}
	f, err := root.OpenFile(name, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, info, err
	}
	opened, err := f.Stat()
	if err == nil && !opened.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is not a regular file", errDamaged)
	}
	if err != nil {
		_ = f.Close()
		return nil, info, err
	}
	return f, opened, nil
}

// readStable reads until both halves are whole or nothing changes any more: with one half whole, the other may have been the
// newest when we began, and be in the middle of its next writing now.
func readStable(f *os.File) (content, error) {
	info, err := f.Stat()
	if err != nil {
		return content{}, err
	}
	var last []byte
	for range 10_000 {
		data := make([]byte, min(info.Size(), 2*maxHalf+1)) // a file that grows is another one
		n, err := f.ReadAt(data, 0)
		if err != nil && !errors.Is(err, io.EOF) {
			return content{}, err
		}
		data = data[:n]
		c := scan(data)
		if c.intact || last != nil && bytes.Equal(last, data) {
			return c.parse(), nil
		}
		last = data
	}
	return content{}, errors.New("it changes all the time")
}

// writeIn writes the entry to its login's file in the directory number i, and makes room there for an entry with room bytes in
// Sealed.
func (j *Journal) writeIn(i int, seq uint64, e entry, room int) error {
	payload, err := json.Marshal(e)
	if err != nil {
		return err
	}
	size := halfFor(len(payload) + roomFor(room-len(e.Sealed)))
	if size == 0 {
		return errTooLarge
	}
	root, err := privatedir.Open(j.dirs[i], true)
	if err != nil {
		return atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	j.sweeps[i].Do(func() { _, _ = atomicfile.RemoveTemps(root, time.Hour) }) // an hour is longer than any write takes
	name := fileName(e.Account)
	f, err := readFile(root, name, e.Account)
	switch {
	case errors.Is(err, errNewer):
		return err
	case errors.Is(err, errDamaged):
		aside := name + damaged + time.Now().UTC().Format("20060102T150405.000000000Z")
		err := j.rebuild(root, name, aside, encode(size, seq, payload))
		if err != nil && f.info.Mode().IsRegular() && overwrite(root, name, f.info, encode(size, seq, payload)) == nil {
			return nil // on a full disk its blocks are better used than kept
		}
		return err
	case err == nil && f.sized && f.half >= size:
		if writeInPlace(root, name, f, seq, payload) == nil {
			return nil
		}
		size = f.half
	}
	return j.rebuild(root, name, "", encode(size, seq, payload))
}

// Reserved reports whether an answer of room bytes has its place on disk already: the login's file is large enough, and can be
// written where it is. Then no disk is too full for it, though [Journal.Check] may say that nothing new can be written. It tries,
// for not every file system writes in place, so the caller has the login's lock.
func (j *Journal) Reserved(it store.Item, room int) bool {
	s, err := j.newest(it)
	if err != nil || s.seq == 0 || s.sum == inMemory {
		return false
	}
	payload, err := json.Marshal(s.entry)
	if err != nil {
		return false
	}
	root, err := privatedir.Open(j.dirs[s.dir], false)
	if err != nil {
		return false
	}
	defer func() { _ = root.Close() }()
	name := fileName(it.Account)
	is, err := readFile(root, name, it.Account)
	if size := halfFor(len(payload) + 1024 + roomFor(room)); err != nil || size == 0 || !is.sized || is.half < size {
		return false
	}
	return writeInPlace(root, name, is, max(s.seq, uint64(time.Now().UnixMicro()))+1, payload) == nil
}

// writeInPlace writes the half that is not the newest.
func writeInPlace(root *os.Root, name string, old found, seq uint64, payload []byte) error {
	f, _, err := open(root, name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(encode(old.half, seq, payload), int64((1-old.newest)*old.half)); err != nil {
		return err
	}
	return settle(root, name, f)
}

// settle syncs f and looks whether it is still what others find under its name.
func settle(root *os.Root, name string, f *os.File) error {
	if err := syncData(f); err != nil {
		return err
	}
	written, err := f.Stat()
	if err != nil {
		return err
	}
	named, err := root.Lstat(name)
	if err == nil && !os.SameFile(written, named) {
		err = errors.New("it was replaced")
	}
	return err
}

// rebuild makes the file anew. What was damaged is renamed to aside, and has its name back if that fails.
func (j *Journal) rebuild(root *os.Root, name, aside string, first []byte) error {
	if aside != "" {
		if err := root.Rename(name, aside); err != nil {
			return atomicfile.Cause(err)
		}
	}
	err := atomicfile.WriteFile(root, name, append(first, bytes.Repeat([]byte{' '}, len(first))...))
	switch {
	case aside == "":
	case err != nil:
		_ = root.Rename(aside, name)
	default:
		j.log.Error("a damaged journal file was set aside", "file", filepath.Join(root.Name(), aside))
	}
	return err
}

// overwrite makes a damaged file whole where it is.
func overwrite(root *os.Root, name string, was fs.FileInfo, first []byte) error {
	f, info, err := open(root, name, os.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if !os.SameFile(was, info) {
		return errors.New("it was replaced")
	}
	if _, err := f.WriteAt(append(first, bytes.Repeat([]byte{' '}, len(first))...), 0); err != nil {
		return err
	}
	if err := f.Truncate(int64(2 * len(first))); err != nil {
		return err
	}
	return settle(root, name, f)
}

// removeIn removes the login's file in dir, whatever it is.
func removeIn(dir, account string) error {
	root, err := privatedir.Open(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	if err := root.Remove(fileName(account)); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return atomicfile.Cause(err)
	}
	return atomicfile.Cause(privatedir.Sync(root))
}

// accountsIn returns the accounts of the files in dir.
func accountsIn(dir string) (accounts []string, err error) {
	root, err := privatedir.Open(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, atomicfile.Cause(err)
	}
	defer func() { _ = root.Close() }()
	d, err := root.Open(".")
	if err != nil {
		return nil, atomicfile.Cause(err)
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close()
	if err != nil {
		return nil, atomicfile.Cause(err)
	}
	var failed []error
	for _, name := range names {
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		account, err := accountOf(root, name)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		} else if account != "" && fileName(account) == name {
			accounts = append(accounts, account)
		}
	}
	return accounts, join("read", failed)
}

// accountOf is whose file it is, "" if it does not say.
func accountOf(root *os.Root, name string) (string, error) {
	f, _, err := open(root, name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) {
		return "", nil
	} else if err != nil {
		return "", atomicfile.Cause(err)
	}
	defer func() { _ = f.Close() }()
	c, err := readStable(f)
	if err == nil && c.newer {
		err = errNewer
	}
	return c.entry.Account, atomicfile.Cause(err)
}
