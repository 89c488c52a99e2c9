package refresh_test

import (
	"strings"
	"testing"

	"github.com/credproxy/credproxy/internal/oauthtest"
)

func TestManyProcesses(t *testing.T) {
	i := newIssuer(t, false, oauthtest.Options{})
	manyProcesses(t, i, newPlace(t, i))
}

// manyProcesses has 16 goroutines in each of four processes ask for one login at once, three times: all have found the same token
// wanting; again, as late comers that have not seen the new one yet; and for the new one, moments after it was made. The provider
// is asked once.
func manyProcesses(t *testing.T, i *issuer, at place) {
	old := i.login(t)
	p := at.start(t)
	p.save(t, item("many"), old)
	calls := i.Calls(oauthtest.Token)
	var children []*child
	for range 4 {
		children = append(children, startChild(t, task{Role: "many ask at once", Place: at, Buckets: []string{"many"}, Number: 16}))
	}
	for _, wave := range []string{"at once", "late comers", "at once again"} {
		for _, c := range children {
			c.until(t, "ready")
		}
		if wave == "at once again" {
			p.momentAgo(t, item("many"))
		}
		for _, c := range children {
			c.goOn(t)
		}
		var answers []string
		for _, c := range children {
			answers = append(answers, c.line(t))
		}
		now := p.read(t, item("many"))
		for _, a := range answers {
			if a != now.AccessToken.Fingerprint() || a == old.AccessToken.Fingerprint() {
				t.Fatalf("%s: the answers are not one new token: %s", wave, strings.Join(answers, "; "))
			}
		}
		if n := i.Calls(oauthtest.Token) - calls; n != 1 {
			t.Fatalf("%s: %d requests to the provider", wave, n)
		}
	}
	if len(i.uses(old.RefreshToken)) != 1 || len(i.uses(p.read(t, item("many")).RefreshToken)) != 0 {
		t.Error("refresh tokens were used more than once")
	}
	for _, c := range children {
		if err := c.cmd.Wait(); err != nil {
			t.Errorf("a child: %v\n%s", err, c.stderr.String())
		}
	}
	for _, token := range i.Issued().All() {
		if strings.Contains(p.log.String(), token) {
			t.Error("a token is in the log")
		}
	}
}
