package login

import (
	"context"
	"errors"
	"strings"

	"github.com/credproxy/credproxy/internal/vault/internal/provider"
	"github.com/credproxy/credproxy/wire"
)

// pasteError is ErrPaste in words that say what was pasted instead.
type pasteError string

func (e pasteError) Error() string        { return string(e) }
func (e pasteError) Is(target error) bool { return target == ErrPaste }

// ErrPaste: what was pasted is no code and no address with one. Nothing was sent; the person can try again. Others that are
// ErrPaste too know better what it is.
const (
	ErrPaste pasteError = "this is not a code: copy the code from the provider's page, or the whole address that it led to"

	errNothing pasteError = "nothing was pasted"
	errLong    pasteError = "this is too long for a code"
	errStrange pasteError = "this has characters in it that no code has"
	errOpened  pasteError = "this is the address to open: paste what its page shows in the end, or the address that it leads to"
	errNoCode  pasteError = "this address has no code in it: paste the one that the provider's page led to"
	errCutOff  pasteError = "this address is cut off, for it has no state: paste all of it"
)

var (
	// ErrOtherLogin: what was pasted has the state of another login. Nothing was sent.
	ErrOtherLogin = errors.New("this code belongs to another login: use the page that was opened for this one")

	// ErrPortTaken: another program listens where the provider sends the browser.
	ErrPortTaken = errors.New("the port is taken")

	// ErrExpired: the lifetime of the device code is over.
	ErrExpired = errors.New("the code was not confirmed in time: begin the login again")

	// ErrTimeout: nobody finished the login before the deadline of who waits for it.
	ErrTimeout = errors.New("nobody finished the login in time: begin it again")

	// ErrClosed: the login was closed while somebody waited for it.
	ErrClosed = errors.New("the login was cancelled")
)

// NoFlowError: the provider cannot be logged in to by the wanted flow, or by any.
type NoFlowError struct {
	Provider string
	Flow     string   // "" when none was asked for
	Have     []string // the flows that there are
}

func (e *NoFlowError) Error() string {
	switch {
	case len(e.Have) == 0:
		return "provider " + e.Provider + ": it has no flow to log in by: it needs authorize_url, device_url or issuer"
	case e.Flow == "":
		return "provider " + e.Provider + ": none of its flows works here"
	}
	return "provider " + e.Provider + ": it has no flow " + e.Flow + "; it has " + strings.Join(e.Have, ", ")
}

// ListenError: there can be no listener for the browser. It is ErrPortTaken when that is the reason.
type ListenError struct {
	Provider string
	Address  string // host:port; if several are taken, all of them, with commas between
	Err      error
	taken    bool

	Instead []string // the provider's flows that need no port here
}

func (e *ListenError) Error() string {
	text := "provider " + e.Provider + ": listening on " + e.Address + " for the browser: " + e.Err.Error()
	if e.taken {
		text += "; end the program that listens there" + e.orAsk()
	}
	return text
}

// orAsk is the end of a sentence: what else could be done.
func (e *ListenError) orAsk() string {
	if len(e.Instead) == 0 {
		return ""
	}
	return ", or ask for another flow: " + bothNames(e.Instead)
}

func (e *ListenError) Unwrap() error { return e.Err }

func (e *ListenError) Is(target error) bool { return e.taken && target == ErrPortTaken }

// wireFlows are the protocol's names of the flows.
var wireFlows = map[string]wire.FlowType{
	FlowBrowser: wire.FlowBrowserRedirect,
	FlowDevice:  wire.FlowDeviceCode,
	FlowPaste:   wire.FlowPKCERedirect,
}

// WireFlow is what the protocol calls a flow; "" for what is none.
func WireFlow(flow string) wire.FlowType { return wireFlows[flow] }

