package keyring

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// What /usr/bin/security of macOS writes and reads, as functions that run, and are tested, everywhere.

// maxCommand is the size of the buffer in which security -i has a line. What is longer it would cut off and store.
const maxCommand = 4096

// Exit statuses of security are the low bytes of the errors of the Security framework.
const (
	exitNotFound      = 44  // errSecItemNotFound, -25300
	exitNoInteraction = 36  // errSecInteractionNotAllowed, -25308: it would have to ask, and there is nobody
	exitAuthFailed    = 51  // errSecAuthFailed, -25293: somebody was asked and said no, or typed a wrong password
	exitCancelled     = 128 // userCanceledErr, -128
	exitNoKeychain    = 50  // errSecNoSuchKeychain, -25294
	exitNoDefault     = 37  // errSecNoDefaultKeychain, -25307
)

// errKeychainLocked says what to do: the item may be another program's, or the keychain is locked.
var errKeychainLocked = fmt.Errorf("%w: unlock the keychain (security unlock-keychain, or in Keychain Access), and if macOS asks whether "+
	"\"security\" may use the item, answer \"Always Allow\"", store.ErrLocked)

var errNoKeychain = fmt.Errorf("%w: this user has no default keychain (log in at the Mac once, or see security default-keychain)", store.ErrUnavailable)

// exitError is what a status other than 0 of the command means. It says nothing that security printed: a value may be in there.
func exitError(command string, status int) error {
	switch status {
	case exitNotFound:
		return store.ErrNotFound
	case exitNoInteraction, exitAuthFailed, exitCancelled:
		return errKeychainLocked
	case exitNoKeychain, exitNoDefault:
		return errNoKeychain
	}
	return fmt.Errorf("the keychain refused %s: exit status %d of security", command, status)
}

// answerLimit is the time that a person has to answer macOS's question; a request from a sandbox waits no longer than that either.
const answerLimit = 12 * time.Second

// unasked is the time in which an answer comes that nobody was asked for.
const unasked = time.Second

// quiet is how long nobody is asked again about an item after a question that went unanswered or was answered with no.
const quiet = time.Minute

// questions remembers them. security cannot be told never to ask, and a sandbox that wants a token again and again would train a
// person to say yes. It is safe for concurrent use.
type questions struct {
	mu   sync.Mutex
	last map[store.Item]time.Time
}

// before returns an error if a call now would ask once more.
func (q *questions) before(it store.Item) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at, asked := q.last[it]; asked && time.Since(at) < quiet {
		return errKeychainLocked
	}
	return nil
}

// after is told how a call for the item has ended, and how long it took. To hang up on a question is no answer either.
func (q *questions) after(it store.Item, took time.Duration, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	gaveUp := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
	if !errors.Is(err, store.ErrLocked) && !errors.Is(err, errSilent) && (!gaveUp || took < unasked) {
		delete(q.last, it)
		return
	}
	if q.last == nil {
		q.last = make(map[store.Item]time.Time)
	}
	q.last[it] = time.Now()
}

// addCommand returns the line for security -i that stores the item. It is for stdin: arguments are for all to see. The
// value is in hexadecimal form, so it can have any bytes.
func addCommand(it store.Item, value secret.String) (secret.String, error) {
	service, err := quoted(it.Service)
	if err != nil {
		return secret.String{}, err
	}
	account, err := quoted(it.Account)
	if err != nil {
		return secret.String{}, err
	}
	line := "add-generic-password -U -s " + service + " -a " + account + " -X " + hex.EncodeToString([]byte(value.Reveal())) + "\n"
	if len(line) >= maxCommand {
		return secret.String{}, fmt.Errorf("%w: %d bytes, more than the keychain's command line tool takes; set store = \"file\" in the configuration",
			store.ErrTooLarge, len(value.Reveal()))
	}
	return secret.New(line), nil
}

// quoted returns a word for security -i.
func quoted(name string) (string, error) {
	for _, r := range name {
		if r < ' ' || r == 0x7f {
			return "", errors.New("the keychain's command line tool takes no control characters in names")
		}
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`, nil
}

// parsePassword finds the value in what security find-generic-password -g writes to stderr: a line "password: " with
// the value in quotes, or, if it has any byte that is not printable ASCII or has a backslash, "0x" and hexadecimal digits,
// perhaps followed by the same in quotes. (With -w in place of -g the two forms cannot be told apart.)
func parsePassword(stderr string) (secret.String, error) {
	for line := range strings.Lines(stderr) {
		if rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "password: "); ok {
			value, ok := parseBlob(rest)
			if !ok {
				break
			}
			return secret.New(value), nil
		}
	}
	return secret.String{}, errors.New("the keychain's command line tool answered in an unknown form")
}

// parseBlob parses one value as security prints it.
func parseBlob(s string) (value string, ok bool) {
	if digits, isHex := strings.CutPrefix(s, "0x"); isHex {
		digits, _, _ = strings.Cut(digits, " ")
		raw, err := hex.DecodeString(digits)
		return string(raw), err == nil
	}
	if s == "" {
		return "", true // nothing is printed for an empty value
	}
	s, opened := strings.CutPrefix(s, `"`)
	s, closed := strings.CutSuffix(s, `"`)
	return s, opened && closed
}

// parseDump returns the accounts that a service has in what security dump-keychain prints, sorted. An item there is
//
//	keychain: "/Users/me/Library/Keychains/login.keychain-db"
//	version: 512
//	class: "genp"
//	attributes:
//	    0x00000007 <blob>="label"
//	    "acct"<blob>="acme:default"
//	    "svce"<blob>="llxprt-code-oauth"
func parseDump(dump, service string) []string {
	var accounts []string
	var class string
	attributes := make(map[string]string)
	finish := func() {
		if account := attributes["acct"]; class == "genp" && attributes["svce"] == service && account != "" && !isProbe(account) {
			accounts = append(accounts, account)
		}
		class = ""
		clear(attributes)
	}
	for line := range strings.Lines(dump) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "keychain: ") {
			finish()
		} else if rest, ok := strings.CutPrefix(line, "class: "); ok {
			class = strings.Trim(rest, `"`)
		} else if name, value, ok := strings.Cut(strings.TrimLeft(line, " "), "<blob>="); ok && line[0] == ' ' {
			if value, ok := parseBlob(value); ok {
				attributes[strings.Trim(name, `"`)] = value
			}
		}
	}
	finish()
	slices.Sort(accounts)
	return slices.Compact(accounts)
}
