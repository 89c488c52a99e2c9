package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/daemon"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/privatedir"
	"github.com/credproxy/credproxy/internal/sandbox"
)

// demoTime bounds the whole demo.
const demoTime = 3 * time.Minute

func (a *app) demoCommand() *cobra.Command {
	var engine string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show it at work: a real login, a real sandbox, and what the sandbox cannot get",
		Long: `Start a real OAuth 2.0 authorization server on loopback, log in to it, run programs
in the best sandbox there is, and show from inside what they get and what they
do not. Nothing of yours is touched: configuration, stores and sockets are in a
temporary directory, which is removed at the end.

Each line says what was tried and what came back. The exit status is 1 if anything
differs from what it should be, and 7 without a sandbox engine.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if inside() {
				return hostOnly("demo", "this is a sandbox already")
			}
			if !isEngine(engine) {
				return notOneOf(engineRule, engine, engines).about(c)
			}
			ctx, cancel := context.WithTimeout(c.Context(), demoTime)
			defer cancel()
			return failed("demo", a.demo(ctx, sandbox.Kind(engine)))
		},
	}
	c.Flags().StringVar(&engine, "engine", string(sandbox.Auto), "auto, docker, podman or bwrap")
	_ = c.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engines, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// demo is one demonstration. Everything belongs to the goroutine that runs it.
type demo struct {
	app    *app
	self   string // this program
	home   string // CREDPROXY_HOME of every command that it runs
	server *oauthtest.Server
	engine sandbox.Kind
	image  string // for docker and podman
	keys   [2]string

	failed int
	runs   []int // process ids of the runs
	socket string
}

func (a *app) demo(ctx context.Context, engine sandbox.Kind) (err error) {
	d := &demo{app: a}
	if d.self, err = os.Executable(); err != nil {
		return err
	}
	// Else every engine would be blamed for it.
	if _, err := trySocket(); err != nil {
		return failed("no proxy can start", err)
	}
	top, err := os.MkdirTemp(demoParent(), "credproxy-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(top)
	d.home = filepath.Join(top, "home")
	if err := privatedir.Make(d.home); err != nil {
		return err
	}
	d.server, err = oauthtest.Start(oauthtest.Options{
		Clients: []oauthtest.Client{{ID: "credproxy-demo", RedirectURIs: []string{"http://127.0.0.1/callback"}}},
		Extra:   map[string]any{"account_id": "demo-account"},
	})
	if err != nil {
		return err
	}
	defer func() { _ = d.server.Close(context.WithoutCancel(ctx)) }()
	if err := d.configure(); err != nil {
		return err
	}
	if err := d.choose(ctx, engine); err != nil {
		return err
	}
	defer func() {
		if imageErr := d.dropImage(context.WithoutCancel(ctx)); err == nil {
			err = imageErr
		}
	}()
	d.title("A real authorization server runs on " + d.server.URL() + ". On the host:")
	if !d.logIn(ctx) {
		return errDiffers
	}
	d.title("Inside a sandbox (" + string(d.engine) + "), where a profile allows demo/default, demo/inside and the key demo-key:")
	d.insideSteps(ctx)
	d.title("Afterwards, on the host:")
	d.afterwards(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d.failed > 0 {
		return errDiffers
	}
	d.title("All of it as it should be.")
	return nil
}

var errDiffers = errors.New("what came back is not what should have; see the lines with FAIL")

func (d *demo) title(s string) {
	_ = d.app.write("\n" + d.app.paint(d.app.stdout).bold(s) + "\n")
}

// step does one thing and prints what was tried and what came back.
func (d *demo) step(tried string, f func() (cameBack string, err error)) bool {
	p := d.app.paint(d.app.stdout)
	cameBack, err := f()
	if err != nil {
		d.failed++
		_ = d.app.write(fmt.Sprintf("%s  %s\n      → %s\n", p.red("FAIL"), tried, oneLine(err.Error())))
		return false
	}
	_ = d.app.write(fmt.Sprintf("%s    %s\n      → %s\n", p.green("ok"), tried, oneLine(cameBack)))
	return true
}

func (d *demo) configure() error {
	text := fmt.Sprintf(`store = "file"

[file_store]
key = "file"

[providers.demo]
client_id = "credproxy-demo"
authorize_url = %q
token_url = %q
revoke_url = %q
redirect_url = "http://127.0.0.1/callback"
scopes = ["demo"]
token_fields = ["account_id"]

[profiles.demo]
keys = ["demo-key"]
[profiles.demo.providers]
demo = ["default", "inside"]
`, d.server.EndpointURL(oauthtest.Authorize), d.server.EndpointURL(oauthtest.Token), d.server.EndpointURL(oauthtest.Revoke))
	return os.WriteFile(filepath.Join(d.home, "config.toml"), []byte(text), 0o600)
}

// logIn makes two logins and stores two keys; the profile of the sandbox allows the first of each.
func (d *demo) logIn(ctx context.Context) bool {
	for _, l := range []string{"demo", "demo/other"} {
		if !d.step("credproxy auth login "+l, func() (string, error) {
			return d.browse(ctx, "auth", "login", l, "--no-browser")
		}) {
			return false
		}
	}
	for i, name := range []string{"demo-key", "demo-other-key"} {
		d.keys[i] = fmt.Sprintf("demo-api-key-%d-%s", i+1, randomText())
		if !d.step("credproxy key set "+name, func() (string, error) {
			r := d.command(ctx, d.keys[i], "key", "set", name)
			return "stored, read from stdin", r.expect(0)
		}) {
			return false
		}
	}
	return true
}

// browse logs in as a person would: it opens the address that a command prints and follows the redirects.
func (d *demo) browse(ctx context.Context, command ...string) (string, error) {
	before := d.server.Issued()
	r, err := d.commandWithURL(ctx, func(url string) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return errors.New("the page could not be opened")
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("the page at the end answered %s", response.Status)
		}
		return nil
	}, command...)
	if err == nil {
		err = r.expect(0)
	}
	if err != nil {
		return "", err
	}
	now := d.server.Issued()
	access, refresh := len(now.AccessTokens)-len(before.AccessTokens), len(now.RefreshTokens)-len(before.RefreshTokens)
	if access != 1 || refresh != 1 {
		return "", fmt.Errorf("the server issued %d access tokens and %d refresh tokens", access, refresh)
	}
	return "approved in a browser (PKCE, redirect to loopback); an access token and a refresh token are in the encrypted store", nil
}

func (d *demo) insideSteps(ctx context.Context) {
	var token string
	d.step("credproxy token demo", func() (string, error) {
		r := d.inside(ctx, "credproxy", "token", "demo")
		if err := r.expect(0); err != nil {
			return "", err
		}
		token = strings.TrimSuffix(r.stdout, "\n")
		return d.use(ctx, token)
	})
	d.step("credproxy token demo --json", func() (string, error) {
		r := d.inside(ctx, "credproxy", "token", "demo", "--json")
		if err := r.expect(0); err != nil {
			return "", err
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal([]byte(r.stdout), &fields); err != nil {
			return "", errors.New("the answer is not JSON")
		}
		if err := d.noRefreshToken(r.stdout); err != nil {
			return "", err
		}
		return "the fields are " + strings.Join(sortedKeys(fields), ", ") + "; no refresh token", nil
	})
	d.step("credproxy key get demo-key", func() (string, error) {
		r := d.inside(ctx, "credproxy", "key", "get", "demo-key")
		if err := r.expect(0); err != nil {
			return "", err
		}
		if r.stdout != d.keys[0]+"\n" {
			return "", errors.New("a key came back, but not the one that was stored")
		}
		return "the key that was stored", nil
	})
	for _, refused := range [][]string{{"token", "demo/other"}, {"key", "get", "demo-other-key"}} {
		d.step("credproxy "+strings.Join(refused, " ")+" (not in the profile)", func() (string, error) {
			r := d.inside(ctx, append([]string{"credproxy"}, refused...)...)
			return fmt.Sprintf("refused, exit status %d: %s", r.status, firstLine(r.stderr)), r.expect(exitRefused)
		})
	}
	d.step("credproxy auth login demo/inside (the page opens on the host)", func() (string, error) {
		if _, err := d.browse(ctx, d.runInside("credproxy", "auth", "login", "demo/inside")...); err != nil {
			return "", err
		}
		r := d.inside(ctx, "credproxy", "token", "demo/inside")
		if err := r.expect(0); err != nil {
			return "", err
		}
		used, err := d.use(ctx, strings.TrimSuffix(r.stdout, "\n"))
		return "the host logged in and kept the refresh token; inside there is " + used, err
	})
	d.step("credproxy key set new-key (managing keys from inside)", func() (string, error) {
		r := d.inside(ctx, "credproxy", "key", "set", "new-key")
		return fmt.Sprintf("refused, exit status %d: %s", r.status, firstLine(r.stderr)), r.expect(exitFailed)
	})
	d.probe(ctx)
}

// use shows the token to the resource that the authorization server protects.
func (d *demo) use(ctx context.Context, token string) (string, error) {
	if !slices.Contains(d.server.Issued().AccessTokens, token) {
		return "", errors.New("what came back is no access token of the server")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.server.EndpointURL(oauthtest.Resource), nil)
	if err != nil {
		return "", err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", errors.New("the protected resource could not be reached")
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the protected resource answered %s to it", response.Status)
	}
	return "an access token; the protected resource answers 200 OK to it", nil
}

// noRefreshToken looks for the refresh tokens that the server really issued, and for their name.
func (d *demo) noRefreshToken(where ...string) error {
	for _, s := range where {
		for _, secret := range d.server.Issued().RefreshTokens {
			if strings.Contains(s, secret) {
				return errors.New("a refresh token came back")
			}
		}
		if strings.Contains(s, `"refresh_token"`) {
			return errors.New("a field refresh_token came back")
		}
	}
	return nil
}

// probe lets a program inside try everything it can think of, and looks at all that it got.
func (d *demo) probe(ctx context.Context) {
	dirs := config.Dirs{Config: d.home, State: filepath.Join(d.home, "state"), Data: filepath.Join(d.home, "data")}
	files := []string{filepath.Join(d.home, "config.toml"), daemon.AuditPath(dirs), dirs.Recovery("file")[0], dirs.Data}
	_ = filepath.WalkDir(dirs.Data, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files = append(files, path)
		}
		return nil
	})
	var report probeReport
	ran := d.step(fmt.Sprintf("a program that asks for a refresh token in %d ways", len(probeRequests)), func() (string, error) {
		r := d.inside(ctx, append([]string{"credproxy", "demo-probe"}, files...)...)
		if err := r.expect(0); err != nil {
			return "", err
		}
		if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
			return "", errors.New("the program's report is not JSON")
		}
		bytes := 0
		for _, answer := range report.Answers {
			bytes += len(answer)
		}
		for _, answer := range report.Answers {
			if strings.Contains(answer, d.keys[1]) {
				return "", errors.New("the key that the profile does not allow came back")
			}
		}
		return fmt.Sprintf("%d answers, %d bytes: none of the refresh tokens that the server issued", len(report.Answers), bytes), d.noRefreshToken(report.Answers...)
	})
	if !ran {
		return
	}
	d.step("the token renews: the same program asked for a new one (refresh_token)", func() (string, error) { return d.renewed(ctx, report.Answers) })
	d.step(fmt.Sprintf("reading the stores: %d files of the host", len(files)), func() (string, error) {
		whys := map[string]bool{}
		for file, why := range report.Files {
			if why == "" {
				return "", fmt.Errorf("%s can be read", file)
			}
			whys[why] = true
		}
		return strings.Join(sortedKeys(whys), ", "), nil
	})
	d.step("looking for secrets in the environment", func() (string, error) {
		for _, e := range report.Environment {
			for _, secret := range append(d.server.Issued().All(), d.keys[:]...) {
				if strings.Contains(e, secret) {
					name, _, _ := strings.Cut(e, "=")
					return "", errors.New("one is in " + name)
				}
			}
			if path, ok := strings.CutPrefix(e, socketVariable+"="); ok {
				d.socket = path
			}
		}
		return fmt.Sprintf("none in %d variables; %s names the socket", len(report.Environment), socketVariable), nil
	})
	d.step("looking for sockets of other sandboxes", func() (string, error) {
		if len(report.Sockets) != 1 || report.Sockets[0] != filepath.Base(d.socket) {
			return "", fmt.Errorf("there are %d: %s", len(report.Sockets), strings.Join(report.Sockets, ", "))
		}
		return "its own is the only one", nil
	})
}

// renewed looks at the answers to the first of the probe's requests, behind that to the handshake.
func (d *demo) renewed(ctx context.Context, answers []string) (string, error) {
	var tokens [3]string
	for i := range tokens {
		var answer struct {
			Data struct {
				AccessToken string `json:"access_token"`
			}
		}
		if i+1 >= len(answers) || json.Unmarshal([]byte(answers[i+1]), &answer) != nil || answer.Data.AccessToken == "" {
			return "", errors.New("no access token came back")
		}
		tokens[i] = answer.Data.AccessToken
	}
	if tokens[1] == tokens[0] || tokens[2] != tokens[1] {
		return "", errors.New("what came back is not one new access token that is stored then")
	}
	used, err := d.use(ctx, tokens[1])
	if err != nil {
		return "", err
	}
	uses := d.server.RefreshUses()
	if len(uses) != 1 || uses[0].Outcome != oauthtest.Accepted {
		return "", fmt.Errorf("the server was sent %d refresh tokens, or has refused one", len(uses))
	}
	if err := d.noRefreshToken(answers...); err != nil {
		return "", err
	}
	return "another " + strings.TrimPrefix(used, "an ") + "; on the host the refresh token was exchanged for a new one, and neither was seen inside", nil
}

// afterwards shows that nothing is left of the sandboxes, and that the login ends when its owner says so.
func (d *demo) afterwards(ctx context.Context) {
	d.step("looking for what the sandboxes left", func() (string, error) { return d.leftovers(ctx) })
	d.step("reading the audit log", func() (string, error) {
		b, err := os.ReadFile(daemon.AuditPath(config.Dirs{State: filepath.Join(d.home, "state")}))
		if err != nil {
			return "", errors.New("there is none")
		}
		for _, secret := range append(d.server.Issued().All(), d.keys[:]...) {
			if strings.Contains(string(b), secret) {
				return "", errors.New("a secret is in it")
			}
		}
		return fmt.Sprintf("%d events: who asked for what and what the answer was, and no secret", strings.Count(string(b), "\n")), nil
	})
	d.step("credproxy auth logout demo --revoke", func() (string, error) {
		r := d.command(ctx, "", "auth", "logout", "demo", "--revoke")
		if err := r.expect(0); err != nil {
			return "", err
		}
		if r = d.command(ctx, "", "token", "demo"); r.status != exitNotFound {
			return "", fmt.Errorf("credproxy token demo then exits with %d", r.status)
		}
		if f := d.server.Families(); len(f) == 0 || !f[0].Revoked {
			return "", errors.New("the server was not told")
		}
		return "removed from the store, and the server has revoked its tokens", nil
	})
}
