package provider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// newTransport makes the connections: TLS 1.2 or newer, the proxy of the environment (HTTPS_PROXY, NO_PROXY).
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: proxyAnswered,
		// Of the limits, only this one counts while the process is frozen: nothing has been sent yet. The dialer divides
		// it among a host's addresses. From there on the limit of the whole request has to do.
		DialContext:            (&net.Dialer{Timeout: connectTimeout}).DialContext,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		MaxResponseHeaderBytes: 64 << 10,
		ForceAttemptHTTP2:      true,
		// Requests are hours apart, and a kept connection that died while the machine was asleep would take a request's
		// whole time limit to show it.
		DisableKeepAlives: true,
		// From half a compressed answer nothing can be salvaged.
		DisableCompression: true,
	}
}

// proxyError: the proxy of the environment did not make the connection.
type proxyError struct{ status int }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy of the environment (HTTPS_PROXY) refused the connection (HTTP %d)", e.status)
}

func proxyAnswered(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return &proxyError{resp.StatusCode}
	}
	return nil
}

// networkError says in words that are not the peer's why a request failed. The text of a *url.Error has the whole URL in
// it, and net/http quotes an answer that it cannot read: when that is not HTTP, what it quotes may be the tokens.
func networkError(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && !op.Timeout() {
		return op // the system's words, or TLS's for an alert
	}
	if refused, ok := errors.AsType[*proxyError](err); ok {
		return refused
	}
	timed, isNet := errors.AsType[net.Error](err)
	_, otherName := errors.AsType[x509.HostnameError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	_, invalid := errors.AsType[x509.CertificateInvalidError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case isNet && timed.Timeout():
		return errTimeout
	case otherName:
		return errors.New("its certificate is for another name")
	case unknown:
		return errors.New("its certificate is signed by an authority that this machine does not know")
	case invalid:
		return errors.New("its certificate is not valid, or not at the time that this machine's clock shows")
	case certificate:
		return errors.New("its certificate cannot be verified")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the connection was closed too early")
	}
	return errors.New("what came back is not HTTP as it should be")
}

// timeoutError is context.DeadlineExceeded in words for people.
type timeoutError struct{}

func (timeoutError) Error() string        { return "no answer in time" }
func (timeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

var errTimeout error = timeoutError{}
