package vault

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
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

// termsDir and installFile are in the state directory.
const (
	termsDir    = "terms"
	installFile = "install-id"
)

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

// install returns the stable name of this installation, a random UUID (RFC 9562 section 5.4), which is made when it is
// asked for first. It tells nothing of the machine or the person.
func (v *Vault) install() (string, error) {
	path := filepath.Join(v.state, installFile)
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == 36 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the id of this installation: %w", err)
	}
	var u [16]byte
	_, _ = rand.Read(u[:]) // never fails
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	id := fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	if err := v.keep(v.state, installFile, id+"\n"); err != nil {
		return "", fmt.Errorf("the id of this installation: %w", err)
	}
	return id, nil
}
