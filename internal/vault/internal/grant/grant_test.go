package grant

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/wire"
)

const canary = "test-refresh-canary-0001"

func parse(t *testing.T, stored string) *Grant {
	t.Helper()
	g, err := Parse(secret.New(stored))
	if err != nil {
		t.Fatalf("Parse(%s): %v", stored, err)
	}
	return g
}

// The original client's item, and what of it may go inside.
func TestStoredFormOfTheOriginalClient(t *testing.T) {
	g := parse(t, `{"access_token":"at-1","refresh_token":"`+canary+`","expiry":1789000000,"scope":"a b","token_type":"Bearer",`+
		`"account_id":"acc","id_token":"h.p.s","resource_url":"portal.example","somebody_elses":{"x":1}}`)
	tok, err := g.Wire(DefaultFields)
	if err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(tok)
	want := `{"access_token":"at-1","expiry":1789000000,"token_type":"Bearer","scope":"a b","account_id":"acc","id_token":"h.p.s","resource_url":"portal.example"}`
	if string(got) != want {
		t.Errorf("inside:\n got %s\nwant %s", got, want)
	}
	again := parse(t, g.Seal().Reveal())
	if again.RefreshToken.Reveal() != canary || len(again.Fields) != 4 {
		t.Error("sealing lost the refresh token or a field that another program wrote")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, stored := range []string{
		``, `null`, `[]`, `"x"`, `{`, `{}`, `{"access_token":""}`, `{"access_token":1}`,
		`{"access_token":"a","refresh_token":{}}`, `{"access_token":"a","expiry":"1789000000"}`, `{"access_token":"a","expiry":-1}`,
		`{"access_token":"a","expiry":1e300}`, `{"access_token":"a","token_type":[]}`, `{"access_token":"a","credproxy_saved":{}}`,
	} {
		if _, err := Parse(secret.New(stored)); !errors.Is(err, ErrMalformed) {
			t.Errorf("Parse(%s): %v, want ErrMalformed", stored, err)
		}
	}
	if _, err := Parse(secret.New(`{"access_token":"a","scope":null,"expiry":1789000000.5}`)); err != nil {
		t.Errorf("null scope and a fractional expiry, as the original writes them: %v", err)
	}
}

// Whatever a provider or another program put beside the refresh token, it does not come out of Wire.
func TestWireLeavesLongLivedSecretsOnTheHost(t *testing.T) {
	for name, field := range map[string]string{
		"by name at depth":        `"account_id":{"a":[{"refresh_token":"` + canary + `"}]}`,
		"by another spelling":     `"id_token":{"refreshToken":"` + canary + `"}`,
		"under an innocent name":  `"account_id":"` + canary + `"`,
		"inside a longer string":  `"account_id":"x ` + canary + ` y"`,
		"as the name of a member": `"account_id":{"` + canary + `":1}`,
		"behind an escape":        `"account_id":"\u0074est-refresh-canary-0001"`,
		"in a field of no client": `"something":"` + canary + `"`,
	} {
		g := parse(t, `{"access_token":"at-1","token_type":"Bearer","expiry":1,"refresh_token":"`+canary+`",`+field+`}`)
		tok, err := g.Wire(DefaultFields)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, _ := json.Marshal(tok)
		var decoded any
		_ = json.Unmarshal(b, &decoded)
		if text := string(b) + fmt.Sprint(decoded); strings.Contains(text, canary) {
			t.Errorf("%s: the refresh token crossed: %s", name, b)
		}
	}
}

func TestWireRefusesAnAccessTokenThatIsTheRefreshToken(t *testing.T) {
	g := &Grant{AccessToken: secret.New(canary), RefreshToken: secret.New(canary)}
	if _, err := g.Wire(nil); !errors.Is(err, ErrNotServable) {
		t.Errorf("Wire: %v, want ErrNotServable", err)
	}
}

func TestMergeAnswer(t *testing.T) {
	old := parse(t, `{"access_token":"at-1","refresh_token":"rt-1","expiry":10,"scope":"s","token_type":"Bearer",`+
		`"account_id":"acc","note":"mine","credproxy_saved":["note"]}`)
	m := Merge(old, &Grant{AccessToken: secret.New("at-2"), Expiry: 20, TokenType: "Bearer"})
	if m.AccessToken.Reveal() != "at-2" || m.Expiry != 20 || m.RefreshToken.Reveal() != "rt-1" || m.Scope != "s" {
		t.Errorf("an answer without a refresh token: %+v", m.Seal().Reveal())
	}
	if tok, _ := m.Wire(DefaultFields); string(tok.Field("account_id")) != `"acc"` || string(tok.Field("note")) != `"mine"` {
		t.Error("fields of the stored token were lost")
	}
	m = Merge(old, &Grant{AccessToken: secret.New("at-2"), RefreshToken: secret.New("rt-2")})
	if m.RefreshToken.Reveal() != "rt-2" || m.Expiry != 0 {
		t.Error("the answer's refresh token and expiry win")
	}
	// A field that the provider sends now is the provider's again, even if a client once saved one of that name.
	m = Merge(old, &Grant{AccessToken: secret.New("at-2"), Fields: []wire.Field{{Name: "note", Value: json.RawMessage(`"private"`)}}})
	if tok, _ := m.Wire(DefaultFields); tok.Field("note") != nil {
		t.Error("a provider's field went inside because a client had saved one of that name")
	}
	if got := Merge(nil, old); got.RefreshToken.Reveal() != "rt-1" {
		t.Error("merging over nothing")
	}
}

// A refresh token that was replaced does not go inside either: to send it again ends the login.
func TestMergeDropsFieldsWithTheReplacedRefreshToken(t *testing.T) {
	old := &Grant{
		AccessToken: secret.New("a1"), RefreshToken: secret.New("test-refresh-1"),
		Fields: []wire.Field{{Name: "account_id", Value: json.RawMessage(`"old:test-refresh-1"`)}, {Name: "note", Value: json.RawMessage(`"kept"`)}},
		Saved:  []string{"note"},
	}
	rotated := Merge(old, &Grant{
		AccessToken: secret.New("a2"), RefreshToken: secret.New("test-refresh-2"),
		Fields: []wire.Field{{Name: "id_token", Value: json.RawMessage(`"test\u002drefresh-1"`)}},
	})
	if rotated.field("account_id") || rotated.field("id_token") || !rotated.field("note") {
		t.Errorf("fields of a rotated login: %d", len(rotated.Fields))
	}
	if same := Merge(old, &Grant{AccessToken: secret.New("a2")}); !same.field("account_id") {
		t.Error("a login that was not rotated has lost a field")
	}
	if without := rotated.WithoutSaved(); without.field("note") || len(without.Saved) != 0 || !rotated.field("note") {
		t.Error("WithoutSaved")
	}
}

func TestMergeSaved(t *testing.T) {
	old := parse(t, `{"access_token":"at-1","refresh_token":"`+canary+`","expiry":10,"token_type":"Bearer","account_id":"acc","hidden":"h"}`)
	tok, err := wire.DecodeToken([]byte(`{"access_token":"at-2","expiry":20,"token_type":"bearer","refresh_token":"from-inside",` +
		`"mine":{"deep":{"refresh_token":"from-inside","kept":1}},"credproxy_saved":["hidden"]}`))
	if err != nil {
		t.Fatal(err)
	}
	m := parse(t, MergeSaved(old, tok).Seal().Reveal())
	if m.RefreshToken.Reveal() != canary {
		t.Error("the stored refresh token must stay")
	}
	if strings.Contains(m.Seal().Reveal(), "from-inside") {
		t.Error("a refresh token from inside was stored")
	}
	if !slices.Equal(m.Saved, []string{"mine"}) {
		t.Errorf("saved by the client: %q", m.Saved)
	}
	inside, _ := m.Wire(DefaultFields)
	got, _ := json.Marshal(inside)
	if want := `{"access_token":"at-2","expiry":20,"token_type":"bearer","account_id":"acc","mine":{"deep":{"kept":1}}}`; string(got) != want {
		t.Errorf("inside:\n got %s\nwant %s", got, want)
	}
}

// No way of printing, logging or encoding a grant, or a struct that holds one, gets at its secrets.
func TestGrantDoesNotPrint(t *testing.T) {
	g := parse(t, `{"access_token":"test-access-canary","refresh_token":"`+canary+`"}`)
	holder := struct {
		G     *Grant
		V     Grant
		inner Grant
	}{g, *g, *g}
	var out bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+verb+verb+verb, g, *g, holder, &holder)
		fmt.Fprintf(&out, verb, errors.Join(fmt.Errorf("x %v", g.RefreshToken), fmt.Errorf("%w", fmt.Errorf("%v", g))))
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "g", g, "v", *g, "holder", holder, "secret", g.RefreshToken, "slice", []any{g, g.RefreshToken})
	}
	_ = json.NewEncoder(&out).Encode(map[string]any{"k": "v"})
	if _, err := json.Marshal(g); !errors.Is(err, secret.ErrMarshal) {
		t.Errorf("json.Marshal: %v", err)
	}
	if err := gob.NewEncoder(&out).Encode(g); err == nil {
		t.Error("gob encoded a grant")
	}
	hexed := fmt.Sprintf("%x", canary)
	if s := out.String(); strings.Contains(s, canary) || strings.Contains(s, "test-access-canary") || strings.Contains(s, hexed) {
		t.Errorf("a secret came out: %s", s)
	}
}

