package keyring

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// printed is a value as security prints it.
func printed(value string) string {
	plain, digits := true, true
	var octal strings.Builder
	for i := range len(value) {
		c := value[i]
		if c >= ' ' && c <= '~' && c != '\\' {
			octal.WriteByte(c)
			digits = false
		} else {
			fmt.Fprintf(&octal, `\%03o`, c)
			plain = false
		}
	}
	switch {
	case value == "":
		return ""
	case plain:
		return `"` + value + `"`
	case digits:
		return "0x" + strings.ToUpper(hex.EncodeToString([]byte(value)))
	}
	return "0x" + strings.ToUpper(hex.EncodeToString([]byte(value))) + `  "` + octal.String() + `"`
}

func TestParsePassword(t *testing.T) {
	for _, want := range []string{
		"x", "616263", "0x6162", `"`, `a"b`, `""`, `\`, `a\b`, "é", "a é\n", "\n", "ends\n", " ", `{"a":"b"}`, "password: x",
	} {
		got, err := parsePassword("keychain is there\npassword: " + printed(want) + "\n")
		if err != nil || got.Reveal() != want {
			t.Errorf("%q, printed %s: %q, %v", want, printed(want), got.Reveal(), err)
		}
	}
	if got, err := parsePassword("password: \n"); err != nil || !got.IsZero() {
		t.Errorf("empty: %v", err)
	}
	for _, bad := range []string{"", "password:", "password: \"test-canary", "password: 0xTESTCANARY", "password: test-canary", "nothing\n"} {
		if got, err := parsePassword(bad); err == nil || !got.IsZero() || strings.Contains(strings.ToLower(err.Error()), "canary") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParsePassword(f *testing.F) {
	f.Add("a\\\"é\n")
	f.Fuzz(func(t *testing.T, want string) {
		if got, err := parsePassword("password: " + printed(want) + "\n"); err != nil || got.Reveal() != want {
			t.Errorf("%q comes back as %q, %v", want, got.Reveal(), err)
		}
	})
}

func TestParseDump(t *testing.T) {
	item := func(class, service, account string) string {
		return `keychain: "/Users/me/Library/Keychains/login.keychain-db"
version: 512
class: "` + class + `"
attributes:
    0x00000007 <blob>=` + printed(service) + `
    0x00000008 <blob>=<NULL>
    "acct"<blob>=` + printed(account) + `
    "cdat"<timedate>=0x32303236313132313138303030305A00  "20261121180000Z\000"
    "crtr"<uint32>=<NULL>
    "svce"<blob>=` + printed(service) + `
    "type"<uint32>=<NULL>
`
	}
	dump := item("genp", "svc", "b:default") + item("genp", "svc", "a:default") + item("genp", "other", "x") +
		item("inet", "svc", "web") + item("genp", "svc", "é:default") + item("genp", "svc", `a"b`) +
		item("genp", "svc", "__securestore_probe__12345678") + item("genp", "svc", "a:default")
	if got, want := parseDump(dump, "svc"), []string{`a"b`, "a:default", "b:default", "é:default"}; !slices.Equal(got, want) {
		t.Errorf("parseDump = %q, want %q", got, want)
	}
	for _, odd := range []string{"", "\n", "garbage", `    "acct"<blob>="x"`, "keychain: \nclass: \"genp\"\n", `    "svce"<blob>="svc`} {
		if got := parseDump(odd, "svc"); len(got) != 0 {
			t.Errorf("%q: %q", odd, got)
		}
	}
}

func TestAddCommand(t *testing.T) {
	line, err := addCommand(store.Item{Service: "svc", Account: `me "x" \ é`}, secret.New("v\n\"é"))
	if want := `add-generic-password -U -s "svc" -a "me \"x\" \\ é" -X 760a22c3a9` + "\n"; err != nil || line.Reveal() != want {
		t.Errorf("%q, %v; want %q", line.Reveal(), err, want)
	}
	long := secret.New(strings.Repeat("test-canary", 200))
	for name, f := range map[string]func() (secret.String, error){
		"long":    func() (secret.String, error) { return addCommand(store.Item{Service: "svc", Account: "a"}, long) },
		"newline": func() (secret.String, error) { return addCommand(store.Item{Service: "svc", Account: "a\nb"}, long) },
		"control": func() (secret.String, error) { return addCommand(store.Item{Service: "s\x1b", Account: "a"}, long) },
	} {
		if line, err := f(); err == nil || !line.IsZero() || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAddCommandLimit(t *testing.T) {
	it := store.Item{Service: "llxprt-code-oauth", Account: "codex:default"}
	fits := 0
	for n := range maxCommand {
		line, err := addCommand(it, secret.New(strings.Repeat("x", n+1)))
		if err == nil {
			fits = n + 1
			// The buffer also takes a NUL, and what is cut off would become the next command.
			if len(line.Reveal()) >= maxCommand {
				t.Fatalf("a line of %d bytes", len(line.Reveal()))
			}
		} else if !errors.Is(err, store.ErrTooLarge) {
			t.Fatalf("%d bytes: %v", n+1, err)
		}
	}
	if fits < 1900 || fits > maxCommand/2 {
		t.Errorf("values of up to %d bytes fit", fits)
	}
}

func TestExitError(t *testing.T) {
	for status, want := range map[int]error{
		44: store.ErrNotFound, 36: store.ErrLocked, 51: store.ErrLocked, 128: store.ErrLocked, 50: store.ErrUnavailable, 37: store.ErrUnavailable,
	} {
		if err := exitError("find-generic-password", status); !errors.Is(err, want) {
			t.Errorf("%d: %v, want %v", status, err, want)
		}
	}
	if err := exitError("-i", 1); err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("another status: %v", err)
	}
}

func TestQuestions(t *testing.T) {
	one, two := store.Item{Service: "svc", Account: "one"}, store.Item{Service: "svc", Account: "two"}
	for name, c := range map[string]struct {
		took  time.Duration
		err   error
		quiet bool
	}{
		"answered":               {5 * time.Second, nil, false},
		"not there":              {0, store.ErrNotFound, false},
		"no":                     {2 * time.Second, errKeychainLocked, true},
		"nobody there":           {answerLimit, errSilent, true},
		"hung up on":             {2 * time.Second, context.Canceled, true},
		"hung up before it came": {0, context.Canceled, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			var q questions
			if err := q.before(one); err != nil {
				t.Fatal(err)
			}
			q.after(one, c.took, c.err)
			time.Sleep(quiet - time.Second)
			if err := q.before(one); (err != nil) != c.quiet || err != nil && !errors.Is(err, store.ErrLocked) {
				t.Errorf("%s: soon after: %v", name, err)
			}
			if err := q.before(two); err != nil {
				t.Errorf("%s: another item: %v", name, err)
			}
			time.Sleep(time.Second)
			if err := q.before(one); err != nil {
				t.Errorf("%s: later: %v", name, err)
			}
		})
	}
}
