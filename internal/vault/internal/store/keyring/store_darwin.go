package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Store is the default keychain of macOS, through /usr/bin/security, which needs no cgo and whose items the person can see
// in Keychain Access. It is safe for concurrent use. This file is compiled and vetted, but has not run on a Mac in this
// project's tests; what security prints is parsed in keychain.go, which is tested.
type Store struct{ locks locks }

func open(_ Options, l locks) *Store { return &Store{locks: l} }

// Close does nothing.
func (s *Store) Close() error { return nil }

// Exit statuses of security are the low bytes of the errors of the Security framework.
const (
	exitNotFound      = 44  // errSecItemNotFound, -25300
	exitNoInteraction = 36  // errSecInteractionNotAllowed, -25308: locked, and nobody can be asked
	exitAuthFailed    = 51  // errSecAuthFailed, -25293
	exitCancelled     = 128 // userCanceledErr, -128
)

// security runs the tool, within limit. Its error says nothing that the tool printed: a value may be in there.
func security(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	limited, cancel := context.WithTimeout(ctx, limit)
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
		return "", "", ended(ctx, limited.Err())
	case !exited:
		return "", "", fmt.Errorf("%w: %w", store.ErrUnavailable, err)
	}
	switch exit.ExitCode() {
	case exitNotFound:
		return "", "", store.ErrNotFound
	case exitNoInteraction, exitAuthFailed, exitCancelled:
		return "", "", errLocked
	}
	return "", "", fmt.Errorf("the keychain refused %s: exit status %d of security", args[0], exit.ExitCode())
}

func find(ctx context.Context, it store.Item) (secret.String, error) {
	_, stderr, err := security(ctx, "", "find-generic-password", "-s", it.Service, "-a", it.Account, "-g")
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
	v, err := find(ctx, it)
	return v, wrap(it, err)
}

// write reads what it has written: security -i does not tell of every failure.
func (s *Store) write(ctx context.Context, it store.Item, value secret.String) error {
	line, err := addCommand(it, value)
	if err == nil {
		_, _, err = security(ctx, line.Reveal(), "-i")
	}
	var stored secret.String
	if err == nil {
		stored, err = find(ctx, it)
	}
	if err == nil && !stored.Equal(value) {
		err = errors.New("the keychain has another value than was written: someone else wrote it, or the keychain refused it")
	}
	return err
}

func (s *Store) remove(ctx context.Context, it store.Item) error {
	_, _, err := security(ctx, "", "delete-generic-password", "-s", it.Service, "-a", it.Account)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// List implements [store.Store].
func (s *Store) List(ctx context.Context, service string) ([]string, error) {
	if err := begin(ctx, store.Item{Service: service, Account: "any"}); err != nil {
		return nil, err
	}
	dump, _, err := security(ctx, "", "dump-keychain")
	if err != nil {
		return nil, fmt.Errorf("list of the keychain: %w", err)
	}
	return parseDump(dump, service), nil
}

// Check implements [store.Store]: the keychain can be searched. Whether it would give out a value is not known before it
// is asked for one.
func (s *Store) Check(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("keychain: %w", ctx.Err())
	}
	_, _, err := security(ctx, "", "find-generic-password", "-s", "credproxy-keyring", "-a", "check")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("keychain: %w", err)
	}
	return nil
}
