package refresh_test

import (
	"encoding/json"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/internal/vault/internal/refresh"
)

// task is what a child process is to do. It goes to it in JSON; there is no secret in it.
type task struct {
	Role    string
	Place   place
	Buckets []string // of acme's logins
	Step    string   // where it stops for ever
	Number  int      // how many goroutines ask
}

var roles = systest.Roles{
	"refresh one after the other": given(refreshAll),
	"many ask at once":            given(askAtOnce),
}

// given is a role whose argument is its task.
func given(role func(task) error) func(args []string) error {
	return func(args []string) error {
		var do task
		if err := json.Unmarshal([]byte(args[0]), &do); err != nil {
			return err
		}
		return role(do)
	}
}

func TestMain(m *testing.M) {
	roles.Play()
	refresh.SetLookLimit(time.Minute) // which only the test pays that has a lock held
	goleak.VerifyTestMain(m)
}
