package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync/atomic"
	"time"
)

// face is what a person sees of one login, on the host and inside alike: it is a vault.Face and a client.LoginFace. The
// address to open is alone on a line of stdout; everything else is on stderr. Its methods are called by one goroutine, the
// login's; rest ends what it still shows.
type face struct {
	app    *app
	login  login
	inside bool // the person's browser is on another machine than this process
	open   bool // open a browser
	qr     bool // show addresses as a QR code too

	stop    func()                    // ends the wait that is shown; nil: there is none
	polling bool                      // that wait is Waiting's
	until   atomic.Pointer[time.Time] // when it ends at the latest
	input   *bufio.Reader             // of stdin when that is no terminal; what it has read ahead is here
}

// exchangeLimit is how long a provider may take to answer a code.
const exchangeLimit = 30 * time.Second

// ShowURL shows the page on which the person logs in.
func (f *face) ShowURL(ctx context.Context, address string) error {
	f.rest()
	if err := openable(address); err != nil {
		return err
	}
	where := ""
	if f.inside {
		where = " in a browser on the host"
	}
	fmt.Fprintf(f.app.stderr, "open this page%s to log in to %s:\n", where, f.login)
	f.show(ctx, address, address)
	return nil
}

// ShowCode shows the page on which the person enters a code, and the code. complete is the page's address with the code in it,
// or "": nobody has to type that one, so only links, QR codes and browsers get it.
func (f *face) ShowCode(ctx context.Context, address, complete, userCode string) error {
	f.rest()
	if err := openable(address); err != nil {
		return err
	}
	if openable(complete) != nil {
		complete = address
	}
	if userCode = oneLine(userCode); userCode == "" || len(userCode) > maxUserCode {
		return errors.New("the provider sent no code that a person could enter")
	}
	fmt.Fprintf(f.app.stderr, "open this page, on any device, to log in to %s:\n", f.login)
	f.show(ctx, address, complete)
	p := f.app.paint(f.app.stderr)
	if isTerminal(f.app.stderr) && !dumb() {
		if big := large(userCode, width(f.app.stderr)); big != "" {
			fmt.Fprintf(f.app.stderr, "\n%s\n", p.boldLines(big))
		}
	}
	fmt.Fprintf(f.app.stderr, "and enter this code there: %s\n", p.bold(userCode))
	return nil
}

// maxUserCode is far beyond what anybody would type.
const maxUserCode = 64

// show prints address, and gives target to what needs no typing.
func (f *face) show(ctx context.Context, address, target string) {
	line := address
	if linking(f.app.stdout) {
		line = link(target, address)
	}
	_ = f.app.write(line + "\n")
	if f.qr {
		picture, err := qrCode(target, bool(f.app.paint(f.app.stderr)), width(f.app.stderr))
		if err != nil {
			picture = err.Error() + "\n"
		}
		fmt.Fprint(f.app.stderr, picture)
	}
	if f.open {
		if err := openBrowser(ctx, target); err != nil {
			fmt.Fprintf(f.app.stderr, "no browser was opened (%s): open the page yourself\n", oneLine(err.Error()))
		}
	}
}

// AskCode asks for what the page shows at the end, or the address of that page. problem says what was wrong with the last
// answer.
func (f *face) AskCode(ctx context.Context, problem string) (string, error) {
	f.rest()
	if problem != "" {
		fmt.Fprintf(f.app.stderr, "%s\n", oneLine(problem))
	}
	var code string
	var err error
	if isTerminal(f.app.stdin) {
		code, err = f.app.askHidden(ctx, codePrompt, problem != "")
	} else {
		fmt.Fprintln(f.app.stderr, "waiting for the code from the page, or the page's whole address, on a line of stdin; Ctrl-C cancels")
		code, err = f.readLine(ctx, maxCode)
		if errors.Is(err, io.EOF) {
			err = &failure{err: errors.New("stdin ended without a code"), hint: "run it in a terminal to be asked, or pipe the code in"}
			if problem != "" {
				err = &failure{err: errors.New(oneLine(problem)), hint: "begin again: credproxy auth login " + f.login.String()}
			}
		}
	}
	if err != nil {
		return "", err
	}
	f.wait(wait{what: "the provider's answer", limit: exchangeLimit, soon: true, ctrlC: cancels})
	return code, nil
}

const codePrompt = "paste the code or the address (not shown): "

// maxCode is where reading of a code ends: longer ones are refused in any case, and whoever refuses them says so.
const maxCode = 64 << 10

// Waiting shows that the person's turn has come in the browser, and until when.
func (f *face) Waiting(until time.Time) {
	f.until.Store(&until)
	if f.polling {
		return
	}
	f.wait(wait{what: "the login in the browser", until: func() time.Time { return *f.until.Load() }, ctrlC: cancels})
	f.polling = true
}

// asking shows that somebody else is asked, if that takes its time.
func (f *face) asking(what string, limit time.Duration) {
	f.wait(wait{what: what, limit: limit, soon: true, ctrlC: cancels})
}

func (f *face) wait(w wait) {
	f.rest()
	f.stop = f.app.waiting(w)
}

// rest ends the wait that is shown.
func (f *face) rest() {
	if f.stop != nil {
		f.stop()
	}
	f.stop, f.polling = nil, false
}

// confirm asks a question that is answered with y or yes, by the terminal or a line of stdin; everything else is no.
func (f *face) confirm(ctx context.Context, question string) (bool, error) {
	f.rest()
	fmt.Fprintf(f.app.stderr, "%s [y/N] ", question)
	answer, err := f.readLine(ctx, maxCode)
	if err != nil || !isTerminal(f.app.stdin) {
		fmt.Fprintln(f.app.stderr)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", nil
}

// readLine reads a line of stdin, of which it keeps the first limit bytes; io.EOF is the end without one. When ctx ends, the
// goroutine that reads is left to the end of the process.
func (f *face) readLine(ctx context.Context, limit int) (string, error) {
	if f.input == nil {
		f.input = bufio.NewReader(f.app.stdin)
	}
	type result struct {
		line []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		var line []byte
		for {
			part, err := f.input.ReadSlice('\n')
			line = append(line, part[:min(len(part), limit-len(line))]...)
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if errors.Is(err, io.EOF) && len(line) > 0 {
				err = nil
			}
			done <- result{line, err}
			return
		}
	}()
	select {
	case got := <-done:
		return strings.TrimRight(string(got.line), "\r\n"), got.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// openable is an error unless s is an address that a browser may be given and a terminal may show: it comes from a provider.
func openable(s string) error {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" ||
		strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return errors.New("the provider sent an address that no browser could open")
	}
	return nil
}
