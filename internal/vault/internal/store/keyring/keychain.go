package keyring

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/secret"
	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// What /usr/bin/security of macOS writes and reads, as functions that run, and are tested, everywhere.

// maxCommand is the longest line that security -i takes.
const maxCommand = 4096

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
		return secret.String{}, fmt.Errorf("a value of %d bytes is too long for the keychain's command line tool; "+
			"set store = \"file\" in the configuration", len(value.Reveal()))
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
