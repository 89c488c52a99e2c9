package vault

import "context"

// Check reports whether the store can be used now: the keyring answers and is not locked, the files are ours and their
// key can be had. It may ask for the passphrase.
func (v *Vault) Check(ctx context.Context) error { return hostError(v.store.Check(ctx)) }
