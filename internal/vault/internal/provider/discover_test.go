package provider

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

// issuer serves metadata at the paths that it is given.
type issuer struct {
	s *httptest.Server

	mu    sync.Mutex
	pages map[string]http.HandlerFunc
	asked []string
}

func startIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{pages: map[string]http.HandlerFunc{}}
	i.s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked = append(i.asked, r.Method+" "+r.URL.RequestURI())
		page := i.pages[r.URL.Path]
		i.mu.Unlock()
		if page == nil {
			http.NotFound(w, r)
			return
		}
		page(w, r)
	}))
	t.Cleanup(i.s.Close)
	return i
}

// describes is a page with metadata, whose usual members are changed.
func describes(issuer string, change func(map[string]any)) http.HandlerFunc {
	m := map[string]any{
		"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t",
		"device_authorization_endpoint": issuer + "/d", "revocation_endpoint": issuer + "/r",
	}
	if change != nil {
		change(m)
	}
	return func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(m) }
}

const (
	byRFC8414 = "/.well-known/oauth-authorization-server"
	byOIDC    = "/.well-known/openid-configuration"
)

// Where metadata are looked for, and in what order.
func TestDiscoveryPaths(t *testing.T) {
	for _, c := range []struct {
		issuer string // its path
		at     string // where the metadata are
		asked  []string
	}{
		{"", byRFC8414, []string{byRFC8414}},
		{"/", byRFC8414, []string{byRFC8414}},
		{"", byOIDC, []string{byRFC8414, byOIDC}},
		{"/tenant/1", byRFC8414 + "/tenant/1", []string{byRFC8414 + "/tenant/1"}},
		{"/tenant/1/", byRFC8414 + "/tenant/1", []string{byRFC8414 + "/tenant/1"}},
		{"/tenant/1", "/tenant/1" + byOIDC, []string{byRFC8414 + "/tenant/1", "/tenant/1" + byOIDC}},
		{"/tenant/1/", byOIDC + "/tenant/1", []string{byRFC8414 + "/tenant/1", "/tenant/1" + byOIDC, byOIDC + "/tenant/1"}},
	} {
		i := startIssuer(t)
		of := i.s.URL + c.issuer
		i.pages[c.at] = describes(of, nil)
		p := &Provider{Name: "acme", Issuer: of, ClientID: "id"}
		r, err := NewClient().Resolve(t.Context(), p)
		if err != nil {
			t.Errorf("%s: %v", c.issuer, err)
			continue
		}
		if r.AuthorizeURL != of+"/a" || r.TokenURL != of+"/t" || r.DeviceURL != of+"/d" || r.RevokeURL != of+"/r" || strings.Join(r.Flows, " ") != "browser device paste" {
			t.Errorf("%s: %+v", c.issuer, r)
		}
		if p.TokenURL != "" || p.Flows != nil {
			t.Error("it changed what it was given")
		}
		for n, path := range c.asked {
			c.asked[n] = "GET " + path
		}
		if !slices.Equal(i.asked, c.asked) {
			t.Errorf("%s: asked %q, want %q", c.issuer, i.asked, c.asked)
		}
	}
}

