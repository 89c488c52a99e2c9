//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

// atOnce is how many logins are made at the same time: less than a proxy lets be pending.
const atOnce = 12

// Every provider, by each of its flows: a login, its token, a refresh, a logout.
func TestLoginToEveryProviderOnTheHost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	all := vendors(t, false)
	h.configure(generous + sections(all))
	h.mustWith(oauthtest.ClientSecret, "key", "set", "my-gemini-secret")
	checkProviders(t, h, all)
	everyLogin(t, all, func(v *vendor, bucket, flow string) error {
		login := v.name + "/" + bucket
		if err := logIn(hostStation{h}, v, login, flow, bucket == "first", "--no-browser"); err != nil {
			return err
		}
		if err := useLogin(hostStation{h}, v, login); err != nil {
			return err
		}
		return logOut(h, v, login)
	})
	if list := h.must("auth", "status", "--json"); !strings.Contains(list, `"logins":[]`) {
		t.Errorf("after the logouts: %s", list)
	}
	for _, v := range all {
		h.onlySealed(v.s)
		neverReused(t, v.s)
	}
}

// The same from inside, where the host does it: in each engine one sandbox in which all is done at once.
func TestLoginToEveryProviderInASandbox(t *testing.T) {
	eachEngine(t, func(t *testing.T, s *sandboxed) {
		all := vendors(t, true)
		s.configure(generous + "[profiles.work.providers]\n\"*\" = [\"*\"]\n" + sections(all))
		s.mustWith(oauthtest.ClientSecret, "key", "set", "my-gemini-secret")
		in := s.enter(t)
		raw := s.engine == "podman" && s.uid != 0 // there by the protocol, elsewhere by our command
		everyLogin(t, all, func(v *vendor, bucket, flow string) error {
			login := v.name + "/" + bucket
			var err error
			if raw {
				err = logInRaw(in, v, login, flow, bucket == "first")
			} else {
				err = logIn(in, v, login, flow, bucket == "first")
			}
			if err != nil {
				return err
			}
			if err := useLogin(in, v, login); err != nil {
				return err
			}
			return logOutInside(in, login)
		})
		in.leave(t)
		s.nothingLeft(t, "logins")
		for _, v := range all {
			s.onlySealed(v.s)
			neverReused(t, v.s)
		}
		checkAudit(t, s, all)
	})
}

// everyLogin does f for each flow of each vendor, in the buckets first, browser, device and paste. The first flow is the
// one that nobody names.
func everyLogin(t *testing.T, all []*vendor, f func(v *vendor, bucket, flow string) error) {
	t.Helper()
	var logins sync.WaitGroup
	room := make(chan struct{}, atOnce)
	for _, v := range all {
		for i, flow := range v.flows {
			bucket := flow
			if i == 0 {
				bucket = "first"
			}
			logins.Go(func() {
				if v.ownPorts && flow == "browser" {
					vendorPorts.Lock()
					defer vendorPorts.Unlock()
				}
				room <- struct{}{}
				defer func() { <-room }()
				if err := f(v, bucket, flow); err != nil {
					t.Errorf("%s by %s: %v", v.name, flow, err)
				}
			})
		}
	}
	logins.Wait()
}

// logIn runs auth login and does the person's part. Without a name for the flow, the provider's first has to be taken.
func logIn(at station, v *vendor, login, flow string, unnamed bool, flags ...string) error {
	args := append([]string{"auth", "login", login}, flags...)
	if !unnamed {
		args = append(args, "--flow", flow)
	}
	r, err := at.begin(args...)
	if err != nil {
		return err
	}
	if err := (person{v.s}).login(r, flow); err != nil {
		return err
	}
	switch code, err := r.wait(); {
	case err != nil:
		return err
	case code != 0 || !strings.Contains(r.stderr.String(), "logged in: ") || !strings.Contains(r.stderr.String(), login):
		return fmt.Errorf("status %d: %v", code, r)
	case strings.Count(r.stdout.String(), "\n") != 1:
		return fmt.Errorf("stdout has more than the address: %v", r)
	}
	return nil
}

