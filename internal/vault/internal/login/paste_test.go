package login

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/provider"
)

func TestPastedForms(t *testing.T) {
	for name, c := range map[string]struct {
		pasted string
		want   string // as a query; "" for ErrPaste
	}{
		"a code":                      {"ac-1", "code=ac-1"},
		"with white space":            {" \t ac-1 \r\n", "code=ac-1"},
		"in quotes":                   {`"ac-1"`, "code=ac-1"},
		"in angle brackets":           {"<https://x.example/cb?code=ac-1>", "code=ac-1"},
		"in typographic quotes":       {"“ac-1”", "code=ac-1"},
		"in both":                     {` '<ac-1>' `, "code=ac-1"},
		"with padding":                {"YWJj==", "code=YWJj%3D%3D"},
		"with what is no escape":      {"4/0Ab%2Fc+d", "code=4%2F0Ab%252Fc%2Bd"},
		"code and state":              {"ac-1#st-1", "code=ac-1&state=st-1"},
		"code and state, quoted":      {`"ac-1#st-1"`, "code=ac-1&state=st-1"},
		"parameters":                  {"code=ac-1&state=st-1", "code=ac-1&state=st-1"},
		"the other way round":         {"state=st-1&code=ac-1", "code=ac-1&state=st-1"},
		"with a question mark":        {"?code=ac-1&state=st-1", "code=ac-1&state=st-1"},
		"of a fragment":               {"#code=ac-1&state=st-1", "code=ac-1&state=st-1"},
		"one parameter, and a state":  {"code=ac-1#st-1", "code=ac-1&state=st-1"},
		"escaped":                     {"code=4%2F0Ab%2Bc&state=st-1", "code=4%2F0Ab%2Bc&state=st-1"},
		"an address":                  {"http://localhost:1455/auth/callback?code=ac-1&scope=a+b&state=st-1", "code=ac-1&state=st-1"},
		"without a scheme":            {"localhost:1455/auth/callback?code=ac-1&state=st-1", "code=ac-1&state=st-1"},
		"with a scheme of its own":    {"com.example.app:/cb?code=ac-1", "code=ac-1"},
		"with values in the fragment": {"https://x.example/cb#code=ac-1&state=st-1", "code=ac-1&state=st-1"},
		"with both, code in one":      {"https://x.example/cb?lang=de#code=ac-1", "code=ac-1"},
		"with an anchor":              {"https://x.example/cb?code=ac-1#_=_", "code=ac-1"},
		"with an issuer":              {"https://x.example/cb?code=ac-1&iss=https%3A%2F%2Fx.example", "code=ac-1&iss=https%3A%2F%2Fx.example"},
		"with a client id":            {"https://x.example/cb?code=ac-1&client_id=app_1&state=st-1", "client_id=app_1&code=ac-1&state=st-1"},
		"a denial":                    {"https://x.example/cb?error=access_denied&error_description=a+b&state=st-1", "error=access_denied&state=st-1"},
		"a denial, parameters only":   {"error=access_denied", "error=access_denied"},

		"nothing":                       {"", ""},
		"white space":                   {" \n", ""},
		"empty quotes":                  {`""`, ""},
		"a sentence":                    {"I closed the page", ""},
		"two lines":                     {"ac-1\nac-2", ""},
		"a control character":           {"ac-\x1b1", ""},
		"a byte that is no text":        {"ac-\xff", ""},
		"a letter that is no ASCII":     {"äc-1", ""},
		"too long":                      {strings.Repeat("a", maxPaste+1), ""},
		"too long with spaces":          {strings.Repeat(" ", maxPaste) + "a", ""},
		"a code without the state":      {"ac-1#", ""},
		"a state without the code":      {"#st-1", ""},
		"two hashes":                    {"ac-1#st-1#x", ""},
		"an empty code":                 {"code=&state=st-1", ""},
		"a code twice":                  {"code=ac-1&code=ac-2", ""},
		"a state twice":                 {"https://x.example/cb?code=ac-1&state=a&state=b", ""},
		"in query and fragment":         {"https://x.example/cb?code=ac-1#code=ac-2", ""},
		"an address without a code":     {"https://x.example/cb?state=st-1", ""},
		"an address only":               {"https://x.example/", ""},
		"a code and an error":           {"code=ac-1&error=access_denied", ""},
		"a broken escape":               {"code=ac%zz", ""},
		"an escaped control":            {"code=ac-1%0d%0aX", ""},
		"an escaped control, as state":  {"code=ac-1&state=%00", ""},
		"of HTML":                       {"code=ac-1&amp;state=st-1", ""},
		"the address that was opened":   {"https://x.example/authorize?code=true&client_id=a&code_challenge=b&state=st-1", ""},
		"a quote on one side is inside": {`"ac-1`, "code=%22ac-1"},
	} {
		q, err := parsePaste(c.pasted)
		switch {
		case c.want == "" && !errors.Is(err, ErrPaste):
			t.Errorf("%s: %v, want ErrPaste", name, err)
		case c.want != "" && (err != nil || q.Encode() != c.want):
			t.Errorf("%s: %q %v, want %q", name, q.Encode(), err, c.want)
		}
	}
}