// The client id that was issued with a login stays with it, on the host, whoever saves what over it.
func TestClientID(t *testing.T) {
	old := &Grant{AccessToken: secret.New("test-access-token-1"), RefreshToken: secret.New("test-refresh-token-1"), ClientID: "agent-1"}
	stored, err := Parse(old.Seal())
	if err != nil || stored.ClientID != "agent-1" || len(stored.Fields) != 0 {
		t.Fatalf("stored: %v", err)
	}
	answer := &Grant{AccessToken: secret.New("test-access-token-2")}
	if got := Merge(old, answer).ClientID; got != "agent-1" {
		t.Errorf("after a refresh: %q", got)
	}
	if got := Merge(nil, old).ClientID; got != "agent-1" {
		t.Errorf("of a login: %q", got)
	}
	answer.ClientID = "agent-2"
	if got := Merge(old, answer).ClientID; got != "agent-2" {
		t.Errorf("of a new login: %q", got)
	}
	saved := &wire.Token{AccessToken: "test-access-token-3", TokenType: "Bearer"}
	_ = saved.Set("credproxy_client_id", json.RawMessage(`"evil"`))
	for _, g := range []*Grant{MergeSaved(old, saved), MergeSaved(nil, saved)} {
		if g.ClientID == "evil" || len(g.Fields) != 0 || strings.Contains(g.Seal().Reveal(), "evil") {
			t.Error("a client saved a client id")
		}
	}
	if got := MergeSaved(old, saved).ClientID; got != "agent-1" {
		t.Errorf("after a save: %q", got)
	}
	token, err := old.Wire([]string{"credproxy_client_id", "client_id"})
	if b, _ := json.Marshal(token); err != nil || strings.Contains(string(b), "agent-1") {
		t.Errorf("it goes inside: %v", err)
	}
	if _, err := Parse(secret.New(`{"access_token":"a","credproxy_client_id":7}`)); err == nil {
		t.Error("a client id of another type")
	}
	if g, err := Parse(secret.New(`{"access_token":"a","credproxy_client_id":null}`)); err != nil || g.ClientID != "" {
		t.Errorf("null: %v", err)
	}
}