// logInRaw makes the same login by the protocol, as docs/protocol.md section 8 says.
func logInRaw(in *inside, v *vendor, login, flow string, unnamed bool) error {
	payload := about(login)
	types := map[string]string{"browser": "browser_redirect", "device": "device_code", "paste": "pkce_redirect"}
	if !unnamed {
		payload["flow"] = types[flow]
	}
	a, err := in.ask("oauth_initiate", payload)
	if err != nil || !a.OK || a.Data["flow_type"] != types[flow] {
		return fmt.Errorf("oauth_initiate: %v (%s), %v", a, a.Error, err)
	}
	want := map[string][]string{
		"browser": {"auth_url", "flow_type", "pollIntervalMs", "session_id"},
		"device":  {"flow_type", "pollIntervalMs", "session_id", "user_code", "verification_url"},
		"paste":   {"auth_url", "flow_type", "session_id"},
	}[flow]
	if names := namesOf(a.Data); !slices.Equal(names, want) {
		return fmt.Errorf("oauth_initiate answers the members %v, want %v", names, want)
	}
	id, _ := a.Data["session_id"].(string)
	address, _ := a.Data["auth_url"].(string)
	interval := 5 * time.Second
	p := person{v.s}
	switch flow {
	case "paste":
		pasted, err := p.copies(address)
		if err != nil {
			return err
		}
		a, err = in.ask("oauth_exchange", m{"session_id": id, "code": pasted})
		if err != nil || !a.OK || a.Data["access_token"] == "" {
			return fmt.Errorf("oauth_exchange: %v (%s), %v", a, a.Error, err)
		}
		return noSecret(a, v)
	case "device":
		address, _ := a.Data["verification_url"].(string)
		code, _ := a.Data["user_code"].(string)
		err = p.enter(address, code)
	default:
		err = p.opens(address)
	}
	if err != nil {
		return err
	}
	for begun := time.Now(); time.Since(begun) < patience; {
		if ms, ok := a.Data["pollIntervalMs"].(float64); ok {
			interval = time.Duration(ms) * time.Millisecond
		}
		time.Sleep(interval)
		a, err = in.ask("oauth_poll", m{"session_id": id})
		if err != nil || !a.OK {
			return fmt.Errorf("oauth_poll: %v (%s), %v", a, a.Error, err)
		}
		if a.Data["status"] == "pending" {
			continue
		}
		if a.Data["status"] != "complete" || a.Data["access_token"] == "" {
			return fmt.Errorf("oauth_poll: %v", a)
		}
		return noSecret(a, v)
	}
	return fmt.Errorf("oauth_poll is pending for ever: %v", a)
}

