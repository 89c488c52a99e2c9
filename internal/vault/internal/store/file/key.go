package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"filippo.io/age"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Key says where the key of a file store is kept.
type Key string

// The places of a key. KeyAuto takes the key that there is: key.txt, key.age, or the one in the keyring, whichever fits
// the items. If there is none, and no item either, it makes one: in the keyring if that answers and is not locked, else
// in key.txt.
const (
	KeyAuto       Key = "auto"
	KeyKeyring    Key = "keyring"    // one item of the system's keyring, the same for all file stores of the user
	KeyFile       Key = "file"       // key.txt in the store's directory, 0600: an age identity file
	KeyPassphrase Key = "passphrase" // key.age in the store's directory: the same, encrypted with a passphrase
)

// Errors about the key. They come wrapped with what is missing, and where.
var (
	ErrNoKey      = errors.New("the key of the file store is missing")
	ErrWrongKey   = errors.New("this is not the key that the file store was encrypted with")
	ErrPassphrase = errors.New("the passphrase of the file store is wrong")
)

// errNoKeyYet: there is neither a key nor an item.
var errNoKeyYet = errors.New("the file store has no key yet")

const (
	keyService = "credproxy-file-store" // in the keyring, and for the lock while a key is made
	keyAccount = "identity"

	keyFile    = "key.txt"
	sealedFile = "key.age"
	idFile     = "key.id"
	maxKeyFile = 64 << 10
)

// key finds or makes the store's key, once, and remembers it.
type key struct {
	dir     string
	kind    Key
	keyring store.Store
	ask     func(ctx context.Context, confirm bool) (string, error)

	logN   int           // scrypt work factor of a new key.age
	turn   chan struct{} // held while the key is looked for; a channel, so that waiting ends with its ctx
	loaded atomic.Pointer[loadedKey]
	asked  error // what came of asking for the passphrase; guarded by turn
}

type loadedKey struct {
	identity  *age.X25519Identity
	recipient *age.X25519Recipient
	id        string
}

func (k *key) init(dir string, o Options) error {
	k.dir, k.kind, k.keyring, k.ask = dir, o.Key, o.Keyring, o.Passphrase
	k.logN = 18 // about a second, age's own choice
	k.turn = make(chan struct{}, 1)
	switch k.kind {
	case "":
		k.kind = KeyAuto
	case KeyAuto, KeyKeyring, KeyFile, KeyPassphrase:
	default:
		return fmt.Errorf("file store: there is no kind of key %q: take auto, keyring, file or passphrase", k.kind)
	}
	return nil
}

// place is one place where the key may be. load returns store.ErrNotFound if it is not there.
type place struct {
	name   string
	load   func(context.Context, *os.Root) (*age.X25519Identity, error)
	create func(context.Context, *os.Root, *age.X25519Identity) error
}

func (k *key) places() (look, create []place) {
	inFile := place{filepath.Join(k.dir, keyFile), k.loadFile, k.createFile}
	sealed := place{filepath.Join(k.dir, sealedFile), k.loadSealed, k.createSealed}
	inKeyring := place{"the keyring (" + keyService + "/" + keyAccount + ")", k.loadKeyring, k.createKeyring}
	switch k.kind {
	case KeyKeyring:
		return []place{inKeyring}, []place{inKeyring}
	case KeyFile:
		return []place{inFile}, []place{inFile}
	case KeyPassphrase:
		return []place{sealed}, []place{sealed}
	}
	return []place{inFile, sealed, inKeyring}, []place{inKeyring, inFile}
}

// existing returns the store's key. The error is errNoKeyYet if there is neither a key nor anything encrypted.
//
// That a key was loaded before does not settle it: if the directory was replaced since, the loaded key would make good
// items look damaged, and seal new ones so that nobody can open them.
func (k *key) existing(ctx context.Context, root *os.Root) (*loadedKey, error) {
	if l := k.loaded.Load(); l != nil && l.id == readID(root) {
		return l, nil
	}
	if err := k.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer func() { <-k.turn }()
	return k.existingInTurn(ctx, root)
}

// orNew is existing, or else a new key, made with the lock that all processes take for that.
func (k *key) orNew(ctx context.Context, root *os.Root, lock func(context.Context, store.Item) (func(), error)) (*loadedKey, error) {
	l, err := k.existing(ctx, root)
	if !errors.Is(err, errNoKeyYet) {
		return l, err
	}
	if err := k.takeTurn(ctx); err != nil {
		return nil, err
	}
	defer func() { <-k.turn }()
	unlock, err := lock(ctx, store.Item{Service: keyService, Account: keyAccount})
	if err != nil {
		return nil, err
	}
	defer unlock()
	if l, err := k.existingInTurn(ctx, root); !errors.Is(err, errNoKeyYet) {
		return l, err
	}
	return k.createInTurn(ctx, root)
}

