package journal

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Sealer encrypts and decrypts, with authentication. It does no I/O: it is called when an answer is in memory alone. It is safe
// for concurrent use.
type Sealer interface {
	Seal(plain []byte) ([]byte, error)
	Open(sealed []byte) ([]byte, error)
}

// header is the first line of what is sealed. It is authenticated with the rest: what was sealed for one login does not pass for
// another's.
type header struct {
	Version int    `json:"credproxy_journal"` // 1
	Service string `json:"service"`
	Account string `json:"account"`
}

// Seal encrypts v for the login, for Record.Sealed. After a Write with Phase Called it does no I/O. If there is no key, the error
// wraps [ErrNotDurable], and v is sealed all the same, with a key that this Journal alone has.
func (j *Journal) Seal(ctx context.Context, it store.Item, v secret.String) ([]byte, error) {
	if err := check(it); err != nil {
		return nil, err
	}
	var notDurable error
	sealer, err := j.key(ctx)
	if err != nil {
		notDurable = fmt.Errorf("journal of %s: seal: %w: %w", it, ErrNotDurable, err)
		sealer = &j.lone
	}
	plain, err := json.Marshal(header{Version: 1, Service: it.Service, Account: it.Account})
	if err != nil {
		return nil, fmt.Errorf("journal of %s: seal: %w", it, err)
	}
	sealed, err := sealer.Seal(append(append(plain, '\n'), v.Reveal()...))
	if err != nil {
		return nil, fmt.Errorf("journal of %s: seal: %w", it, err)
	}
	return sealed, notDurable
}

// Open is the reverse of Seal. The error wraps [store.ErrDamaged] if sealed is not what Seal made for this login with the key
// that there is now, and else says why there is no key.
func (j *Journal) Open(ctx context.Context, it store.Item, sealed []byte) (secret.String, error) {
	if err := check(it); err != nil {
		return secret.String{}, err
	}
	if v, err := open1(&j.lone, it, sealed); err == nil {
		return v, nil
	}
	sealer, err := j.key(ctx)
	if err != nil {
		return secret.String{}, fmt.Errorf("journal of %s: open: %w", it, err)
	}
	v, err := open1(sealer, it, sealed)
	if err == nil {
		return v, nil
	}
	// Another process may have made a new key since.
	if sealer, err = j.freshKey(ctx); err != nil {
		return secret.String{}, fmt.Errorf("journal of %s: open: %w", it, err)
	}
	if v, err = open1(sealer, it, sealed); err != nil {
		return secret.String{}, fmt.Errorf("journal of %s: %w: %w", it, store.ErrDamaged, err)
	}
	return v, nil
}

func open1(sealer Sealer, it store.Item, sealed []byte) (secret.String, error) {
	plain, err := sealer.Open(sealed)
	if err != nil {
		return secret.String{}, err
	}
	line, value, ok := bytes.Cut(plain, []byte("\n"))
	var h header
	if !ok || json.Unmarshal(line, &h) != nil || h.Version != 1 {
		return secret.String{}, errors.New("what it contains is not of a journal")
	}
	if found := (store.Item{Service: h.Service, Account: h.Account}); found != it {
		return secret.String{}, fmt.Errorf("what it contains is of %s", found)
	}
	return secret.New(string(value)), nil
}

// key is the key that was last used, or else a fresh one.
func (j *Journal) key(ctx context.Context) (Sealer, error) {
	j.mu.Lock()
	sealer := j.sealer
	j.mu.Unlock()
	if sealer != nil {
		return sealer, nil
	}
	return j.freshKey(ctx)
}

// freshKey asks for the key: where a store was replaced since, what is sealed with the old key could not be opened.
func (j *Journal) freshKey(ctx context.Context) (Sealer, error) {
	sealer, err := j.ask(ctx)
	if err != nil {
		return nil, err
	}
	if sealer == nil {
		return nil, errors.New("there is no key")
	}
	j.mu.Lock()
	j.sealer = sealer
	j.mu.Unlock()
	return sealer, nil
}

// lone seals with a key that nobody else has and that ends with the process. The zero value is ready; the key is made when it is
// first needed.
type lone struct {
	once sync.Once
	aead cipher.AEAD
}

func (l *lone) ready() (cipher.AEAD, error) {
	l.once.Do(func() {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // never fails
		if block, err := aes.NewCipher(key); err == nil {
			l.aead, _ = cipher.NewGCMWithRandomNonce(block)
		}
	})
	if l.aead == nil {
		return nil, errors.New("this machine cannot encrypt")
	}
	return l.aead, nil
}

func (l *lone) Seal(plain []byte) ([]byte, error) {
	aead, err := l.ready()
	if err != nil {
		return nil, err
	}
	return aead.Seal(nil, nil, plain, nil), nil
}

func (l *lone) Open(sealed []byte) ([]byte, error) {
	aead, err := l.ready()
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, nil, sealed, nil)
}
