// Command credproxy keeps OAuth logins and API keys on the host and lets programs in sandboxes use them.
package main

import (
	"os"

	"github.com/credproxy/credproxy/internal/cli"
)

func main() { os.Exit(cli.Main()) }
