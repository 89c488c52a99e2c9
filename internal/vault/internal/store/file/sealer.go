package file

import (
	"bytes"
	"context"
	"fmt"

	"filippo.io/age"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/privatedir"
)

// Sealer encrypts what belongs to a store but is kept outside of it, with the store's key. It has the key in memory and does no
// I/O. It is safe for concurrent use.
type Sealer struct {
	identity  *age.X25519Identity
	recipient *age.X25519Recipient
}

// Sealer finds the store's key, or makes it if there is neither a key nor an item. When the key was loaded before, that takes
// a look at key.id and no more.
func (s *Store) Sealer(ctx context.Context) (*Sealer, error) {
	if ctx.Err() != nil {
		return nil, fmt.Errorf("file store: %w", ctx.Err())
	}
	root, err := privatedir.Open(s.dir, true)
	if err != nil {
		return nil, fmt.Errorf("file store: %w", atomicfile.Cause(err))
	}
	defer func() { _ = root.Close() }()
	k, err := s.key.orNew(ctx, root, s.lock)
	if err != nil {
		return nil, fmt.Errorf("file store: %w", err)
	}
	return &Sealer{k.identity, k.recipient}, nil
}

// NewSealer returns a Sealer with a new key, which nothing but the Sealer has: what it seals can be opened as long as that lives.
func NewSealer() (*Sealer, error) {
	identity, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return &Sealer{identity, identity.Recipient()}, nil
}

// Seal returns plain as an age file.
func (s *Sealer) Seal(plain []byte) ([]byte, error) {
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, s.recipient)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt: %w", err)
	}
	return sealed.Bytes(), nil
}

// Open is the reverse of Seal. Its errors have no part of the plaintext.
func (s *Sealer) Open(sealed []byte) ([]byte, error) {
	return decryptAll(s.identity, sealed, int64(len(sealed)))
}
