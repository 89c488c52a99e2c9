package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestURLs(t *testing.T) {
	const https, host, user, fragment, url, query = "must be https (or http on loopback)", "is not a URL with a host",
		"must not have a user name or password in it", "must not have a fragment (#…)", "is not a URL", "must not have a query"
	for value, want := range map[string]string{
		"https://x.example":            "",
		"https://x.example:8443/a?b=c": "",
		"HTTPS://X.example/":           "",
		"https://x.example/tenant/":    "",
		"https://x.example/tenant?":    "",
		"http://localhost/a":           "",
		"http://LocalHost:1/a":         "",
		"http://127.0.0.1:80":          "",
		"http://127.255.255.254":       "",
		"http://[::1]:80/a":            "",
		"http://x.example":             https,
		"http://128.0.0.1":             https,
		"http://127.0.0.1.x.example":   https,
		"http://localhost.x.example":   https,
		"http://127.1":                 https,
		"http://0.0.0.0":               https,
		"http://[::]":                  https,
		"http://[::1%25lo]":            https,
		"ftp://x.example":              https,
		"x.example/a":                  https,
		"//x.example/a":                https,
		"file:///etc/passwd":           https,
		"javascript:alert(1)":          https,
		"https:x.example":              host,
		"https://":                     host,
		"https:///a":                   host,
		"https://:443":                 host,
		"https://x.example:":           host,
		"https://x.example:65536":      host,
		"https://u@x.example":          user,
		"https://u:secret-1@x.example": user,
		"https://x.example/#f":         fragment,
		"https://x.example/#":          fragment,
		"":                             url,
		"https://x.example/a b":        url,
		"https://x.example/\\n":        url,
		"https://é.example":            url,
		"https://x.example/%zz":        url,
	} {
		for _, key := range []string{"token_url", "authorize_url", "device_url", "revoke_url", "issuer"} {
			text := "[providers.acme]\nclient_id = \"c\"\n" + key + " = \"" + value + "\"\n"
			if key != "token_url" {
				text += "token_url = \"https://x.example\"\n"
			}
			path := write(t, text)
			got := ""
			if _, err := Load(path); err != nil {
				got = strings.TrimPrefix(err.Error(), path+":3: "+key+" in [providers.acme] ")
			}
			want := want
			if key == "issuer" && want == "" && strings.Contains(value, "?") { // RFC 8414, section 2
				want = query
			}
			if got != want {
				t.Errorf("%s = %q: %q, want %q", key, value, got, want)
			}
			if strings.Contains(got, "secret-1") {
				t.Errorf("the password of a URL is in the error: %s", got)
			}
		}
	}
}

func TestFlowsAndRedirect(t *testing.T) {
	const device, secure, local = "device_url = \"https://x.example/d\"\n", "redirect_url = \"https://x.example/c\"\n", "redirect_url = \"http://127.0.0.1/c\"\n"
	const noBrowser = `http on loopback for the flow "browser"`
	tests := []struct {
		text string
		want any // []string: the flows; string: part of the error
	}{
		{"", []string(nil)},
		{device, []string(nil)},
		{secure, []string(nil)},
		{local + device, []string(nil)},
		{"flows = []", []string{}},
		{"flows = [\"paste\"]", []string{"paste"}},
		{secure + "flows = [\"paste\"]", []string{"paste"}},
		{local + "flows = [\"paste\", \"browser\"]", []string{"paste", "browser"}},
		{secure + "flows = [\"paste\", \"browser\"]", noBrowser},
		{secure + device + "flows = [\"device\"]", `can be https only for the flow "paste"`},
		{"redirect_url = \"http://x.example/c\"", "http on loopback, or https"},
		{"redirect_url = \"http://x.example/c\"\nflows = [\"paste\"]", "http on loopback, or https"},
		{"redirect_url = \"http://localhost/c?a=b\"", "must not have a query"},
	}
	for _, tt := range tests {
		c, err := Load(write(t, acme+tt.text))
		switch want := tt.want.(type) {
		case string:
			if err == nil || !strings.Contains(err.Error(), ":5: redirect_url in [providers.acme] ") || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want …%s…", tt.text, err, want)
			}
		case []string:
			if err != nil || !reflect.DeepEqual(c.Providers["acme"].Flows, want) {
				t.Errorf("%q: %v, want flows %q", tt.text, err, want)
			}
		}
	}
}

// What a description leaves open is left open: a dialect brings its flows, an issuer's metadata what the provider has.
func TestLeftOpen(t *testing.T) {
	const token, authorize, secure = "token_url = \"https://x.example/t\"\n", "authorize_url = \"https://x.example/a\"\n", "redirect_url = \"https://x.example/c\"\n"
	const issuer = "issuer = \"https://x.example/tenant\"\n"
	for _, dialect := range Dialects {
		c := "dialect = \"" + dialect + "\"\n"
		if dialect == "oauth2" {
			c += "client_id = \"c\"\n"
		}
		for text, want := range map[string][]string{
			c + token:                                 nil,
			c + issuer:                                nil,
			c + issuer + secure:                       nil,
			c + issuer + "flows = [\"device\"]":       {"device"},
			c + issuer + "flows = [\"paste\"]":        {"paste"},
			c + issuer + secure + "flows=[\"paste\"]": {"paste"},
			c + token + authorize + "flows = [\"paste\", \"browser\"]": {"paste", "browser"},
		} {
			p := load(t, "[providers.acme]\n"+text).Providers["acme"]
			if !reflect.DeepEqual(p.Flows, want) || p.Dialect != dialect || (p.ClientID == "") == (dialect == "oauth2") {
				t.Errorf("%s: %+v", text, p)
			}
			if (p.TokenEncoding == "form") != (dialect == "oauth2") {
				t.Errorf("%s: token_encoding %q", text, p.TokenEncoding)
			}
		}
		if p := load(t, "[providers.acme]\n"+c+token+authorize).Providers["acme"]; p.Flows != nil {
			t.Errorf("dialect %s with both endpoints: flows %q", dialect, p.Flows)
		}
	}
}
