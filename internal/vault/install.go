package vault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

// installFile is in the state directory.
const installFile = "install-id"

// install returns the stable name of this installation, a random UUID, which is made when it is asked for first. It tells
// nothing of the machine or the person.
func (v *Vault) install() (string, error) {
	b, err := os.ReadFile(filepath.Join(v.state, installFile))
	if id := strings.TrimSpace(string(b)); err == nil && len(id) == 36 {
		return id, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the id of this installation: %w", err)
	}
	id := provider.NewUUID()
	if err := v.keep(v.state, installFile, id+"\n"); err != nil {
		return "", fmt.Errorf("the id of this installation: %w", err)
	}
	return id, nil
}
