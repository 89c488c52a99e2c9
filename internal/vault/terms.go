package vault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/credproxy/credproxy/internal/atomicfile"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// Statuses of a provider: what its vendor says of logins that other programs keep.
const (
	StatusOK           = "ok"
	StatusRestricted   = "restricted"   // the vendor does not permit it: a person is asked once
	StatusDiscontinued = "discontinued" // the vendor has ended it for most accounts
)

// termsDir is in the state directory. A file for each provider has the sentence that was agreed to.
const termsDir = "terms"

// Terms returns what the vendor of a provider says of logins that other programs keep, "" if it says nothing, and whether
// a login may begin: that it is permitted, or that a person of this machine has agreed to that very sentence.
func (v *Vault) Terms(providerName string) (sentence string, accepted bool) {
	if _, ok := v.configured(providerName); ok {
		return "", true
	}
	status, sentence := provider.Terms(providerName)
	if status != StatusRestricted {
		return sentence, true
	}
	b, err := os.ReadFile(filepath.Join(v.state, termsDir, providerName))
	return sentence, err == nil && strings.TrimSpace(string(b)) == sentence
}

// AcceptTerms remembers that the person has agreed to what [Vault.Terms] says.
func (v *Vault) AcceptTerms(providerName string) error {
	sentence, _ := v.Terms(providerName)
	if err := v.keep(filepath.Join(v.state, termsDir), providerName, sentence+"\n"); err != nil {
		return fmt.Errorf("remembering the answer: %w", err)
	}
	return nil
}

// keep writes a small file into a private directory, which it makes.
func (v *Vault) keep(dir, name, content string) error {
	if err := privatedir.Make(v.state); err != nil {
		return err
	}
	root, err := privatedir.Open(dir, true)
	if err != nil {
		return err
	}
	defer root.Close()
	return atomicfile.WriteFile(root, name, []byte(content))
}
