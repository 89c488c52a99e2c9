package oauthtest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// refreshOnce sends one refresh and reads the whole answer.
func refreshOnce(t *testing.T, ctx context.Context, s *Server, token string) (*http.Response, []byte, error) {
	t.Helper()
	form := url.Values{"client_id": {"test-client"}, "grant_type": {GrantRefresh}, "refresh_token": {token}}
	req, err := http.NewRequestWithContext(ctx, "POST", s.EndpointURL(Token), strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	rep, err := s.Client().Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer rep.Body.Close()
	body, err := io.ReadAll(rep.Body)
	return rep, body, err
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fault   Fault
		outcome Outcome
		rotated bool
		check   func(t *testing.T, rep *http.Response, body []byte, err error)
	}{
		{"rate limited", RateLimited("7"), Unprocessed, false, func(t *testing.T, rep *http.Response, body []byte, err error) {
			if err != nil || rep.StatusCode != 429 || rep.Header.Get("Retry-After") != "7" {
				t.Error(rep, err)
			}
		}},
		{"rate limited without a word", RateLimited(""), Unprocessed, false, func(t *testing.T, rep *http.Response, body []byte, err error) {
			if err != nil || rep.StatusCode != 429 || rep.Header.Get("Retry-After") != "" {
				t.Error(rep, err)
			}
		}},
		{"server error", Fault{Status: 500}, Unprocessed, false, wantAnswer(500, "")},
		{"server error after issue", Fault{Status: 500, AfterIssue: true}, Accepted, true, wantAnswer(500, "access_token")},
		{"unauthorised", ErrorAnswer(401, "invalid_client"), Unprocessed, false, wantAnswer(401, "invalid_client")},
		{"error with 200", ErrorAnswer(200, "slow_down"), Unprocessed, false, wantAnswer(200, "slow_down")},
		{"own body", Fault{Status: 502, Body: new("<html>")}, Unprocessed, false, wantAnswer(502, "<html>")},
		{"no refresh token", Without("refresh_token"), Accepted, true, wantField("refresh_token", "")},
		{"expires_in missing", Without("expires_in"), Accepted, true, wantField("expires_in", "")},
		{"expires_in string", With("expires_in", `"3600"`), Accepted, true, wantField("expires_in", `"3600"`)},
		{"expires_in zero", With("expires_in", `0`), Accepted, true, wantField("expires_in", `0`)},
		{"expires_in negative", With("expires_in", `-5`), Accepted, true, wantField("expires_in", `-5`)},
		{"expires_in huge", With("expires_in", `1e300`), Accepted, true, wantField("expires_in", `1e300`)},
		{"large", Padded(1 << 20), Accepted, true, func(t *testing.T, rep *http.Response, body []byte, err error) {
			if err != nil || rep.StatusCode != 200 || len(body) < 1<<20 || !json.Valid(body) {
				t.Error(len(body), err)
			}
		}},
		{"dropped before", Fault{Drop: true}, Unprocessed, false, wantBroken},
		{"dropped after issue", DroppedReply(), Accepted, true, wantBroken},
		{"cut", Fault{AfterIssue: true, Drop: true, DropAfter: 10}, Accepted, true, func(t *testing.T, rep *http.Response, body []byte, err error) {
			if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) != 10 {
				t.Error(len(body), err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := start(t, Options{})
			tok := login(t, s)
			s.Fault(Token, tt.fault, 1)
			rep, body, err := refreshOnce(t, t.Context(), s, tok.RefreshToken)
			tt.check(t, rep, body, err)
			if rotated := !s.Valid(tok.RefreshToken); rotated != tt.rotated {
				t.Errorf("rotated: %v", rotated)
			}
			if u := s.RefreshUses(); len(u) != 1 || u[0].Outcome != tt.outcome || u[0].Token != tok.RefreshToken {
				t.Errorf("%d uses", len(u))
			}
			if r := s.Requests(Token)[1]; !r.Faulted {
				t.Error("the log does not say that it was faulted")
			}
			// The fault was for one request.
			rep, _, err = refreshOnce(t, t.Context(), s, s.Families()[0].RefreshTokens[len(s.Families()[0].RefreshTokens)-1])
			if err != nil || rep.StatusCode != 200 {
				t.Errorf("the request after the fault: %v", err)
			}
		})
	}
}

func wantAnswer(status int, text string) func(*testing.T, *http.Response, []byte, error) {
	return func(t *testing.T, rep *http.Response, body []byte, err error) {
		if err != nil || rep.StatusCode != status || !strings.Contains(string(body), text) {
			t.Errorf("%v, err %v", rep, err)
		}
	}
}

func wantField(name, raw string) func(*testing.T, *http.Response, []byte, error) {
	return func(t *testing.T, rep *http.Response, body []byte, err error) {
		var answer map[string]json.RawMessage
		if err != nil || rep.StatusCode != 200 || json.Unmarshal(body, &answer) != nil {
			t.Fatal(rep, err)
		}
		if string(answer[name]) != raw || answer["access_token"] == nil {
			t.Errorf("%s is %s", name, answer[name])
		}
	}
}

func wantBroken(t *testing.T, rep *http.Response, _ []byte, err error) {
	if err == nil {
		t.Errorf("status %d", rep.StatusCode)
	}
}

func TestFaultsQueue(t *testing.T) {
	s := start(t, Options{})
	s.Fault(Resource, Fault{Status: 500}, 2)
	s.Fault(Resource, Fault{Status: 503}, 1)
	s.Fault(Resource, Fault{Status: 502}, 0)
	s.Fault(Resource, Fault{Status: 418}, -1)
	status := func() int {
		rep := get(t, s, s.EndpointURL(Resource))
		rep.Body.Close()
		return rep.StatusCode
	}
	for i, want := range []int{500, 500, 503, 418, 418, 418} {
		if got := status(); got != want {
			t.Errorf("request %d: %d, want %d", i, got, want)
		}
	}
	s.ClearFaults()
	if got := status(); got != 401 {
		t.Errorf("after ClearFaults: %d", got)
	}
}

func TestSlowAnswers(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fault Fault
		takes time.Duration
	}{
		{"delay", Fault{Delay: 20 * time.Second}, 20 * time.Second},
		{"drip", Fault{Status: 500, Body: new("0123456789"), Drip: time.Second}, 9 * time.Second}, // the tenth byte ends the body
		{"drip, then cut", Fault{Body: new("0123456789"), Drip: time.Second, Drop: true, DropAfter: 3}, 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startPipe(t, Options{})
				defer closeServer(t, s)
				tok := login(t, s)
				s.Fault(Token, tt.fault, 1)
				begin := time.Now()
				_, _, err := refreshOnce(t, t.Context(), s, tok.RefreshToken)
				if took := time.Since(begin); took != tt.takes || (err != nil) != tt.fault.Drop {
					t.Errorf("took %v, err %v", took, err)
				}
			})
		})
	}
}

