package refresh_test

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// task is what a child process is to do. It goes to it in JSON, in the environment; there is no secret in it.
type task struct {
	Role    string
	Place   place
	Buckets []string // of acme's logins
	Step    string   // where it stops for ever
	Number  int      // how many goroutines ask
}

// roles are what this test binary does as a child process of a test.
var roles = map[string]func(task) error{}

const taskVar = "CREDPROXY_TEST_TASK"

func TestMain(m *testing.M) {
	if text := os.Getenv(taskVar); text != "" {
		var do task
		err := json.Unmarshal([]byte(text), &do)
		if err == nil {
			err = roles[do.Role](do)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "child %q: %v\n", do.Role, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