// The description comes before the metadata; what is missing nowhere is not asked for.
func TestDiscoveryFillsWhatIsMissing(t *testing.T) {
	i := startIssuer(t)
	i.pages[byRFC8414] = describes(i.s.URL, func(m map[string]any) { delete(m, "revocation_endpoint") })
	const own = "https://acme.example/own"
	for name, c := range map[string]struct {
		p     Provider
		asked bool
		want  [4]string // authorize, token, device, revoke
		flows string
	}{
		"issuer alone":        {Provider{}, true, [4]string{"/a", "/t", "/d", ""}, "browser device paste"},
		"a token endpoint":    {Provider{TokenURL: own}, true, [4]string{"/a", own, "/d", ""}, "browser device paste"},
		"all that is needed":  {Provider{TokenURL: own, AuthorizeURL: own}, false, [4]string{own, own, "", ""}, ""},
		"a flow without":      {Provider{TokenURL: own, AuthorizeURL: own, Flows: []string{"browser", "device"}}, true, [4]string{own, own, "/d", ""}, "browser device"},
		"a page that pastes":  {Provider{RedirectURL: own}, true, [4]string{"/a", "/t", "/d", ""}, "paste device"},
		"flows of its own":    {Provider{Flows: []string{"paste"}}, true, [4]string{"/a", "/t", "/d", ""}, "paste"},
		"no flows at all":     {Provider{Flows: []string{}}, true, [4]string{"/a", "/t", "/d", ""}, ""},
		"flows of a dialect":  {Provider{Dialect: "anthropic"}, true, [4]string{"/a", "/t", "/d", ""}, "paste browser device"},
		"a device, no issuer": {Provider{Issuer: "-", TokenURL: own}, false, [4]string{"", own, "", ""}, ""},
	} {
		c.p.Name = "acme"
		if c.p.Issuer == "" {
			c.p.Issuer = i.s.URL
		} else {
			c.p.Issuer = ""
		}
		before := len(i.asked)
		r, err := NewClient().Resolve(t.Context(), &c.p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for n, w := range c.want {
			if strings.HasPrefix(w, "/") {
				c.want[n] = i.s.URL + w
			}
		}
		if got := [4]string{r.AuthorizeURL, r.TokenURL, r.DeviceURL, r.RevokeURL}; got != c.want || strings.Join(r.Flows, " ") != c.flows {
			t.Errorf("%s: %q %q", name, got, r.Flows)
		}
		if (len(i.asked) > before) != c.asked || (r == &c.p) == c.asked {
			t.Errorf("%s: asked %t", name, !c.asked)
		}
	}
}

// Metadata that are not to be trusted, and failures to get any.
func TestDiscoveryFailures(t *testing.T) {
	set := func(name string, value any) func(string) http.HandlerFunc {
		return func(of string) http.HandlerFunc {
			return describes(of, func(m map[string]any) { m[name] = value })
		}
	}
	answer := func(status int, body string) func(string) http.HandlerFunc {
		return func(string) http.HandlerFunc {
			return func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Retry-After", "7")
				w.Header().Set("Location", byOIDC+"/test-canary")
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
			}
		}
	}
	for name, c := range map[string]struct {
		page func(issuer string) http.HandlerFunc
		kind Kind
		text string
	}{
		"nothing":                   {func(string) http.HandlerFunc { return nil }, Unclear, "no metadata (HTTP 404)"},
		"another issuer":            {set("issuer", "https://test-canary.example"), Unclear, "another issuer's"},
		"no issuer":                 {set("issuer", nil), Unclear, "another issuer's"},
		"an issuer of another type": {set("issuer", []string{"x"}), Unclear, "another issuer's"},
		"a slash more": {func(of string) http.HandlerFunc {
			return describes(of, func(m map[string]any) { m["issuer"] = of + "/" })
		}, Unclear, "written exactly"},
		"http token endpoint":   {set("token_endpoint", "http://test-canary.example/t"), Unclear, "not https"},
		"http page":             {set("authorization_endpoint", "http://test-canary.example/a"), Unclear, "not https"},
		"http device endpoint":  {set("device_authorization_endpoint", "http://test-canary.example/d"), Unclear, "not https"},
		"http revocation":       {set("revocation_endpoint", "http://test-canary.example/d"), Unclear, "not https"},
		"a file":                {set("token_endpoint", "file:///test-canary"), Unclear, "not https"},
		"a user in it":          {set("token_endpoint", "https://a:test-canary@b.example/t"), Unclear, "not https"},
		"a fragment in it":      {set("token_endpoint", "https://b.example/t#test-canary"), Unclear, "not https"},
		"no URL":                {set("token_endpoint", "://test-canary"), Unclear, "not https"},
		"no token endpoint":     {set("token_endpoint", nil), Unclear, "no token endpoint"},
		"a token endpoint of 7": {set("token_endpoint", 7), Unclear, "no token endpoint"},
		"no JSON":               {answer(200, "<p>test-canary</p>"), Unclear, "not a JSON object"},
		"a list":                {answer(200, "[]"), Unclear, "not a JSON object"},
		"null":                  {answer(200, "null"), Unclear, "not a JSON object"},
		"half of it":            {answer(200, `{"issuer":"test-canary`), Unclear, "not a JSON object"},
		"too much":              {answer(200, `{"a":"`+strings.Repeat("x", 256<<10)+`"}`), Unclear, "256 KiB"},
		"a redirect":            {answer(302, "test-canary"), Unclear, "redirect"},
		"forbidden":             {answer(403, "test-canary"), Unclear, "(HTTP 403)"},
		"its own trouble":       {answer(503, "test-canary"), Transient, "(HTTP 503)"},
		"too many requests":     {answer(429, "test-canary"), Transient, "(HTTP 429)"},
		"a connection that ends": {func(string) http.HandlerFunc {
			return func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
		}, Transient, "cannot be reached"},
	} {
		i := startIssuer(t)
		if page := c.page(i.s.URL); page != nil {
			i.pages[byRFC8414] = page
		}
		p := &Provider{Name: "acme", Issuer: i.s.URL, ClientID: "id"}
		client := NewClient()
		_, err := client.Resolve(t.Context(), p)
		e := asError(t, err)
		if e.Kind != c.kind || !strings.Contains(err.Error(), c.text) || strings.Contains(texts(err), "canary") || strings.Contains(texts(err), "http://") {
			t.Errorf("%s: kind %d: %v", name, e.Kind, err)
		}
		if e.Kind == Transient && e.Status != 0 && e.RetryAfter != 7*time.Second {
			t.Errorf("%s: Retry-After %v", name, e.RetryAfter)
		}
		// Whoever needs an endpoint gets the same error, before anything secret is sent. A refresh is not over because of it.
		_, refresh := client.Refresh(t.Context(), p, stored(), secret.String{}, func(Answer) { t.Error("an answer") })
		_, authorize := client.Authorize(t.Context(), p, defaultRedirect)
		_, device := client.StartDevice(t.Context(), p, secret.String{})
		for what, err := range map[string]error{
			"refresh": refresh, "authorize": authorize, "device": device,
			"revoke": client.Revoke(t.Context(), p, secret.New("test-refresh-token-1"), "refresh_token", secret.String{}),
		} {
			if e := asError(t, err); e.Kind != c.kind || e.Revoked {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if bad := slices.IndexFunc(i.asked, func(r string) bool {
			return !strings.HasPrefix(r, "GET /.well-known/") || strings.Contains(r, "canary")
		}); bad >= 0 {
			t.Errorf("%s: asked %s", name, i.asked[bad])
		}
		// A failure is not remembered.
		i.mu.Lock()
		i.pages[byRFC8414] = describes(i.s.URL, nil)
		i.mu.Unlock()
		if _, err := client.Resolve(t.Context(), p); err != nil {
			t.Errorf("%s: afterwards: %v", name, err)
		}
	}
}

// The other place counts where the first is of no use.
func TestDiscoveryOtherPlace(t *testing.T) {
	for name, first := range map[string]http.HandlerFunc{
		"another issuer": describes("https://elsewhere.example", nil),
		"a page":         func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<p>welcome")) },
		"trouble":        func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
	} {
		i := startIssuer(t)
		i.pages[byRFC8414], i.pages[byOIDC] = first, describes(i.s.URL, nil)
		if r, err := NewClient().Resolve(t.Context(), &Provider{Name: "acme", Issuer: i.s.URL}); err != nil || r.TokenURL != i.s.URL+"/t" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An issuer far away does not send requests to this machine, and one that cannot be one is not asked.
func TestDiscoveryIssuers(t *testing.T) {
	for _, bad := range []string{"http://acme.example", "acme.example", "https://acme.example?tenant=1", "https://acme.example#a", "https://a:b@acme.example", "ftp://acme.example", "https://"} {
		_, err := NewClientWith(refuseAll{t}).Resolve(t.Context(), &Provider{Name: "acme", Issuer: bad})
		if e := asError(t, err); e.Kind != Unclear || strings.Contains(err.Error(), "acme.example") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	v, c := startVendors(t)
	v.answer(`{"issuer":"https://acme.example","token_endpoint":"http://127.0.0.1:8080/t"}`, `404 {}`)
	_, err := c.Resolve(t.Context(), &Provider{Name: "acme", Issuer: "https://acme.example"})
	if e := asError(t, err); e.Kind != Unclear || !strings.Contains(err.Error(), "not https") {
		t.Errorf("%v", err)
	}
	v.answer(`{"issuer":"https://acme.example","token_endpoint":"https://token.example/t"}`)
	if r, err := c.Resolve(t.Context(), &Provider{Name: "acme", Issuer: "https://acme.example"}); err != nil || r.TokenURL != "https://token.example/t" {
		t.Errorf("%v", err)
	}
}

// Metadata are asked for once an hour, and not for longer than a request may take.
func TestDiscoveryTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := oauthtest.StartPipe(oauthtest.Options{Issuer: "http://127.0.0.1"})
		if err != nil {
			t.Fatal(err)
		}
		c := NewClientWith(s.Client().Transport)
		defer func() {
			c.Close()
			_ = s.Close(context.Background())
		}()
		p := &Provider{Name: "acme", Issuer: "http://127.0.0.1", ClientID: "test-client"}
		for _, step := range []struct {
			after time.Duration
			calls int
		}{{0, 1}, {59 * time.Minute, 1}, {time.Minute, 2}, {time.Minute, 2}} {
			time.Sleep(step.after)
			if _, err := c.Resolve(t.Context(), p); err != nil || s.Calls(oauthtest.Metadata) != step.calls {
				t.Errorf("after %v: %d requests: %v", step.after, s.Calls(oauthtest.Metadata), err)
			}
		}
		time.Sleep(time.Hour)
		s.Fault(oauthtest.Metadata, oauthtest.Fault{Delay: time.Minute}, 1)
		began := time.Now()
		_, err = c.Resolve(t.Context(), p)
		if e := asError(t, err); e.Kind != Transient || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != requestTimeout {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// A whole login at a server of which only the issuer is known, with a path.
func TestLoginByIssuer(t *testing.T) {
	s, err := oauthtest.Start(oauthtest.Options{IssuerPath: "/tenant", SendIssuer: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	c := NewClient()
	p := FromConfig(&config.Provider{Name: "acme", Dialect: "oauth2", Issuer: s.URL(), ClientID: "test-client"})
	a, err := c.Authorize(t.Context(), p, "http://127.0.0.1:4711/callback")
	if err != nil {
		t.Fatal(err)
	}
	q := approve(t, s, a)
	// The issuer says that it names itself in every answer (RFC 9207 section 2.4).
	without := maps.Clone(q)
	delete(without, "iss")
	if _, err := c.Exchange(t.Context(), a, without, secret.String{}); err == nil || !strings.Contains(err.Error(), "another issuer") {
		t.Errorf("without iss: %v", err)
	}
	g, err := c.Exchange(t.Context(), a, q, secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	g, err = c.Refresh(t.Context(), p, g, secret.String{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Revoke(t.Context(), p, g.RefreshToken, "refresh_token", secret.String{}); err != nil || s.Valid(g.AccessToken.Reveal()) {
		t.Errorf("revoke: %v", err)
	}
	l, err := c.StartDevice(t.Context(), p, secret.String{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.PollDevice(t.Context(), l, secret.String{}); err != nil {
		t.Error(err)
	}
	if n := s.Calls(oauthtest.Metadata); n != 1 {
		t.Errorf("the metadata were asked for %d times", n)
	}
}
