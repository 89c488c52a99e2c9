package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/client"
	"github.com/credproxy/credproxy/internal/vault"
	"github.com/credproxy/credproxy/wire"
)

func (a *app) keyCommand() *cobra.Command {
	return group("key", "Store and read API keys",
		`API keys are stored on the host. A sandbox reads those that its profile allows;
it cannot set or remove any.`,
		a.keySetCommand(), a.keyGetCommand(), a.keyListCommand(), a.keyRemoveCommand())
}

func (a *app) keySetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME",
		Short: "Store an API key, from a prompt or stdin",
		Long: `Store an API key under NAME, replacing the one that was there. The value is typed
at a prompt that does not show it, or read from stdin to its end; white space
around it is taken off. It is never an argument: arguments can be read by every
process on the machine and stay in the shell's history.`,
		Example: `  credproxy key set openai
  pass show openai | credproxy key set openai`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &failure{
					what: "key set", status: exitUsage,
					err:  errors.New("the value does not go into the arguments, where every process on the machine can read it"),
					hint: "run credproxy key set NAME and type it at the prompt, or pipe it in; consider the one you typed as seen by others",
				}
			}
			return exactly("NAME")(c, args)
		},
		ValidArgsFunction: a.completeKeys,
		RunE: func(c *cobra.Command, args []string) error {
			name, err := parseKeyName(c, args[0])
			if err != nil {
				return err
			}
			what := "key set " + shown(name, "NAME")
			if inside() {
				return failed(what, client.ErrSandboxKeys)
			}
			// The store first: whoever types a key should not learn afterwards that it cannot be stored.
			h, err := a.openHost(c.Context())
			if err != nil {
				return failed(what, err)
			}
			defer h.Close()
			if isTerminal(a.stdin) {
				if err := h.Check(c.Context()); err != nil {
					return failed(what, err)
				}
			}
			value, err := a.readKey(c.Context(), name)
			if err != nil {
				return failed(what, err)
			}
			if err := h.SetAPIKey(c.Context(), name, value); err != nil {
				return failed(what, err)
			}
			fmt.Fprintf(a.stderr, "stored the key %s in the %s store\n", name, h.StoreName())
			return nil
		},
	}
}

// readKey reads the value from a prompt if stdin is a terminal, else from stdin to its end.
func (a *app) readKey(ctx context.Context, name string) (string, error) {
	if isTerminal(a.stdin) {
		line, err := ask(ctx, a.stdin, "value of the key "+shown(name, "NAME")+" (not shown): ")
		if err == nil && strings.TrimSpace(line) == "" {
			err = errors.New("nothing was typed")
		}
		return line, err
	}
	// One byte more than allowed tells what is too long from what just fits; white space around it does not count.
	b, err := readAll(ctx, io.LimitReader(a.stdin, 2*vault.MaxKeyLen))
	switch value := strings.TrimSpace(string(b)); {
	case err != nil:
		return "", fmt.Errorf("reading stdin: %w", err)
	case value == "":
		return "", &failure{err: errors.New("stdin is empty"), hint: "pipe the key in, or run credproxy key set " + shown(name, "NAME") + " in a terminal to be asked for it"}
	case len(b) == 2*vault.MaxKeyLen:
		return "", fmt.Errorf("the key is longer than %d KiB", vault.MaxKeyLen>>10)
	default:
		return value, nil
	}
}

// readAll is io.ReadAll until ctx ends. A read that nobody ends is left behind then, with its goroutine: the process ends.
func readAll(ctx context.Context, r io.Reader) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b, err := io.ReadAll(r)
		done <- result{b, err}
	}()
	select {
	case got := <-done:
		return got.b, got.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keys is what the vault and the proxy's client both can.
type keys interface {
	read(ctx context.Context, name string) (key wire.APIKey, found bool, err error)
	names(ctx context.Context) ([]string, error)
}

func (a *app) openKeys(ctx context.Context) (_ keys, done func(), err error) {
	if inside() {
		k, err := openInsideKeys(ctx)
		return k, func() {}, err
	}
	h, err := a.openHost(ctx)
	if err != nil {
		return nil, nil, err
	}
	return hostKeys{h}, func() { _ = h.Close() }, nil
}

type hostKeys struct{ *host }

func (h hostKeys) read(ctx context.Context, name string) (wire.APIKey, bool, error) {
	key, err := h.APIKey(ctx, name)
	if errors.Is(err, wire.ErrNotFound) {
		return "", false, nil
	}
	return key, err == nil, err
}

func (h hostKeys) names(ctx context.Context) ([]string, error) { return h.APIKeys(ctx) }

func (a *app) keyGetCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "get NAME",
		Short:             "Print an API key",
		Long:              "Print an API key and a newline on stdout, nothing else.",
		Example:           `  OPENAI_API_KEY=$(credproxy key get openai) agent`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeKeys,
		RunE: func(c *cobra.Command, args []string) error {
			name, err := parseKeyName(c, args[0])
			if err != nil {
				return err
			}
			what := "key get " + shown(name, "NAME")
			ks, done, err := a.openKeys(c.Context())
			if err != nil {
				return failed(what, err)
			}
			defer done()
			key, found, err := ks.read(c.Context(), name)
			if err != nil {
				return failed(what, err)
			}
			if !found {
				return keyNotFound(c.Context(), what, name, ks)
			}
			return a.write(string(key) + "\n")
		},
	}
}

func keyNotFound(ctx context.Context, what, name string, ks keys) *failure {
	f := &failure{what: what, err: errNotStored, status: exitNotFound, hint: "store it: credproxy key set " + shown(name, "NAME")}
	if inside() {
		f.hint = "store it on the host: credproxy key set " + shown(name, "NAME")
	}
	if names, err := ks.names(ctx); err == nil {
		if near := nearest(name, names); near != "" {
			f.hint = "did you mean " + near + "?"
		}
	}
	return f
}

func (a *app) keyListCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the names of the stored API keys",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			ks, done, err := a.openKeys(c.Context())
			if err != nil {
				return failed("key list", err)
			}
			defer done()
			names, err := ks.names(c.Context())
			if err != nil {
				return failed("key list", err)
			}
			slices.Sort(names)
			if asJSON {
				type object struct {
					Name string `json:"name"`
				}
				list := []object{}
				for _, n := range names {
					list = append(list, object{n})
				}
				return a.writeJSON(list)
			}
			if len(names) == 0 {
				fmt.Fprintln(a.stderr, "no API keys are stored; credproxy key set NAME stores one")
				return nil
			}
			return a.write(strings.Join(names, "\n") + "\n")
		},
	}
	jsonFlag(c, &asJSON)
	return c
}

func (a *app) keyRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "remove NAME",
		Aliases:           []string{"rm"},
		Short:             "Remove an API key",
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeKeys,
		RunE: func(c *cobra.Command, args []string) error {
			name, err := parseKeyName(c, args[0])
			if err != nil {
				return err
			}
			what := "key remove " + shown(name, "NAME")
			if inside() {
				return failed(what, client.ErrSandboxKeys)
			}
			h, err := a.openHost(c.Context())
			if err != nil {
				return failed(what, err)
			}
			defer h.Close()
			err = h.RemoveAPIKey(c.Context(), name)
			if errors.Is(err, wire.ErrNotFound) {
				f := keyNotFound(c.Context(), what, name, hostKeys{h})
				if !strings.HasPrefix(f.hint, "did you mean") {
					f.hint = "credproxy key list shows the names"
				}
				return f
			}
			if err != nil {
				return failed(what, err)
			}
			fmt.Fprintf(a.stderr, "removed the key %s\n", name)
			return nil
		},
	}
}
