package client

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credproxy/credproxy/wire"
)

func TestLoginByPaste(t *testing.T) {
	sc := &script{initiate: pastePage, answers: []any{
		wire.E(wire.CodeInvalidRequest, "this is not a code"), &wire.Error{Code: wire.CodeRateLimited, RetryAfter: 1}, loggedIn,
	}}
	f := &face{pastes: []string{
		" \n", strings.Repeat("c", wire.MaxCodeLen+1), "c\x1b[A", pastePage.AuthURL, "test-code-1#y", "no-code", "  test-code-1#x\n",
	}}
	token, after, err := sc.login(t, f)
	if err != nil || token == nil || token.AccessToken != loggedIn.AccessToken || after != time.Second {
		t.Errorf("%v, %v after %v", token, err, after)
	}
	if want := []string{"no-code", "test-code-1#x", "test-code-1#x"}; !slices.Equal(sc.codes, want) {
		t.Errorf("sent %q, want %q", sc.codes, want)
	}
	if want := []string{
		"",
		"nothing was pasted",
		"this is too long for a code",
		"this has characters in it that no code has",
		"this is the address to open: paste what its page shows in the end, or the address that it leads to",
		"this code belongs to another login: use the page that was opened for this one",
		"this is not a code",
	}; !slices.Equal(f.problems, want) {
		t.Errorf("problems %q, want %q", f.problems, want)
	}
	if len(f.waits) > 0 || len(sc.cancelled) > 0 {
		t.Errorf("waited %v, cancelled %v", f.waits, sc.cancelled)
	}
}

func TestCheckPasted(t *testing.T) {
	const auth = "https://a.example/authorize?code=true&state=x%2By"
	for pasted, ok := range map[string]bool{
		"test-code-1":       true,
		"test-code-1=":      true,
		"test-code-1#x+y":   true,
		`"test-code-1#x+y"`: true,
		"test-code-1#":      true,
		"test-code-1#z":     false,
		"'test-code-1#z'":   false,
		"4/0Ab_test-code":   true,
		"http://127.0.0.1/callback?code=test-code-1&state=x%2By":     true,
		"<http://127.0.0.1/callback?state=x%2By&code=test-code-1>":   true,
		"http://127.0.0.1/callback?code=test-code-1":                 true,
		"http://127.0.0.1/callback?code=test-code-1#_=_":             true,
		"http://127.0.0.1/callback?code=test-code-1&state=x%2By#_=_": true,
		"http://127.0.0.1/callback?code=test-code-1&state=z":         false,
		"http://127.0.0.1/callback#code=test-code-1&state=x%2By":     true,
		"http://127.0.0.1/callback#code=test-code-1&state=z":         false,
		"http://127.0.0.1/callback?error=access_denied&state=x%2By":  true,
		"?code=test-code-1&state=x%2By":                              true,
		"code=test-code-1&state=z":                                   false,
		"code=test-code-1":                                           true,
		"code=test-code-1#z":                                         false,
		"#code=test-code-1&state=x%2By":                              true,
		"#code=test-code-1":                                          true,
		"é":                                                          true, // the proxy's to refuse
		"c\u009b":                                                    false,
		"c\xff":                                                      false,
		auth:                                                         false,
	} {
		if code, problem := checkPasted(pasted, auth); (problem == "") != ok || (code == pasted) != ok {
			t.Errorf("%q: %q, %q", pasted, code, problem)
		}
		if _, problem := checkPasted(pasted, ""); ok && problem != "" {
			t.Errorf("%q, without a state to compare with: %q", pasted, problem)
		}
	}
}
