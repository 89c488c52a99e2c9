package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/credproxy/credproxy/internal/config"
	"github.com/credproxy/credproxy/internal/vault"
)

// face is what a person sees of one login, on the host and inside alike: it is a vault.Face and a client.LoginFace. The
// address to open is alone on a line of stdout; everything else is on stderr. Its methods are called by one goroutine, the
// login's; rest ends what it still shows.
type face struct {
	app    *app
	login  login
	inside bool     // the person's browser is on another machine than this process
	open   bool     // open a browser
	qr     bool     // show addresses as a QR code too
	flows  []string // that the provider has; nil: nobody here knows

	page    func(flow string)         // shows the page of ShowURL, once it is clear how the login goes on; nil: it is shown
	stop    func()                    // ends the wait that is shown; nil: there is none
	polling bool                      // that wait is Waiting's
	until   atomic.Pointer[time.Time] // when it ends at the latest
	input   *bufio.Reader             // of stdin when that is no terminal; what it has read ahead is here
}

// exchangeLimit is how long a provider may take to begin its answer to a code. The rest of it may take 10 s more.
const exchangeLimit = 15 * time.Second

// ShowURL shows the page on which the person logs in: as soon as AskCode or Waiting, which comes next, says whether the browser
// has to be one on the host.
func (f *face) ShowURL(ctx context.Context, address string) error {
	f.rest()
	if err := openable(address); err != nil {
		return err
	}
	f.page = func(flow string) { f.showPage(ctx, address, flow) }
	return nil
}

func (f *face) showPage(ctx context.Context, address, flow string) {
	where, below := "", 1
	var advice []string
	switch {
	case flow == vault.FlowPaste:
		where = " in a browser"
		if endsNowhere(address) {
			advice = append(advice, "the browser will end at a page that it cannot open: copy its address")
		}
	case f.inside:
		where = " in a browser on the host"
	}
	if flow == vault.FlowBrowser && f.qr {
		machine := "this machine"
		if f.inside {
			machine = "the host"
		}
		advice = append(advice, "this page has to be opened on "+machine+": a phone that scans the QR code cannot finish the login")
	}
	fmt.Fprintf(f.app.stderr, "open this page%s to log in to %s:\n", where, f.login)
	opened := f.show(ctx, address, address, below+len(advice))
	for _, line := range advice {
		fmt.Fprintln(f.app.stderr, line)
	}
	if flow == vault.FlowBrowser && !opened && f.open {
		if others := flowFlags(anywhere(f.flows)); others != "" {
			fmt.Fprintf(f.app.stderr, "browser on another machine? %s\n", others)
		}
	}
}

// anywhere are those of a provider's flows for which a browser on any machine will do; if nobody knows its flows, all that
// there are.
func anywhere(flows []string) []string {
	if flows == nil {
		flows = config.Flows
	}
	return slices.DeleteFunc(slices.Clone(flows), func(flow string) bool { return flow == vault.FlowBrowser })
}

// flowFlags are the options that choose one of the flows.
func flowFlags(flows []string) string {
	var options []string
	for _, flow := range flows {
		options = append(options, "--flow "+flow)
	}
	return strings.Join(options, " or ")
}