// What is accepted is one code or one error, of characters that these can have, and nothing that was not asked for; its
// meaning does not depend on what was put around it, nor on the form in which it was pasted.
func FuzzPaste(f *testing.F) {
	for _, s := range []string{
		"ac-1", "ac-1#st-1", "code=ac-1&state=st-1", "https://x.example/cb?code=a%2Fb&state=c#d", "http://[::1]:1/#error=access_denied",
		` "<a?code=b>" `, "code=a#b", "?", "#", "=&=", "'", "\"\"", "%", "a://", "code=a&iss=b&client_id=c&x=y", "“a”",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pasted string) {
		q, err := parsePaste(pasted)
		if err != nil {
			if q != nil || !errors.Is(err, ErrPaste) {
				t.Fatalf("%q: %v with %v", pasted, err, q)
			}
			return
		}
		if q.Has("code") == q.Has("error") {
			t.Fatalf("%q: %v", pasted, q)
		}
		for name, values := range q {
			if !slices.Contains(answerParams, name) || len(values) != 1 || values[0] == "" || !plain(values[0]) || len(values[0]) > maxPaste {
				t.Fatalf("%q: %s is %q", pasted, name, values)
			}
		}
		same := func(form, text string) {
			if len(text) > maxPaste {
				return
			}
			if again, err := parsePaste(text); err != nil || again.Encode() != q.Encode() {
				t.Fatalf("%q is %v; %s %q is %v %v", pasted, q, form, text, again, err)
			}
		}
		for _, around := range quotes {
			same("quoted", " "+around[0]+"\t"+pasted+around[1]+"\n")
		}
		same("as a query", q.Encode())
		same("as an address", "https://x.example/cb?"+q.Encode())
		same("as a fragment", "https://x.example/cb#"+q.Encode())
	})
}