func namesOf(o m) []string {
	var names []string
	for name := range o {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func noSecret(a answer, v *vendor) error {
	text := a.String()
	for _, secret := range append(v.s.Issued().RefreshTokens, v.s.Issued().DeviceCodes...) {
		if strings.Contains(text, secret) || a.Data["refresh_token"] != nil {
			return fmt.Errorf("the answer holds a secret: %v", namesOf(a.Data))
		}
	}
	return nil
}

// useLogin takes the token of a login, and has it renewed where the provider does that.
func useLogin(at station, v *vendor, login string) error {
	first, err := tokenOf(at, v, login)
	if err != nil || !v.refreshes {
		return err
	}
	r, err := at.begin("auth", "refresh", login)
	if err != nil {
		return err
	}
	if code, err := r.wait(); err != nil || code != 0 {
		return fmt.Errorf("status %d, %v: %v", code, err, r)
	}
	second, err := tokenOf(at, v, login)
	if err != nil {
		return err
	}
	if second["access_token"] == first["access_token"] {
		return fmt.Errorf("the token after the refresh is the one before")
	}
	f := familyOf(v.s, second["access_token"])
	if f == nil || len(f.AccessTokens) != 2 || (len(f.RefreshTokens) == 2) != v.rotates {
		return fmt.Errorf("the provider knows of another refresh: %+v", f != nil)
	}
	return nil
}

// tokenOf asks for a token and looks whether it is what the provider issued.
func tokenOf(at station, v *vendor, login string) (m, error) {
	r, err := at.begin("token", login, "--json")
	if err != nil {
		return nil, err
	}
	code, err := r.wait()
	if err != nil || code != 0 {
		return nil, fmt.Errorf("status %d, %v: %v", code, err, r)
	}
	var token m
	if err := json.Unmarshal([]byte(r.stdout.String()), &token); err != nil {
		return nil, fmt.Errorf("%w: %v", err, r)
	}
	access, _ := token["access_token"].(string)
	if !v.s.Valid(access) || token["refresh_token"] != nil || token["not_named"] != nil {
		return nil, fmt.Errorf("not a token of the provider's, or more than that: members %v", namesOf(token))
	}
	for name, want := range v.token {
		if got := token[name]; got != want && !(want == 0.0 && got == nil) {
			return nil, fmt.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	expiry, _ := token["expiry"].(float64)
	if left := time.Until(time.Unix(int64(expiry), 0)); v.token["expiry"] == nil && (left < 50*time.Minute || left > 9*time.Hour) {
		return nil, fmt.Errorf("it expires in %v", left)
	}
	return token, nil
}

func familyOf(s *oauthtest.Server, access any) *oauthtest.Family {
	for _, f := range s.Families() {
		if slices.Contains(f.AccessTokens, fmt.Sprint(access)) {
			return &f
		}
	}
	return nil
}

// logOut logs out on the host; a provider that can revoke does it.
func logOut(h *host, v *vendor, login string) error {
	token, err := tokenOf(hostStation{h}, v, login)
	if err != nil {
		return err
	}
	args := []string{"auth", "logout", login}
	revokes := v.s.EndpointURL(oauthtest.Revoke) != ""
	if revokes {
		args = append(args, "--revoke")
	}
	if r := h.run(args...); r.code != 0 {
		return fmt.Errorf("%v", r)
	}
	if f := familyOf(v.s, token["access_token"]); f == nil || f.Revoked != revokes {
		return fmt.Errorf("revoked at the provider: %v, want %v", f != nil && f.Revoked, revokes)
	}
	if r := h.run("token", login); r.code != 3 {
		return fmt.Errorf("after the logout: %v", r)
	}
	return nil
}

func logOutInside(in *inside, login string) error {
	for _, step := range []struct {
		code int
		args []string
	}{{0, []string{"auth", "logout", login}}, {3, []string{"token", login}}} {
		r, err := in.begin(step.args...)
		if err != nil {
			return err
		}
		if code, err := r.wait(); err != nil || code != step.code {
			return fmt.Errorf("status %d, %v: %v", code, err, r)
		}
	}
	return nil
}

// checkProviders compares what `credproxy providers` says of the flows with what is tested here.
func checkProviders(t *testing.T, h *host, all []*vendor) {
	t.Helper()
	var list []struct {
		Name, Status string
		Flows        []string
	}
	if err := json.Unmarshal([]byte(h.must("providers", "--json")), &list); err != nil {
		t.Fatal(err)
	}
	for _, v := range all {
		found := false
		for _, p := range list {
			if p.Name != v.name {
				continue
			}
			found = true
			if v.name == "found" { // nobody has asked the issuer yet
				p.Flows = v.flows
			}
			if !slices.Equal(p.Flows, v.flows) || p.Status != "ok" {
				t.Errorf("providers says of %s: %+v, want the flows %v", v.name, p, v.flows)
			}
		}
		if !found {
			t.Errorf("providers does not list %s", v.name)
		}
	}
}

// checkAudit looks for the record of each login.
func checkAudit(t *testing.T, s *sandboxed, all []*vendor) {
	t.Helper()
	count, want := map[any]int{}, map[any]int{}
	for _, e := range auditEvents(t, s.host) {
		if op, _ := e["op"].(string); !strings.HasPrefix(op, "oauth_") {
			continue
		}
		count[e["op"]]++
		if e["outcome"] != "ok" || e["provider"] == nil || e["bucket"] == nil || s.image != "" && e["container"] == nil {
			t.Errorf("audit log: %v", e)
		}
	}
	for _, v := range all {
		for _, flow := range v.flows {
			want["oauth_initiate"]++
			if flow == "paste" {
				want["oauth_exchange"]++
			} else {
				want["oauth_login"]++
				want["oauth_poll"]++
			}
		}
	}
	if fmt.Sprint(count) != fmt.Sprint(want) {
		t.Errorf("the audit log has %v, want %v", count, want)
	}
}
