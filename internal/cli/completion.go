package cli

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

// completionTime is what a shell's user may be kept waiting for names. (Variable for tests.)
var completionTime = 500 * time.Millisecond

var shells = []string{"bash", "zsh", "fish", "powershell"}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print the completion script for a shell: " + strings.Join(shells, ", "),
		Long: `Print a script that completes commands, flags and names (never values) in a
shell. To load it in every session:

  bash         source <(credproxy completion bash)            in ~/.bashrc
  zsh          source <(credproxy completion zsh)             in ~/.zshrc
  fish         credproxy completion fish | source             in config.fish
  powershell   credproxy completion powershell | Out-String | Invoke-Expression

bash needs the package bash-completion; zsh an earlier line in ~/.zshrc:
autoload -U compinit; compinit`,
		Args:              exactly("SHELL"),
		ValidArgsFunction: cobra.FixedCompletions(shells, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			var script bytes.Buffer
			var err error
			switch args[0] {
			case "bash":
				err = root.GenBashCompletionV2(&script, true)
			case "zsh":
				err = root.GenZshCompletion(&script)
			case "fish":
				err = root.GenFishCompletion(&script, true)
			case "powershell":
				err = root.GenPowerShellCompletionWithDesc(&script)
			default:
				return usage("SHELL is one of %s", strings.Join(shells, ", ")).about(c)
			}
			if err != nil {
				return failed("completion", err)
			}
			return a.write(script.String())
		},
	}
}

type completer = func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective)

// completeFirst completes the first argument with names; what goes wrong completes nothing.
func completeFirst(names func(ctx context.Context) []string) completer {
	return func(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(c.Context(), completionTime)
		defer cancel()
		var fitting []cobra.Completion
		for _, n := range names(ctx) {
			if strings.HasPrefix(n, typed) {
				fitting = append(fitting, n)
			}
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
}

// quietly opens the credentials for completion: nobody is asked for a passphrase in the middle of a command line.
func quietly(ctx context.Context) (tokens, keys, func()) {
	none := func() {}
	if inside() {
		t, err := insideTokens(ctx)
		if err != nil {
			return nil, nil, none
		}
		k, err := openInsideKeys(ctx)
		if err != nil {
			return nil, nil, none
		}
		return t, k, none
	}
	c, dirs, err := settings()
	if err != nil {
		return nil, nil, none
	}
	v, err := vault.Open(ctx, vault.Options{Config: c, Dirs: dirs, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, none
	}
	h := &host{v, c, dirs}
	return h, hostKeys{h}, func() { _ = v.Close() }
}

func (a *app) completeLogins(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFirst(func(ctx context.Context) []string {
		t, _, done := quietly(ctx)
		defer done()
		if t == nil {
			return nil
		}
		providers, err := t.Providers(ctx)
		if err != nil {
			return nil
		}
		var names []string
		for _, p := range providers {
			buckets, err := t.Buckets(ctx, p)
			if err != nil {
				return names
			}
			for _, b := range buckets {
				names = append(names, login{p, b}.name())
			}
		}
		return names
	})(c, args, typed)
}

func (a *app) completeProviders(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFirst(func(context.Context) []string {
		c, _, err := settings()
		if err != nil {
			return nil
		}
		return providerNames(c)
	})(c, args, typed)
}

func (a *app) completeKeys(c *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFirst(func(ctx context.Context) []string {
		_, k, done := quietly(ctx)
		defer done()
		if k == nil {
			return nil
		}
		names, err := k.names(ctx)
		if err != nil {
			return nil
		}
		return slices.DeleteFunc(names, func(n string) bool { return !wire.ValidName(n) })
	})(c, args, typed)
}

var completeProfiles completer = completeFirst(func(context.Context) []string {
	c, _, err := settings()
	if err != nil {
		c = config.Default()
	}
	return profileNames(c)
})