// endsNowhere reports whether the browser is sent to its own machine in the end, where in a login by pasted code nobody
// listens.
func endsNowhere(address string) bool {
	u, err := url.Parse(address)
	if err != nil {
		return false
	}
	redirect, err := url.Parse(u.Query().Get("redirect_uri"))
	if err != nil {
		return false
	}
	host := redirect.Hostname()
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

// showNow shows the page of ShowURL, if that has not been done.
func (f *face) showNow(flow string) {
	if f.page != nil {
		f.page(flow)
	}
	f.page = nil
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
	const codeAndWait = 2
	fmt.Fprintf(f.app.stderr, "open this page in a browser, on any device, to log in to %s:\n", f.login)
	f.show(ctx, address, complete, codeAndWait)
	p := f.app.paint(f.app.stderr)
	if isTerminal(f.app.stderr) && !dumb() {
		fits := func(below int) bool {
			_, err := f.picture(address, complete, below)
			return err == nil
		}
		pushes := f.qr && fits(codeAndWait) && !fits(codeAndWait+largeLines) // the address, or the QR code, off the screen
		if big := large(userCode, width(f.app.stderr)); big != "" && !pushes {
			fmt.Fprintf(f.app.stderr, "\n%s\n", p.boldLines(big))
		}
	}
	fmt.Fprintf(f.app.stderr, "and enter this code there: %s\n", p.bold(userCode))
	return nil
}

// maxUserCode is far beyond what anybody would type.
const maxUserCode = 64

// show prints address, and gives target to what needs no typing. below is how many lines will follow, beside which a QR code
// must leave the address on the screen. It reports whether a browser was opened.
func (f *face) show(ctx context.Context, address, target string, below int) (opened bool) {
	line := address
	if linking(f.app.stdout) {
		line = link(target, address)
	}
	_ = f.app.write(line + "\n")
	if f.qr {
		picture, err := f.picture(address, target, below)
		if err != nil {
			picture = err.Error() + "\n"
		}
		fmt.Fprint(f.app.stderr, picture)
	}
	if !f.open {
		return false
	}
	err := openBrowser(ctx, target)
	if err != nil {
		fmt.Fprintf(f.app.stderr, "no browser was opened (%s): open the page yourself\n", oneLine(err.Error()))
	}
	return err == nil
}

// picture is target as a QR code that leaves an address above it, and so many lines below, on the screen.
func (f *face) picture(address, target string, below int) (string, error) {
	columns, rows := size(f.app.stderr)
	room := 0
	if rows > 0 {
		room = max(1, rows-lines(address, columns)-below)
	}
	return qrCode(target, bool(f.app.paint(f.app.stderr)), columns, room)
}

// AskCode asks for what the page shows at the end, or the address of that page. problem says what was wrong with the last
// answer.
func (f *face) AskCode(ctx context.Context, problem string) (string, error) {
	f.rest()
	f.showNow(vault.FlowPaste)
	if problem != "" {
		fmt.Fprintf(f.app.stderr, "%s\n", oneLine(problem))
	}
	var code string
	var err error
	if isTerminal(f.app.stdin) {
		screen := f.app.stderr
		if !isTerminal(screen) {
			screen = f.app.stdin
		}
		code, err = (&hidden{in: f.app.stdin, screen: screen, prompt: codePrompt, fresh: problem != "", code: true}).ask(ctx)
	} else {
		fmt.Fprintln(f.app.stderr, "waiting for the code from the page, or the page's whole address, on a line of stdin; Ctrl-C cancels")
		code, err = f.readLine(ctx, maxCode, nil)
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
	f.showNow(vault.FlowBrowser)
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

// confirm asks a question that is answered with y or yes, by the terminal or a line of stdin; everything else is no. io.EOF
// is no answer.
func (f *face) confirm(ctx context.Context, question string) (bool, error) {
	f.rest()
	answer, err := f.readLine(ctx, maxCode, func() { fmt.Fprintf(f.app.stderr, "%s [y/N] ", question) })
	if err != nil || !isTerminal(f.app.stdin) {
		fmt.Fprintln(f.app.stderr)
	}
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes", err
}

// readLine reads a line of stdin, of which it keeps the first limit bytes; io.EOF is the end without one. ask, if it is there,
// shows what is asked, at first and whenever this process goes on after it was stopped. When ctx ends, the goroutine that reads
// is left to the end of the process.
func (f *face) readLine(ctx context.Context, limit int, ask func()) (string, error) {
	if f.input == nil {
		f.input = bufio.NewReader(f.app.stdin)
	}
	var continued chan os.Signal
	if ask != nil && isTerminal(f.app.stdin) { // before anything is asked: the answer may be Ctrl-Z
		continued = make(chan os.Signal, 1)
		signal.Notify(continued, syscall.SIGCONT)
		defer signal.Stop(continued)
	}
	if ask != nil {
		ask()
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
	for {
		select {
		case got := <-done:
			return strings.TrimRight(string(got.line), "\r\n"), got.err
		case <-continued:
			ask()
		case <-ctx.Done():
			return "", ctx.Err()
		}
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