func TestSameAccount(t *testing.T) {
	of := func(value string, saved ...string) *Grant {
		g := &Grant{Saved: saved}
		if value != "" {
			g.Fields = []wire.Field{{Name: "account_id", Value: json.RawMessage(value)}}
		}
		return g
	}
	for _, c := range []struct {
		a, b *Grant
		same bool
	}{
		{of(`"a"`), of(`"a"`), true}, {of(`"a"`), of(`"b"`), false}, {of(""), of(`"b"`), true}, {of(`"a"`), of(""), true},
		{of(`"a"`, "account_id"), of(`"b"`), true},
	} {
		if SameAccount(c.a, c.b) != c.same {
			t.Errorf("%s and %s: want %v", c.a.Fields, c.b.Fields, c.same)
		}
	}
}

func TestWithoutFieldsOf(t *testing.T) {
	g := &Grant{Fields: []wire.Field{
		{Name: "plain", Value: json.RawMessage(`"x test-verifier-canary y"`)}, {Name: "escaped", Value: json.RawMessage(`["test-verifier\u002dcanary"]`)},
		{Name: "other", Value: json.RawMessage(`"test-verifier"`)},
	}}
	if left := g.WithoutFieldsOf(secret.New("test-verifier-canary"), secret.String{}).Fields; len(left) != 1 || left[0].Name != "other" || len(g.Fields) != 3 {
		t.Errorf("left: %v of %d", left, len(g.Fields))
	}
}
