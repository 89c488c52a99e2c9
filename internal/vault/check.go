package vault

import (
	"context"
	"errors"
	"fmt"
)

// Check reports whether the store can be used now: the keyring answers and is not locked, the files are ours and their
// key can be had. It may ask for the passphrase.
func (v *Vault) Check(ctx context.Context) error { return hostError(v.store.Check(ctx)) }

// ErrNoRecovery means that nothing can be written in any of the directories for recovery files: a token that is refreshed
// now and that the store refuses as well would be in memory only.
var ErrNoRecovery = errors.New("no directory for recovery files can be written")

// CheckRecovery reports whether an answer of a provider would be safe before the store has it. degraded says why the
// preferred place cannot be used though another can; err wraps ErrNoRecovery and the reasons.
func (v *Vault) CheckRecovery(ctx context.Context) (degraded, err error) {
	safe, reasons := v.refresh.Safe(ctx)
	if safe {
		return reasons, nil
	}
	return nil, fmt.Errorf("%w: %w", ErrNoRecovery, reasons)
}

// Reserved reports whether what a provider answers to a refresh of this login has its place in a recovery file already, so that it
// would be safe though CheckRecovery fails: on a full disk.
func (v *Vault) Reserved(ctx context.Context, providerName, bucket string) bool {
	return v.refresh.Reserved(ctx, loginItem(providerName, bucket))
}

// RecoveryDir is the directory whose recovery file has what is known of a login's refreshes, and with it a token that the
// store has not taken; "" if there is none.
func (v *Vault) RecoveryDir(providerName, bucket string) string {
	return v.journal.Dir(loginItem(providerName, bucket))
}