// Crossing returns what may be said of a login's failure over a socket: one of the protocol's codes, and constant words
// that say what to do. It is nil for an error that is not a login's.
func Crossing(err error) *wire.Error {
	noFlow, isNoFlow := errors.AsType[*NoFlowError](err)
	listen, isListen := errors.AsType[*ListenError](err)
	failed, isProvider := errors.AsType[*provider.Error](err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrPaste):
		pasted, _ := errors.AsType[pasteError](err)
		return wire.E(wire.CodeInvalidRequest, pasted.Error())
	case errors.Is(err, ErrOtherLogin):
		return wire.E(wire.CodeExchangeFailed, "the code belongs to another login: begin again and use the page that is opened then")
	case isNoFlow:
		return wire.E(wire.CodeInvalidRequest, noFlow.crossing())
	case errors.Is(err, ErrPortTaken):
		return wire.E(wire.CodeInternal, "the port on the host to which the provider sends the browser is taken: end the program that listens there"+listen.orAsk())
	case isListen:
		return wire.E(wire.CodeInternal, "the host cannot listen for the browser: look at the provider's redirect_url in the host's configuration"+listen.orAsk())
	case errors.Is(err, ErrExpired):
		return wire.E(wire.CodeSessionExpired, ErrExpired.Error())
	case errors.Is(err, ErrTimeout):
		return wire.E(wire.CodeExchangeFailed, ErrTimeout.Error())
	case errors.Is(err, ErrClosed):
		return cancelled()
	case isProvider:
		return crossingOf(failed)
	case errors.Is(err, context.DeadlineExceeded):
		return wire.E(wire.CodeInternal, "the provider did not answer in time: try again")
	}
	return nil
}

func (e *NoFlowError) crossing() string {
	if len(e.Have) == 0 {
		return "the provider has no flow to log in by: its description in the host's configuration needs authorize_url, device_url or issuer"
	}
	text := "the provider has no such flow"
	if f, ok := wireFlows[e.Flow]; ok {
		text = "the provider has no flow " + string(f) + " (" + e.Flow + ")"
	}
	return text + "; it has " + bothNames(e.Have)
}

// bothNames lists flows as the protocol and as the command line calls them.
func bothNames(flows []string) string {
	var names []string
	for _, flow := range flows {
		names = append(names, string(wireFlows[flow])+" ("+flow+")")
	}
	return strings.Join(names, ", ")
}

// crossingOf takes from a provider's failure its kind, its code if that decides what to do, and its reason, which is a
// constant of package provider.
func crossingOf(e *provider.Error) *wire.Error {
	if e.NoSecret() {
		return wire.E(wire.CodeInternal, "the client secret of this provider is not stored on the host: credproxy auth login there says where it is to be had and how to store it")
	}
	switch e.Kind {
	case provider.Denied:
		return wire.E(wire.CodeExchangeFailed, "the provider says that the login was not allowed: begin it again and allow it on the provider's page")
	case provider.Expired:
		return wire.E(wire.CodeSessionExpired, ErrExpired.Error())
	case provider.Transient, provider.Pending, provider.SlowDown:
		if e.Status == 0 && e.Code == "" {
			return wire.E(wire.CodeInternal, "the provider cannot be reached: try again in a minute")
		}
		return wire.E(wire.CodeInternal, "the provider cannot answer now: try again in a minute")
	}
	switch e.Code {
	case "invalid_grant":
		return wire.E(wire.CodeExchangeFailed, "the provider did not accept the code: it may be too old, used or cut off; begin the login again")
	case "invalid_client", "unauthorized_client", "incorrect_client_credentials":
		return wire.E(wire.CodeExchangeFailed, "the provider does not accept this client: client_id or the client secret in the host's configuration has to be mended")
	case "invalid_scope":
		return wire.E(wire.CodeExchangeFailed, "the provider does not grant these scopes: mend them in the host's configuration")
	}
	text := "the login failed at the provider"
	if reason := e.Reason(); reason != "" {
		text += ": " + reason
	}
	return wire.E(wire.CodeExchangeFailed, text)
}

// cancelled is the answer about a login that oauth_cancel has ended.
func cancelled() *wire.Error {
	return wire.E(wire.CodeSessionNotFound, "this login was cancelled")
}
