package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store is the default keychain of macOS, through /usr/bin/security, which needs no cgo and whose items the person can see
// in Keychain Access. It is safe for concurrent use. This file is compiled and vetted, but has not run on a Mac in this
// project's tests; what security prints is parsed in keychain.go, which is tested.
type Store struct {
	locks locks
	asked questions
}

func open(_ Options, l locks) *Store { return &Store{locks: l} }

// Close does nothing.
func (s *Store) Close() error { return nil }

// security runs the tool, within a time limit. Its error says nothing that the tool printed: a value may be in there.
func security(ctx context.Context, within time.Duration, stdin string, args ...string) (stdout, stderr string, err error) {
	limited, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	cmd := exec.CommandContext(limited, "/usr/bin/security", args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = limit / 10
	err = cmd.Run()
	exit, exited := errors.AsType[*exec.ExitError](err)
	switch {
	case err == nil:
		return out.String(), errOut.String(), nil
	case limited.Err() != nil:
		return "", "", ended(ctx, limited.Err(), within)
	case !exited:
		return "", "", fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	return "", "", exitError(args[0], exit.ExitCode())
}

// ask is security for what macOS may ask the person at the screen about: the value of an item that another program made, or one in a
// locked keychain.
func (s *Store) ask(ctx context.Context, it store.Item, stdin string, args ...string) (stderr string, err error) {
	if err := s.asked.before(it); err != nil {
		return "", err
	}
	began := time.Now()
	_, stderr, err = security(ctx, answerLimit, stdin, args...)
	s.asked.after(it, time.Since(began), err)
	if errors.Is(err, errSilent) {
		err = errKeychainLocked
	}
	return stderr, err
}

func (s *Store) find(ctx context.Context, it store.Item) (secret.String, error) {
	stderr, err := s.ask(ctx, it, "", "find-generic-password", "-s", it.Service, "-a", it.Account, "-g")
	if err != nil {
		return secret.String{}, err
	}
	v, err := parsePassword(stderr)
	if err == nil && v.IsZero() {
		err = store.ErrNotFound
	}
	return v, err
}

// Read implements [store.Store].
func (s *Store) Read(ctx context.Context, it store.Item) (secret.String, error) {
	if err := begin(ctx, it); err != nil {
		return secret.String{}, err
	}
	v, err := s.find(ctx, it)
	return v, wrap(it, err)
}

// write reads what it has written: security -i does not tell of every failure.
func (s *Store) write(ctx context.Context, it store.Item, value secret.String) error {
	line, err := addCommand(it, value)
	if err == nil {
		_, err = s.ask(ctx, it, line.Reveal(), "-i")
	}
	var stored secret.String
	if err == nil {
		stored, err = s.find(ctx, it)
	}
	if err == nil && !stored.Equal(value) {
		err = errors.New("the keychain has another value than was written: someone else wrote it, or the keychain refused it")
	}
	return err
}

// remove removes the item from every keychain that is searched: the next one would come to light otherwise.
func (s *Store) remove(ctx context.Context, it store.Item) error {
	for range 8 {
		_, _, err := security(ctx, limit, "", "delete-generic-password", "-s", it.Service, "-a", it.Account)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("the keychain has the item again and again: another program puts it there")
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, service string) ([]string, error) {
	if err := begin(ctx, store.Item{Service: service, Account: "any"}); err != nil {
		return nil, err
	}
	dump, _, err := security(ctx, limit, "", "dump-keychain")
	if err != nil {
		return nil, fmt.Errorf("list of the keychain: %w", err)
	}
	return parseDump(dump, service), nil
}

// Check implements [store.Store]: there is a keychain, and it can be searched. Whether it would give out a value is not known before
// it is asked for one, and that might ask the person.
func (s *Store) Check(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("keychain: %w", ctx.Err())
	}
	_, _, err := security(ctx, limit, "", "default-keychain")
	if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrUnavailable) {
		err = errNoKeychain
	}
	if err == nil {
		_, _, err = security(ctx, limit, "", "find-generic-password", "-s", "credproxy-keyring", "-a", "check")
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("keychain: %w", err)
	}
	return nil
}
