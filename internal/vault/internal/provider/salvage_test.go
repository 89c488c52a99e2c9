package provider

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/internal/vault/internal/secret"
)

func salvaged(body string) string {
	return acme("oauth2").Salvage(Answer{Body: []byte(body), Sent: sent}, stored()).Reveal()
}

func TestSalvage(t *testing.T) {
	for body, want := range map[string]string{
		// Broken off.
		`{"refresh_token":"r2"`:                    "r2",
		`{"refresh_token":"r2","access_tok`:        "r2",
		`{"refresh_token" : "r2" ,"access_token":`: "r2",
		`{"access_token":"a","refresh_token":"r2`:  "",
		`{"access_token":"a","refresh_token":"r2\`: "",
		`{"access_token":"a","refresh_token":"r\"`: "",
		`{"access_token":"a","refresh_token":`:     "",
		`{"access_token":"a","refresh_token"`:      "",
		`{`:                                        "", ``: "", `"refresh_token":"r2"`: "",
		// Complete, but nothing that Parse takes.
		`{"refresh_token":"r2"}`:                                                         "r2",
		`{"refresh_token":"r2","access_token":7}`:                                        "r2",
		`{"refresh_token":"r2","access_token":"a\u0000"}`:                                "r2",
		`{"refresh_token":"r2","error":"invalid_client"}`:                                "r2",
		"\ufeff \n" + `{"refresh_token":"r2",}<!-- x -->`:                                "r2",
		"{\"access_token\":\"a\nb\",\"refresh_token\":\"r2\"}":                           "r2",
		`{"access_token":a,'b':undefined,"refresh_token":"r2"}`:                          "r2",
		`{"refresh\u005ftoken":"r\u0032"}`:                                               "r2",
		`{"a":"\"refresh_token\":\"no\"","refresh_token":"r2\\\"","b":"refresh_token"}`:  `r2\"`,
		`{"a":{"refresh_token":"no"},"b":[{"refresh_token":"no"}],"refresh_token":"r2"}`: "r2",
		`{"refresh_token":"r1","refresh_token":"r2"}`:                                    "r2",
		`{"refresh_token":"r2"}{"refresh_token":"no"}`:                                   "r2",
		`{"a":{"refresh_token":"no"}}`:                                                   "",
		`{"a":["refresh_token","no"`:                                                     "",
		`{"a":"refresh_token","b":"no"}`:                                                 "",
		`{"refresh_token":["no"]}`:                                                       "",
		`{"refresh_token":{"refresh_token":"no"}}`:                                       "",
		`{"refresh_token":7 "no"}`:                                                       "",
		`{"refresh_token":7,"no"}`:                                                       "",
		`{"refresh_token","b":"no"}`:                                                     "",
		`{"refresh_token":"no" "b":1}`:                                                   "",
		`{"refresh_token":null}`:                                                         "",
		`{"Refresh_Token":"no","refreshToken":"no","refresh_token ":"no"}`:               "",
		`{"refresh_token":"test-refresh-token-1"}`:                                       "", // the old one
		`{"refresh_token":"r\n"}`:                                                        "",
		`{"refresh_token":"\u001b[2J"}`:                                                  "",
		"{\"refresh_token\":\"r\n\"}":                                                    "",
		"{\"refresh_token\":\"r\xff\"}":                                                  "",
		`{"refresh_token":"r\ud800"}`:                                                    "",
		`{"refresh_token":"r\x"}`:                                                        "",
		`[{"refresh_token":"no"}]`:                                                       "",
		`[]{"refresh_token":"no"}`:                                                       "",
		`<p>{"refresh_token":"no"}`:                                                      "",
		`}{"refresh_token":"no"}`:                                                        "",
		`{}{"refresh_token":"no"}`:                                                       "",
		strings.Repeat(`{"a":`, 100_000) + `{"refresh_token":"no"`:                       "",
		`{"a":` + strings.Repeat(`[`, 50_000) + strings.Repeat(`]`, 50_000) + `,"refresh_token":"r2"`: "r2",
		// Forms. Of the last member nobody knows whether it is whole.
		"access_token=a&refresh_token=r2&":          "r2",
		"refresh_token=%722&access_tok":             "r2",
		"refresh_token=r2&access_token=a%0":         "r2",
		"\ufeffrefresh_token=r2&access_token=":      "r2",
		"access_token=a&refresh_token=r2":           "",
		"refresh_token=test-refresh-token-1&a=b":    "",
		"refresh_token=r%0A&a=b":                    "",
		"refresh_token=r%zz&a=b":                    "",
		"refresh_token=&a=b":                        "",
		"<a href=/?refresh_token=no&b>":             "",
		"grant_type=refresh_token&access_token=a&b": "",
	} {
		if got := salvaged(body); got != want {
			t.Errorf("%.80q: %q, want %q", body, got, want)
		}
	}
	if got := acme("").Salvage(Answer{Body: []byte(`{"refresh_token":"r2"`)}, nil).Reveal(); got != "r2" {
		t.Errorf("without a stored login: %q", got)
	}
}

// Wherever an answer breaks off: all of the refresh token, or nothing.
func TestSalvageOfEveryPart(t *testing.T) {
	for body, before := range map[string]string{
		`{"x":{"refresh_token":"no"},"access_token":"a","refresh_token":"r\u0032-\"end","scope":"refresh_token"}`: `{"x":{"refresh_token":"no"},"access_token":"a","refresh_token":"r\u0032-\"end"`,
		`access_token=a&refresh_token=r2-%22end&scope=s`:                                                          `access_token=a&refresh_token=r2-%22end&`,
	} {
		for n := range len(body) + 1 {
			want := ""
			if n >= len(before) {
				want = `r2-"end`
			}
			if got := salvaged(body[:n]); got != want {
				t.Errorf("%s: %q", body[:n], got)
			}
		}
	}
}

func TestBrokenOffAnswer(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, c := range map[string]struct {
		head, body string
		received   string // "" is not called
		kind       Kind   // 0 is success
		text       string
	}{
		"after the token":      {"200 OK\r\nContent-Length: 500", `{"refresh_token":"r2","access_to`, `{"refresh_token":"r2","access_to`, Malformed, "broke off: the connection was closed too early"},
		"201":                  {"201 Created\r\nContent-Length: 500", `{"refresh_token":"r2",`, `{"refresh_token":"r2",`, Malformed, "broke off"},
		"of chunks":            {"200 OK\r\nTransfer-Encoding: chunked", "16\r\n" + `{"refresh_token":"r2",` + "\r\n", `{"refresh_token":"r2",`, Malformed, "broke off"},
		"before the token":     {"200 OK\r\nContent-Length: 500", `{"access_token":"a","refresh_token":"r2`, "", Transient, "broke off"},
		"the old token":        {"200 OK\r\nContent-Length: 500", `{"refresh_token":"test-refresh-token-1",`, "", Transient, "broke off"},
		"before everything":    {"200 OK\r\nContent-Length: 500", "", "", Transient, "broke off"},
		"a refusal":            {"400 Bad Request\r\nContent-Length: 500", `{"refresh_token":"r2",`, "", Transient, "broke off (HTTP 400)"},
		"a form":               {"200 OK\r\nContent-Length: 500", "access_token=a&refresh_token=r2&expires_in=36", "access_token=a&refresh_token=r2&", Malformed, "broke off"},
		"a form's access":      {"200 OK\r\nContent-Length: 500", "refresh_token=r2&access_token=a", "refresh_token=r2&", Malformed, "broke off"},
		"a form's token":       {"200 OK\r\nContent-Length: 500", "access_token=a&refresh_token=r2", "", Transient, "broke off"},
		"a page":               {"200 OK\r\nContent-Length: 500", "<p>welcome", "", Transient, "broke off"},
		"nothing but the end":  {"200 OK\r\nContent-Length: 500", "\ufeff" + `{"access_token":"a","refresh_token":"r2"} `, "\ufeff" + `{"access_token":"a","refresh_token":"r2"} `, 0, ""},
		"long, token in front": {"200 OK", `{"refresh_token":"r2","x":"` + long + `"}`, `{"refresh_token":"r2","x":"` + long[27:], Malformed, "longer than 1 MiB"},
		"long, token behind":   {"200 OK", `{"x":"` + long + `","refresh_token":"r2"}`, "", Malformed, "longer than 1 MiB"},
		"long behind its end":  {"200 OK", `{"access_token":"a","refresh_token":"r2"}` + long, `{"access_token":"a","refresh_token":"r2"}` + long[41:], 0, ""},
	} {
		p := &Provider{Name: "acme", AuthorizeURL: "https://acme.example/authorize", TokenURL: rawServer(t, "HTTP/1.1 "+c.head+"\r\n\r\n"+c.body)}
		received := []string{}
		g, err := NewClient().Refresh(t.Context(), p, stored(), secret.String{}, func(a Answer) {
			received = append(received, string(a.Body))
			if a.Sent.IsZero() {
				t.Errorf("%s: no time", name)
			}
		})
		if c.kind == 0 {
			if err != nil || g.RefreshToken.Reveal() != "r2" {
				t.Errorf("%s: %v", name, err)
			}
		} else if e := asError(t, err); e.Kind != c.kind || e.Revoked || !strings.Contains(e.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(received); n > 1 || strings.Join(received, "") != c.received {
			t.Errorf("%s: received %d times: %.100q", name, n, received)
		}
	}
}

// A limit that ends in the middle of an answer.
func TestLimitInTheAnswer(t *testing.T) {
	for body, kind := range map[string]Kind{
		`{"refresh_token":"r2","access_token":"test-access-token-2","scope":"` + strings.Repeat("s", 100) + `"}`: Malformed,
		`{"access_token":"test-access-token-2","scope":"` + strings.Repeat("s", 100) + `","refresh_token":"r2"}`: Transient,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := start(t, true, "oauth2", oauthtest.Options{})
			fault := answerWith(200, body)
			fault.Drip = 250 * time.Millisecond
			w.s.Fault(oauthtest.Token, fault, -1)
			began, received := time.Now(), 0
			_, err := w.c.Refresh(t.Context(), w.p, stored(), secret.New(testSecret), func(a Answer) {
				received++
				if w.p.Salvage(a, stored()).Reveal() != "r2" {
					t.Error("the refresh token is not in it")
				}
			})
			e := asError(t, err)
			if e.Kind != kind || !errors.Is(err, context.DeadlineExceeded) || (received == 1) != (kind == Malformed) || time.Since(began) != 15*time.Second {
				t.Errorf("%v after %v, received %d", err, time.Since(began), received)
			}
			if n := w.s.Calls(oauthtest.Token); n != 1 {
				t.Errorf("%d requests", n)
			}
		})
	}
	// Of a login there is no refresh token that could be used twice.
	p := &Provider{Name: "acme", AuthorizeURL: "https://acme.example/authorize", TokenURL: rawServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"+`{"refresh_token":"r2",`)}
	w := &world{c: NewClient(), p: p}
	_, err := w.c.Exchange(t.Context(), w.authorize(t), url.Values{"code": {"test-code"}}, secret.String{})
	if e := asError(t, err); e.Kind != Transient {
		t.Errorf("exchange: %v", err)
	}
}
