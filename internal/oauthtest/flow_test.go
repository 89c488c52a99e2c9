package oauthtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testRedirect = "http://127.0.0.1:49152/callback"

// start serves over TCP until the test ends.
func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeServer(t, s) })
	return s
}

// startPipe serves inside a synctest bubble; the caller defers closeServer.
func startPipe(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := StartPipe(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func closeServer(t *testing.T, s *Server) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func clientConfig(s *Server) *oauth2.Config {
	return &oauth2.Config{
		ClientID: "test-client", RedirectURL: testRedirect,
		Endpoint: oauth2.Endpoint{
			AuthURL: s.EndpointURL(Authorize), TokenURL: s.EndpointURL(Token), DeviceAuthURL: s.EndpointURL(Device),
			AuthStyle: oauth2.AuthStyleInParams,
		},
	}
}

func withClient(t *testing.T, s *Server) context.Context {
	return context.WithValue(t.Context(), oauth2.HTTPClient, s.Client())
}

// location follows no redirect and returns the query that the redirect carries.
func location(t *testing.T, rep *http.Response) url.Values {
	t.Helper()
	defer rep.Body.Close()
	u, err := rep.Location()
	if err != nil {
		t.Fatalf("status %d: %v", rep.StatusCode, err)
	}
	if got := u.Scheme + "://" + u.Host + u.Path; got != testRedirect {
		t.Fatalf("redirected to %s", got)
	}
	return u.Query()
}

func get(t *testing.T, s *Server, address string) *http.Response {
	t.Helper()
	rep, err := s.Client().Get(address)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func login(t *testing.T, s *Server, opts ...oauth2.AuthCodeOption) *oauth2.Token {
	t.Helper()
	cfg, verifier := clientConfig(s), oauth2.GenerateVerifier()
	opts = append(opts, oauth2.S256ChallengeOption(verifier))
	q := location(t, get(t, s, cfg.AuthCodeURL("test-state", opts...)))
	if q.Get("state") != "test-state" {
		t.Fatalf("state came back as %q", q.Get("state"))
	}
	tok, err := cfg.Exchange(withClient(t, s), q.Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func use(t *testing.T, s *Server, access string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.EndpointURL(Resource), nil)
	if err != nil {
		t.Fatal(err)
	}
	if access != "" {
		req.Header.Set("Authorization", "Bearer "+access)
	}
	rep, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer rep.Body.Close()
	var body map[string]any
	if err := json.NewDecoder(rep.Body).Decode(&body); err != nil {
		t.Fatal(err)
	}
	if rep.StatusCode == http.StatusUnauthorized && rep.Header.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	return rep.StatusCode, body
}

func wantErrorCode(t *testing.T, err error, code string) {
	t.Helper()
	re, ok := errors.AsType[*oauth2.RetrieveError](err)
	if !ok || re.ErrorCode != code {
		t.Fatalf("got %v, want %s", err, code)
	}
}

func TestCodeFlow(t *testing.T) {
	s := start(t, Options{Scopes: []string{"read", "write"}, Extra: map[string]any{"account_id": "test-account"}, SendIssuer: true})
	tok := login(t, s, oauth2.SetAuthURLParam("scope", "read"))
	if tok.Extra("account_id") != "test-account" || tok.Extra("scope") != "read" || tok.Type() != "Bearer" {
		t.Errorf("answer: account_id %v, scope %v, type %s", tok.Extra("account_id"), tok.Extra("scope"), tok.Type())
	}
	if !strings.HasPrefix(tok.AccessToken, "at-") || !strings.HasPrefix(tok.RefreshToken, "rt-") {
		t.Error("the issued strings lack their prefixes")
	}
	status, body := use(t, s, tok.AccessToken)
	if status != 200 || body["active"] != true || body["client_id"] != "test-client" || body["scope"] != "read" {
		t.Errorf("resource: %d %v", status, body)
	}
	for _, bad := range []string{"", "at-unknown", tok.RefreshToken} {
		if status, body := use(t, s, bad); status != 401 || body["active"] != false {
			t.Errorf("resource with a bad token: %d %v", status, body)
		}
	}
	all := s.Issued().All()
	if len(all) != 3 || !slices.Contains(all, tok.AccessToken) || !slices.Contains(all, tok.RefreshToken) {
		t.Errorf("%d secrets issued, want code, access and refresh token", len(all))
	}
	if s.Calls(Authorize) != 1 || s.Calls(Token) != 1 || s.Calls(Resource) != 4 {
		t.Errorf("calls: %d %d %d", s.Calls(Authorize), s.Calls(Token), s.Calls(Resource))
	}
	if r := s.Requests(Token)[0]; r.Status != 200 || r.Params.Get("grant_type") != GrantCode || r.Faulted {
		t.Errorf("log: status %d, grant %s", r.Status, r.Params.Get("grant_type"))
	}
}

func TestUserDecides(t *testing.T) {
	for _, decision := range []string{"approve", "deny"} {
		t.Run(decision, func(t *testing.T) {
			s := start(t, Options{Approval: AskUser, SendIssuer: true})
			rep := get(t, s, clientConfig(s).AuthCodeURL("s", oauth2.S256ChallengeOption("v")))
			html, err := io.ReadAll(rep.Body)
			rep.Body.Close()
			if err != nil || rep.StatusCode != 200 {
				t.Fatal(rep.StatusCode, err)
			}
			id := regexp.MustCompile(`name="request" value="([^"]+)"`).FindSubmatch(html)
			if id == nil {
				t.Fatal("the page has no request id")
			}
			form := url.Values{"request": {string(id[1])}, "decision": {decision}}
			rep, err = s.Client().PostForm(s.EndpointURL(Authorize), form)
			if err != nil {
				t.Fatal(err)
			}
			q := location(t, rep)
			if rep.StatusCode != http.StatusSeeOther || q.Get("state") != "s" || q.Get("iss") != s.URL() {
				t.Errorf("status %d, state %q, iss %q", rep.StatusCode, q.Get("state"), q.Get("iss"))
			}
			if got := q.Get("error"); (decision == "deny") != (got == "access_denied") || (q.Get("code") == "") != (decision == "deny") {
				t.Errorf("%s: error %q", decision, got)
			}
			rep, err = s.Client().PostForm(s.EndpointURL(Authorize), form)
			if err != nil {
				t.Fatal(err)
			}
			if rep.Body.Close(); rep.StatusCode != 400 {
				t.Errorf("second answer to the same page: %d", rep.StatusCode)
			}
		})
	}
}

func TestOtherOriginCannotApprove(t *testing.T) {
	s := start(t, Options{Approval: AskUser})
	req, _ := http.NewRequestWithContext(t.Context(), "POST", s.EndpointURL(Verify), strings.NewReader("user_code=x&decision=approve"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	rep, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Body.Close(); rep.StatusCode != http.StatusForbidden {
		t.Errorf("status %d", rep.StatusCode)
	}
}

func TestRefreshRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startPipe(t, Options{AccessLifetime: time.Minute})
		defer closeServer(t, s)
		first := login(t, s)
		time.Sleep(time.Minute)
		if status, _ := use(t, s, first.AccessToken); status != 401 {
			t.Errorf("the access token works after its life: %d", status)
		}
		second, err := clientConfig(s).TokenSource(withClient(t, s), first).Token()
		if err != nil {
			t.Fatal(err)
		}
		if second.RefreshToken == first.RefreshToken || second.AccessToken == first.AccessToken {
			t.Error("nothing rotated")
		}
		if s.Valid(first.RefreshToken) || !s.Valid(second.RefreshToken) || !s.Valid(second.AccessToken) {
			t.Error("validity after rotation")
		}
		// The first one again: that is reuse, and everything of the family ends.
		_, err = clientConfig(s).TokenSource(withClient(t, s), &oauth2.Token{RefreshToken: first.RefreshToken}).Token()
		wantErrorCode(t, err, "invalid_grant")
		_, err = clientConfig(s).TokenSource(withClient(t, s), &oauth2.Token{RefreshToken: second.RefreshToken}).Token()
		wantErrorCode(t, err, "invalid_grant")
		if status, _ := use(t, s, second.AccessToken); status != 401 {
			t.Errorf("an access token outlived its family: %d", status)
		}
		f := s.Families()
		if len(f) != 1 || !f[0].Revoked || f[0].Why != "refresh token reused" || len(f[0].RefreshTokens) != 2 {
			t.Errorf("families: %d, revoked %v: %s", len(f), f[0].Revoked, f[0].Why)
		}
		var outcomes []Outcome
		for _, u := range s.RefreshUses() {
			outcomes = append(outcomes, u.Outcome)
		}
		if !slices.Equal(outcomes, []Outcome{Accepted, Reused, Refused}) {
			t.Errorf("outcomes %v", outcomes)
		}
	})
}

func TestRefreshKeeps(t *testing.T) {
	for _, tt := range []struct {
		rotation Rotation
		repeats  bool
	}{{Keep, false}, {KeepAndRepeat, true}} {
		s := start(t, Options{Rotation: tt.rotation})
		tok := login(t, s)
		for range 2 {
			status, answer := post(t, s, Token, url.Values{"client_id": {"test-client"}, "grant_type": {GrantRefresh}, "refresh_token": {tok.RefreshToken}})
			got, has := answer["refresh_token"]
			if status != 200 || has != tt.repeats || (has && got != tok.RefreshToken) {
				t.Errorf("rotation %d: status %d, refresh token in the answer: %v", tt.rotation, status, has)
			}
		}
	}
}

func TestConcurrentRefreshIsReuse(t *testing.T) {
	s := start(t, Options{})
	tok := login(t, s)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, _ = clientConfig(s).TokenSource(withClient(t, s), &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
		})
	}
	wg.Wait()
	count := map[Outcome]int{}
	for _, u := range s.RefreshUses() {
		count[u.Outcome]++
	}
	if count[Accepted] != 1 || count[Reused] != 7 || !s.Families()[0].Revoked {
		t.Errorf("outcomes %v, revoked %v", count, s.Families()[0].Revoked)
	}
}

func TestRefreshLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startPipe(t, Options{RefreshLifetime: time.Hour})
		defer closeServer(t, s)
		tok := login(t, s)
		time.Sleep(time.Hour)
		_, err := clientConfig(s).TokenSource(withClient(t, s), &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
		wantErrorCode(t, err, "invalid_grant")
	})
}