func TestPasteLogin(t *testing.T) {
	for name, form := range map[string]func(*url.URL) string{
		"the code":       func(u *url.URL) string { return u.Query().Get("code") },
		"code and state": func(u *url.URL) string { return u.Query().Get("code") + "#" + u.Query().Get("state") },
		"the query":      func(u *url.URL) string { return u.RawQuery },
		"the address":    func(u *url.URL) string { return "<" + u.String() + ">\n" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, oauthtest.Options{})
			l := w.start(t, FlowPaste)
			defer l.Close()
			if l.Flow != FlowPaste || l.PollInterval() != 0 || l.Lifetime != 0 {
				t.Errorf("flow %s, interval %s, lifetime %s", l.Flow, l.PollInterval(), l.Lifetime)
			}
			if _, err := l.Wait(t.Context()); err == nil {
				t.Error("there is nothing to wait for")
			}
			pasted := form(w.approve(t, l.URL))
			for wrong, says := range map[string]string{
				"": "nothing", "no code": "characters", l.URL: "address to open", "http://127.0.0.1/callback?x=y": "no code in it",
				"http://127.0.0.1/callback?code=ac-1": "cut off", "#": "not a code", strings.Repeat("a", maxPaste+1): "too long",
			} {
				if _, err := l.Finish(t.Context(), wrong); !errors.Is(err, ErrPaste) || !strings.Contains(err.Error(), says) {
					t.Errorf("Finish(%q): %v, want …%s…", wrong, err, says)
				}
			}
			if _, err := l.Finish(t.Context(), "ac-1#"+strings.Repeat("A", 43)); !errors.Is(err, ErrOtherLogin) {
				t.Errorf("another state: %v", err)
			}
			if n := w.server.Calls(oauthtest.Token); n != 0 {
				t.Fatalf("%d token requests", n)
			}
			g, err := l.Finish(t.Context(), pasted)
			if err != nil || g.AccessToken.Reveal() != w.server.Issued().AccessTokens[0] {
				t.Fatalf("Finish: %v", err)
			}
			// The code is spent at the provider.
			_, err = l.Finish(t.Context(), pasted)
			if e, ok := errors.AsType[*provider.Error](err); !ok || e.Code != "invalid_grant" {
				t.Errorf("again: %v", err)
			}
			hides(t, w, err, Crossing(err), l, *l)
		})
	}
}

func TestPastedDenial(t *testing.T) {
	w := newWorld(t, oauthtest.Options{Approval: oauthtest.DenyAll})
	l := w.start(t, FlowPaste)
	defer l.Close()
	_, err := l.Finish(t.Context(), w.approve(t, l.URL).String())
	if e, ok := errors.AsType[*provider.Error](err); !ok || e.Kind != provider.Denied {
		t.Errorf("Finish: %v", err)
	}
	if n := w.server.Calls(oauthtest.Token); n != 0 {
		t.Errorf("%d token requests", n)
	}
}

func TestCloseDuringFinish(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	w.server.Fault(oauthtest.Token, oauthtest.Fault{Wait: make(chan struct{})}, 1)
	l := w.start(t, FlowPaste)
	finished := make(chan error, 1)
	go func() {
		_, err := l.Finish(t.Context(), "ac-1")
		finished <- err
	}()
	if err := w.server.WaitCalls(t.Context(), oauthtest.Token, 1); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := <-finished; !errors.Is(err, ErrClosed) {
		t.Errorf("Finish: %v", err)
	}
}

func TestFlowsThatThereAreNot(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	w.p.DeviceURL, w.p.Flows = "", []string{FlowDevice, FlowPaste}
	_, err := Start(t.Context(), w.client, w.request(FlowDevice))
	if e, ok := errors.AsType[*NoFlowError](err); !ok || e.Flow != FlowDevice || !slices.Equal(e.Have, []string{FlowPaste}) {
		t.Errorf("no endpoint for it: %v", err)
	}
	if _, err := Start(t.Context(), w.client, w.request("carrier pigeon")); err == nil {
		t.Error("a flow that nobody knows")
	}
	l, err := Start(t.Context(), w.client, w.request(""))
	if err != nil || l.Flow != FlowPaste {
		t.Fatalf("the first that is possible: %v", err)
	}
	l.Close()
	w.p.AuthorizeURL = ""
	_, err = Start(t.Context(), w.client, w.request(""))
	if e, ok := errors.AsType[*NoFlowError](err); !ok || len(e.Have) != 0 || !strings.Contains(err.Error(), "authorize_url") {
		t.Errorf("no flow at all: %v", err)
	}
}

// A description that has only the issuer is completed first.
func TestFlowsOfAnIssuer(t *testing.T) {
	w := newWorld(t, oauthtest.Options{SendIssuer: true})
	w.p.Issuer, w.p.AuthorizeURL, w.p.TokenURL, w.p.DeviceURL, w.p.RevokeURL, w.p.Flows = w.server.URL(), "", "", "", "", nil
	l := w.start(t, "")
	defer l.Close()
	if n := w.server.Calls(oauthtest.Metadata); n != 1 || l.URL == "" {
		t.Errorf("%d requests for the metadata, URL %q", n, l.URL)
	}
}
