package oauthtest

import (
	"context"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
)

// The methods here play the person with the browser. For user codes there is [Server.Decide].

var (
	pageRequest = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`name="request" value="([^"]+)"`) })
	pageCode    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`<code id="code">([^<]+)</code>`) })
)

// Approve opens an authorisation request in the browser, says yes if the page asks, and returns where the browser is
// sent then, without going there: the redirect URI with code and state, or with an error if [DenyAll] answers.
func (s *Server) Approve(ctx context.Context, address string) (redirect string, err error) {
	return s.answer(ctx, address, "approve")
}

// Deny is Approve for a person who says no. The server must be one that asks ([AskUser]) or denies.
func (s *Server) Deny(ctx context.Context, address string) (redirect string, err error) {
	return s.answer(ctx, address, "deny")
}

// Follow goes where Approve says that the browser is sent, such as to the listener of the program that logs in, and
// returns the page that it finds there. It follows further redirects.
func (s *Server) Follow(ctx context.Context, redirect string) (status int, page string, err error) {
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if strings.HasPrefix(redirect, s.base+"/") {
		c = s.browser()
	}
	return visit(ctx, c, redirect)
}

// Copy approves and returns what the person copies for the program that waits for a pasted code: the text on the paste
// page if the browser is sent there, or else the whole address of the page that cannot be opened.
func (s *Server) Copy(ctx context.Context, address string) (pasted string, err error) {
	redirect, err := s.Approve(ctx, address)
	if err != nil || !strings.HasPrefix(redirect, s.EndpointURL(Paste)+"?") {
		return redirect, err
	}
	_, page, err := s.Follow(ctx, redirect)
	if err != nil {
		return "", err
	}
	code := pageCode().FindStringSubmatch(page)
	if code == nil {
		return "", errors.New("oauthtest: the paste page shows no code")
	}
	return html.UnescapeString(code[1]), nil
}

func (s *Server) answer(ctx context.Context, address, decision string) (string, error) {
	c := s.browser()
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return "", fmt.Errorf("oauthtest: %w", err)
	}
	redirect, page, err := open(c, get)
	if err != nil || redirect != "" {
		return redirect, err
	}
	id := pageRequest().FindStringSubmatch(page)
	if id == nil {
		return "", fmt.Errorf("oauthtest: the page asks nothing: %s", page)
	}
	form := url.Values{"request": {id[1]}, "decision": {decision}}.Encode()
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, s.EndpointURL(Authorize), strings.NewReader(form))
	if err != nil {
		return "", fmt.Errorf("oauthtest: %w", err)
	}
	post.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	redirect, page, err = open(c, post)
	if err == nil && redirect == "" {
		err = fmt.Errorf("oauthtest: the answer leads nowhere: %s", page)
	}
	return redirect, err
}

// browser reaches the server, also one that is served by somebody else at its issuer's address.
func (s *Server) browser() *http.Client {
	if s.client != nil {
		return s.client
	}
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// open returns where a page redirects, or the page.
func open(c *http.Client, r *http.Request) (redirect, page string, err error) {
	rep, err := c.Do(r)
	if err != nil {
		return "", "", fmt.Errorf("oauthtest: %w", err)
	}
	defer rep.Body.Close()
	body, err := io.ReadAll(io.LimitReader(rep.Body, maxBody))
	switch {
	case err != nil:
		return "", "", fmt.Errorf("oauthtest: %w", err)
	case rep.StatusCode == http.StatusFound || rep.StatusCode == http.StatusSeeOther:
		return rep.Header.Get("Location"), "", nil
	case rep.StatusCode != http.StatusOK:
		return "", "", fmt.Errorf("oauthtest: HTTP %d: %s", rep.StatusCode, body)
	}
	return "", string(body), nil
}

func visit(ctx context.Context, c *http.Client, address string) (int, string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, "", fmt.Errorf("oauthtest: %w", err)
	}
	rep, err := c.Do(r)
	if err != nil {
		return 0, "", fmt.Errorf("oauthtest: %w", err)
	}
	defer rep.Body.Close()
	body, err := io.ReadAll(io.LimitReader(rep.Body, maxBody))
	if err != nil {
		return 0, "", fmt.Errorf("oauthtest: %w", err)
	}
	return rep.StatusCode, string(body), nil
}
