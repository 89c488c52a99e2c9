package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"filippo.io/age"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/filename"
)

const (
	itemsDir = "items"
	suffix   = ".age"
	damaged  = ".damaged-"
	maxFile  = store.MaxValue + 128<<10 // the longest header and what age adds

	// An escaped name that is longer than longest goes on in a subdirectory: the first longest bytes and more make the
	// subdirectory's name. No escaped name ends with more. File systems take names of 255 bytes; the rest is for what is
	// added to a damaged file's name.
	longest = 200
	more    = "%"
)

var (
	errTooLarge = errors.New("the file is too large")
	errReplaced = errors.New("the file was replaced")
)

// parts is the path of the item's file below the store's directory, as directories and a file name.
func parts(it store.Item) []string {
	return append(chunks([]string{itemsDir}, it.Service, ""), chunks(nil, it.Account, suffix)...)
}

func chunks(to []string, name, suffix string) []string {
	rest := filename.Escape(name)
	for len(rest) > longest {
		to = append(to, rest[:longest]+more)
		rest = rest[longest:]
	}
	return append(to, rest+suffix)
}

// header is the first line of an item's plaintext. It is encrypted and authenticated with the value: a file that was
// renamed over another does not pass for it.
type header struct {
	Version int    `json:"credproxy_item"` // 1
	Service string `json:"service"`
	Account string `json:"account"`
}

// seal encrypts the item: a line of JSON, then the value as it is.
func seal(recipient age.Recipient, it store.Item, value secret.String) ([]byte, error) {
	line, err := json.Marshal(header{Version: 1, Service: it.Service, Account: it.Account})
	if err != nil {
		return nil, fmt.Errorf("encode header: %w", err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	_, err = io.WriteString(w, string(line)+"\n"+value.Reveal())
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return sealed.Bytes(), nil
}

// unseal is the reverse of seal. Every error means that the file is damaged or not this item's; none has a part of the
// plaintext.
func unseal(identity age.Identity, it store.Item, sealed []byte) (secret.String, error) {
	plain, err := decrypt(identity, sealed)
	if err != nil {
		return secret.String{}, err
	}
	line, value, ok := bytes.Cut(plain, []byte("\n"))
	var h header
	if !ok || json.Unmarshal(line, &h) != nil || h.Version != 1 || len(value) == 0 {
		return secret.String{}, errors.New("what it contains is not an item")
	}
	if found := (store.Item{Service: h.Service, Account: h.Account}); found != it {
		return secret.String{}, fmt.Errorf("what it contains is the item %s", found)
	}
	return secret.New(string(value)), nil
}

func decrypt(identity age.Identity, sealed []byte) ([]byte, error) {
	return decryptAll(identity, sealed, maxFile)
}

func decryptAll(identity age.Identity, sealed []byte, limit int64) ([]byte, error) {
	r, err := age.Decrypt(bytes.NewReader(sealed), identity)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return nil, fmt.Errorf("it was not encrypted for the key of this store: %w", age.ErrIncorrectIdentity)
	}
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(r, limit))
	}
	if err != nil {
		return nil, fmt.Errorf("it cannot be decrypted: %w", err)
	}
	return plain, nil
}

// setAside renames a file that was found damaged when it was read, and returns its new name. If it is not there any more,
// or was replaced since, the error is errReplaced.
func setAside(dir *os.Root, base string, read fs.FileInfo) (aside string, err error) {
	aside = base + damaged + time.Now().UTC().Format("20060102T150405.000000000Z")
	if err := dir.Rename(base, aside); errors.Is(err, fs.ErrNotExist) {
		return "", errReplaced
	} else if err != nil {
		return "", atomicfile.Cause(err)
	}
	moved, err := dir.Lstat(aside)
	if err != nil || os.SameFile(moved, read) {
		return aside, nil
	}
	// It is another file, which somebody wrote between our reading and renaming: give it back, unless there is an even
	// newer one by now.
	if err := dir.Link(aside, base); err != nil && !errors.Is(err, fs.ErrExist) {
		return aside, nil
	}
	_ = dir.Remove(aside)
	return "", errReplaced
}