func (k *key) takeTurn(ctx context.Context) error {
	select {
	case k.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the key of the file store: %w", ctx.Err())
	}
}

func (k *key) existingInTurn(ctx context.Context, root *os.Root) (*loadedKey, error) {
	if l := k.loaded.Load(); l != nil {
		recorded := readID(root)
		if l.id == recorded {
			return l, nil
		}
		// Without a key.id, and where none can be written, an item shows that the store is the same.
		if _, opened, err := tryItems(root, l.identity, len(recorded) != len(l.id)); err == nil && opened {
			return l, nil
		}
	}
	l, err := k.lookInTurn(ctx, root)
	if errors.Is(err, ErrNoKey) {
		// Another process may have made the key, and an item, between our look for the one and for the other. The key
		// comes first, so a second look settles it.
		l, err = k.lookInTurn(ctx, root)
	}
	return l, err
}

// lookInTurn looks for the key in all places where it may be.
func (k *key) lookInTurn(ctx context.Context, root *os.Root) (*loadedKey, error) {
	look, _ := k.places()
	var absent []string
	var unknown, wrong error
	for _, p := range look {
		identity, err := p.load(ctx, root)
		switch {
		case err == nil:
			if err := fits(root, identity); err != nil {
				wrong = fmt.Errorf("%w: %s", err, p.name)
				continue
			}
			return k.keep(identity), nil
		case errors.Is(err, store.ErrNotFound):
			absent = append(absent, p.name)
		case k.kind == KeyAuto && (errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrLocked)):
			unknown = err
		default:
			return nil, fmt.Errorf("the key of the file store in %s: %w", p.name, err)
		}
	}
	switch encrypted, err := hasItems(root); {
	case err != nil:
		return nil, err
	case wrong != nil:
		return nil, fmt.Errorf("%w; put the right key there, or move %s away to begin a new store", wrong, k.dir)
	case unknown != nil && (encrypted || len(readID(root)) == hex.EncodedLen(sha256.Size)):
		// key.id without items: what a Sealer has sealed may depend on the key that the keyring has.
		return nil, fmt.Errorf("%w: it is not in %s, and the keyring cannot be asked: %w", ErrNoKey, strings.Join(absent, " or "), unknown)
	case encrypted:
		return nil, fmt.Errorf("%w: it is not in %s; put it back, or move %s away to begin a new store",
			ErrNoKey, strings.Join(absent, ", "), filepath.Join(k.dir, itemsDir))
	}
	return nil, errNoKeyYet
}

// createInTurn makes a key. What is used is what the place gives back, not what was put there.
func (k *key) createInTurn(ctx context.Context, root *os.Root) (*loadedKey, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	_, create := k.places()
	for i, p := range create {
		err := p.create(ctx, root, identity)
		if i+1 < len(create) && (errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrLocked)) {
			continue // nothing is encrypted yet, so nothing depends on the keyring
		}
		if err == nil {
			identity, err = p.load(ctx, root)
		}
		if err == nil {
			err = fits(root, identity)
		}
		if err != nil {
			return nil, fmt.Errorf("make the key of the file store in %s: %w", p.name, err)
		}
		return k.keep(identity), nil
	}
	return nil, ErrNoKey
}

func (k *key) keep(identity *age.X25519Identity) *loadedKey {
	l := &loadedKey{identity, identity.Recipient(), idOf(identity)}
	k.loaded.Store(l)
	return l
}

// idOf is what key.id has for a key: a hash of its public half, from which neither half can be had.
func idOf(identity *age.X25519Identity) string {
	sum := sha256.Sum256([]byte("credproxy file store key id\n" + identity.Recipient().String()))
	return hex.EncodeToString(sum[:])
}