func TestDeviceFlow(t *testing.T) {
	for _, tt := range []struct {
		name, decision, code string
	}{{"approved", "approve", ""}, {"denied", "deny", "access_denied"}, {"ignored", "", "expired_token"}} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startPipe(t, Options{Approval: AskUser, DeviceLifetime: 2 * time.Minute})
				defer closeServer(t, s)
				cfg, ctx := clientConfig(s), withClient(t, s)
				verifier := oauth2.GenerateVerifier()
				da, err := cfg.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
				if err != nil {
					t.Fatal(err)
				}
				if da.Interval != 5 || da.VerificationURI != s.EndpointURL(Verify) || !strings.HasSuffix(da.VerificationURIComplete, da.UserCode) {
					t.Errorf("answer: interval %d, %s", da.Interval, da.VerificationURIComplete)
				}
				da.Expiry = time.Time{} // let the server say that it is over
				var wg sync.WaitGroup
				wg.Go(func() {
					time.Sleep(time.Minute)
					if tt.decision == "" {
						return
					}
					rep := get(t, s, da.VerificationURIComplete) // opening the page decides nothing
					rep.Body.Close()
					if s.state.byUser[bareUserCode(da.UserCode)].status != devicePending {
						t.Error("opening the page decided")
					}
					typed := strings.ToLower(strings.ReplaceAll(da.UserCode, "-", " "))
					rep, err := s.Client().PostForm(s.EndpointURL(Verify), url.Values{"user_code": {typed}, "decision": {tt.decision}})
					if err != nil || rep.StatusCode != 200 {
						t.Error("verify:", err)
						return
					}
					rep.Body.Close()
					if s.Decide(da.UserCode, true) {
						t.Error("a second decision was taken")
					}
				})
				tok, err := cfg.DeviceAccessToken(ctx, da, oauth2.VerifierOption(verifier))
				wg.Wait()
				for _, r := range s.Requests(Token)[:11] {
					if r.Status != 400 {
						t.Errorf("a poll while pending: %d", r.Status)
					}
				}
				if tt.code != "" {
					wantErrorCode(t, err, tt.code)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if status, _ := use(t, s, tok.AccessToken); status != 200 || tok.RefreshToken == "" {
					t.Errorf("resource %d", status)
				}
				// The device code is good once, and its second use ends what the first one gave.
				_, err = cfg.DeviceAccessToken(ctx, da, oauth2.VerifierOption(verifier))
				wantErrorCode(t, err, "invalid_grant")
				if s.Valid(tok.AccessToken) {
					t.Error("the family outlived the reuse of its device code")
				}
			})
		})
	}
}

func TestSlowDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := startPipe(t, Options{Approval: AskUser})
		defer closeServer(t, s)
		da, err := clientConfig(s).DeviceAuth(withClient(t, s))
		if err != nil {
			t.Fatal(err)
		}
		poll := url.Values{"client_id": {"test-client"}, "grant_type": {GrantDevice}, "device_code": {da.DeviceCode}}
		for i, step := range []struct {
			after time.Duration
			want  string
		}{
			{0, "authorization_pending"},
			{5 * time.Second, "authorization_pending"},
			{4 * time.Second, "slow_down"}, // now 10 s
			{5 * time.Second, "slow_down"}, // now 15 s
			{15 * time.Second, "authorization_pending"},
		} {
			time.Sleep(step.after)
			status, answer := post(t, s, Token, poll)
			if status != 400 || answer["error"] != step.want {
				t.Errorf("poll %d: %d %v, want %s", i, status, answer["error"], step.want)
			}
		}
		s.Decide(da.UserCode, true)
		if status, _ := post(t, s, Token, poll); status != 200 { // slow_down is a kind of pending only
			t.Errorf("after approval: %d", status)
		}
	})
}

func TestRevocation(t *testing.T) {
	s := start(t, Options{Clients: []Client{
		{ID: "test-client", RedirectURIs: []string{testRedirect}}, {ID: "other-client"},
	}})
	tok := login(t, s)
	form := func(client, token string) url.Values { return url.Values{"client_id": {client}, "token": {token}} }
	if status, body := post(t, s, Revoke, form("other-client", tok.AccessToken)); status != 400 || body["error"] != "invalid_grant" {
		t.Errorf("another client's token: %d %v", status, body)
	}
	if status, body := post(t, s, Revoke, form("test-client", "")); status != 400 || body["error"] != "invalid_request" {
		t.Errorf("no token: %d %v", status, body)
	}
	if status, _ := post(t, s, Revoke, form("test-client", "unknown")); status != 200 {
		t.Errorf("unknown token: %d", status)
	}
	withHint := form("test-client", tok.AccessToken)
	withHint.Set("token_type_hint", "refresh_token") // wrong on purpose
	if status, _ := post(t, s, Revoke, withHint); status != 200 || s.Valid(tok.AccessToken) || !s.Valid(tok.RefreshToken) {
		t.Errorf("access token: %d, valid %v, refresh token valid %v", status, s.Valid(tok.AccessToken), s.Valid(tok.RefreshToken))
	}
	again, err := clientConfig(s).TokenSource(withClient(t, s), &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := post(t, s, Revoke, form("test-client", again.RefreshToken)); status != 200 || s.Valid(again.AccessToken) {
		t.Errorf("refresh token: %d, access token valid %v", status, s.Valid(again.AccessToken))
	}
	other := login(t, s)
	if !s.RevokeToken(other.RefreshToken) || s.Valid(other.AccessToken) || s.RevokeToken("unknown") {
		t.Error("RevokeToken")
	}
}

func TestMetadata(t *testing.T) {
	s := start(t, Options{Scopes: []string{"read"}})
	rep := get(t, s, s.EndpointURL(Metadata))
	defer rep.Body.Close()
	var m map[string]any
	if err := json.NewDecoder(rep.Body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	if m["issuer"] != s.URL() || m["token_endpoint"] != s.URL()+"/token" || m["device_authorization_endpoint"] != s.URL()+"/device" {
		t.Errorf("metadata %v", m)
	}
}