func TestHeldAnswer(t *testing.T) {
	for _, end := range []string{"released", "client gone", "server closed"} {
		t.Run(end, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := startPipe(t, Options{})
				defer closeServer(t, s)
				tok := login(t, s)
				release := make(chan struct{})
				s.Fault(Token, Fault{Wait: release}, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				got := make(chan error, 1)
				go func() {
					_, _, err := refreshOnce(t, ctx, s, tok.RefreshToken)
					got <- err
				}()
				if err := s.WaitCalls(ctx, Token, 2); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if s.Valid(tok.RefreshToken) {
					t.Error("the request waits to be processed; only its answer should wait")
				}
				select {
				case err := <-got:
					t.Fatal("answered early:", err)
				default:
				}
				switch end {
				case "released":
					close(release)
				case "client gone":
					cancel()
				case "server closed":
					closeServer(t, s)
				}
				if err := <-got; (err != nil) != (end == "client gone") {
					t.Error(err)
				}
			})
		})
	}
}

func TestWaitCallsEnds(t *testing.T) {
	s := start(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WaitCalls(ctx, Token, 1); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestHandlerAlone(t *testing.T) {
	s, err := New(Options{Issuer: "http://as.example"})
	if err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest("GET", string(Metadata), nil))
	if rec.Code != 200 || !strings.Contains(rec.Body.String(), "http://as.example/token") {
		t.Error(rec.Code)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A server must not print what it holds.
func TestServerDoesNotPrintSecrets(t *testing.T) {
	s := start(t, Options{Clients: testClients()})
	login(t, s)
	if got := s.String(); got != "oauthtest server "+s.URL() {
		t.Error(got)
	}
}