func readID(root *os.Root) string {
	data, _, err := readFile(root, idFile, maxKeyFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// fits checks a key that was found against the store. key.id says whether it is the right one; without a valid key.id, an
// item that it opens says so, and key.id is written. So a file that this key does not open is damaged, and not the key
// wrong.
func fits(root *os.Root, identity *age.X25519Identity) error {
	id := idOf(identity)
	recorded := readID(root)
	if recorded == id {
		return nil
	}
	encrypted, opened, err := tryItems(root, identity, len(recorded) != len(id))
	switch {
	case err != nil:
		return err
	case encrypted && !opened:
		return ErrWrongKey
	}
	if err := atomicfile.WriteFile(root, idFile, []byte(id+"\n")); err != nil && !opened {
		return err
	}
	return nil // perhaps without a key.id, but then an item has shown that the key is right
}

func hasItems(root *os.Root) (bool, error) {
	encrypted, _, err := tryItems(root, nil, false)
	return encrypted, err
}

// tryItems reports whether there are items, and, with open, whether one of the first hundred opens with identity.
func tryItems(root *os.Root, identity *age.X25519Identity, open bool) (encrypted, opened bool, err error) {
	tries := 100
	err = fs.WalkDir(root.FS(), itemsDir, func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !e.Type().IsRegular() || !strings.HasSuffix(path, suffix):
			return nil
		}
		encrypted = true
		if open {
			if data, _, err := readFile(root, path, maxFile); err == nil {
				_, err = decrypt(identity, data)
				opened = err == nil
			}
		}
		if tries--; !open || opened || tries == 0 {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return false, false, fmt.Errorf("look for items in %s: %w", filepath.Join(root.Name(), itemsDir), atomicfile.Cause(err))
	}
	return encrypted, opened, nil
}

func (k *key) loadFile(_ context.Context, root *os.Root) (*age.X25519Identity, error) {
	data, err := readKeyFile(root, keyFile)
	if err != nil {
		return nil, err
	}
	return parse(data)
}

func (k *key) createFile(_ context.Context, root *os.Root, identity *age.X25519Identity) error {
	return atomicfile.WriteFile(root, keyFile, identityFile(identity))
}

func (k *key) loadSealed(ctx context.Context, root *os.Root) (*age.X25519Identity, error) {
	data, err := readKeyFile(root, sealedFile)
	if err != nil {
		return nil, err
	}
	if k.asked != nil {
		return nil, k.asked
	}
	passphrase, err := k.passphrase(ctx, false)
	if err != nil {
		return nil, err
	}
	opener, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, err
	}
	plain, err := decrypt(opener, data)
	if errors.Is(err, age.ErrIncorrectIdentity) {
		k.asked = ErrPassphrase // asking again on every request would be a storm of prompts
		return nil, ErrPassphrase
	} else if err != nil {
		return nil, err
	}
	return parse(plain)
}

func (k *key) createSealed(ctx context.Context, root *os.Root, identity *age.X25519Identity) error {
	passphrase, err := k.passphrase(ctx, true)
	if err != nil {
		return err
	}
	recipient, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return err
	}
	recipient.SetWorkFactor(k.logN)
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		return err
	}
	_, err = w.Write(identityFile(identity))
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := atomicfile.WriteFile(root, sealedFile, sealed.Bytes()); err != nil {
		return err
	}
	k.ask = func(context.Context, bool) (string, error) { return passphrase, nil } // to load it again, without asking
	return nil
}

func (k *key) passphrase(ctx context.Context, confirm bool) (string, error) {
	if k.ask == nil {
		return "", errors.New("it needs a passphrase, and nobody can be asked for it here")
	}
	p, err := k.ask(ctx, confirm)
	switch {
	case err != nil:
		return "", fmt.Errorf("asking for the passphrase: %w", err)
	case p == "":
		return "", errors.New("the passphrase is empty")
	}
	return p, nil
}

func (k *key) loadKeyring(ctx context.Context, _ *os.Root) (*age.X25519Identity, error) {
	if k.keyring == nil {
		return nil, fmt.Errorf("%w: this system has no keyring", store.ErrUnavailable)
	}
	v, err := k.keyring.Read(ctx, store.Item{Service: keyService, Account: keyAccount})
	if err != nil {
		return nil, err
	}
	return parse([]byte(v.Reveal()))
}

func (k *key) createKeyring(ctx context.Context, _ *os.Root, identity *age.X25519Identity) error {
	if k.keyring == nil {
		return fmt.Errorf("%w: this system has no keyring", store.ErrUnavailable)
	}
	return k.keyring.Write(ctx, store.Item{Service: keyService, Account: keyAccount}, secret.New(identity.String()))
}

// readKeyFile reads a file that must be ours and private.
func readKeyFile(root *os.Root, name string) ([]byte, error) {
	data, info, err := readFile(root, name, maxKeyFile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, store.ErrNotFound
	case err != nil:
		return nil, atomicfile.Cause(err)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("other users may read it (mode %04o): chmod 600 it, and log in anew if they have", info.Mode().Perm())
	}
	return data, nil
}

// parse reads an age identity file. Its errors say nothing of the content: age's may quote it.
func parse(data []byte) (*age.X25519Identity, error) {
	identities, err := age.ParseIdentities(bytes.NewReader(data))
	if err == nil {
		for _, i := range identities {
			if x, ok := i.(*age.X25519Identity); ok {
				return x, nil
			}
		}
	}
	return nil, errors.New("it is damaged: it is not an age identity file with an X25519 key; put it back from a backup")
}

func identityFile(identity *age.X25519Identity) []byte {
	return fmt.Appendf(nil, "# The key of credproxy's file store: without it, what is stored here cannot be read.\n"+
		"# created: %s\n# public key: %s\n%s\n", time.Now().UTC().Format(time.RFC3339), identity.Recipient(), identity)
}
