package server

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/credproxy/credproxy/internal/audit"
	"github.com/credproxy/credproxy/internal/systest"
	"github.com/credproxy/credproxy/wire"
)

func TestMain(m *testing.M) {
	roles.Play()
	goleak.VerifyTestMain(m)
}

// memVault keeps credentials in maps. It works like the real one; beyond it, it counts how often it was asked, and a
// test can hold it up or make its store fail.
type memVault struct {
	mu     sync.Mutex
	tokens map[[2]string]*wire.Token
	keys   map[string]wire.APIKey
	cold   bool  // nothing is in memory: CachedToken and CachedAPIKey find nothing
	fault  error // what its store answers
	panics any   // what it panics with

	asked    atomic.Int64  // calls that are not answered from memory
	held     atomic.Int64  // calls that wait for gate
	gate     chan struct{} // when not nil, calls wait until it is closed or their ctx ends
	stubborn bool          // … until it is closed, whatever happens to ctx

	renewals sync.WaitGroup // requests to the provider, which nobody needs to wait for

	logins []*memLogin
}

func newVault() *memVault {
	return &memVault{
		tokens: map[[2]string]*wire.Token{
			{"acme", "default"}: {AccessToken: "test-access-token-1", Expiry: 1789000000, TokenType: "Bearer"},
			{"acme", "work"}:    {AccessToken: "test-access-token-2", Expiry: 1789000000, TokenType: "Bearer"},
			{"other", "work"}:   {AccessToken: "test-access-token-3", Expiry: 1789000000, TokenType: "Bearer"},
		},
		keys: map[string]wire.APIKey{"openai": "test-api-key-1", "forbidden": "test-api-key-2"},
	}
}

// work waits at the gate and says whether the store works.
func (v *memVault) work(ctx context.Context) error {
	v.asked.Add(1)
	v.mu.Lock()
	gate, stubborn, fault, panics := v.gate, v.stubborn, v.fault, v.panics
	v.mu.Unlock()
	if panics != nil {
		panic(panics)
	}
	if gate != nil {
		v.held.Add(1)
		defer v.held.Add(-1)
		done := ctx.Done()
		if stubborn {
			done = nil
		}
		select {
		case <-gate:
		case <-done:
			return fmt.Errorf("waiting: %w (%w)", ctx.Err(), wire.E(wire.CodeInternal, "the store is slow"))
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fault
}

func (v *memVault) set(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f()
}

func (v *memVault) CachedToken(provider, bucket string) (*wire.Token, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	t, ok := v.tokens[[2]string{provider, bucket}]
	return t, ok && !v.cold
}

func (v *memVault) CachedAPIKey(name string) (wire.APIKey, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k, ok := v.keys[name]
	return k, ok && !v.cold
}

func (v *memVault) Token(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	if err := v.work(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if t, ok := v.tokens[[2]string{provider, bucket}]; ok {
		return t, nil
	}
	return nil, wire.E(wire.CodeNotFound, "no token is stored")
}

// RefreshToken issues a new token. As with the real vault, ctx ends the waiting, and never the request to the provider.
func (v *memVault) RefreshToken(ctx context.Context, provider, bucket string) (*wire.Token, error) {
	type result struct {
		token *wire.Token
		err   error
	}
	done := make(chan result, 1)
	v.renewals.Go(func() {
		if err := v.work(context.Background()); err != nil {
			done <- result{err: err}
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		old, ok := v.tokens[[2]string{provider, bucket}]
		if !ok {
			done <- result{err: wire.E(wire.CodeNotFound, "no token is stored")}
			return
		}
		t := *old
		t.AccessToken += "-renewed"
		t.Expiry += 3600
		v.tokens[[2]string{provider, bucket}] = &t
		done <- result{token: &t}
	})
	select {
	case r := <-done:
		return r.token, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the provider: %w", ctx.Err())
	}
}

func (v *memVault) LoginStatus(ctx context.Context, provider, bucket string) (*wire.LoginStatus, error) {
	t, err := v.Token(ctx, provider, bucket)
	if err != nil {
		return nil, err
	}
	return &wire.LoginStatus{State: "ok", Expiry: t.Expiry, Store: "memory"}, nil
}

func (v *memVault) SaveToken(ctx context.Context, provider, bucket string, t *wire.Token) error {
	if err := v.work(ctx); err != nil {
		return err
	}
	v.set(func() { v.tokens[[2]string{provider, bucket}] = t })
	return nil
}

func (v *memVault) RemoveToken(ctx context.Context, provider, bucket string) error {
	if err := v.work(ctx); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.tokens[[2]string{provider, bucket}]; !ok {
		return wire.E(wire.CodeNotFound, "no token is stored")
	}
	delete(v.tokens, [2]string{provider, bucket})
	return nil
}

func (v *memVault) Providers(ctx context.Context) ([]string, error) {
	if err := v.work(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []string
	for k := range v.tokens {
		list = append(list, k[0])
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func (v *memVault) Buckets(ctx context.Context, provider string) ([]string, error) {
	if err := v.work(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []string
	for k := range v.tokens {
		if k[0] == provider {
			list = append(list, k[1])
		}
	}
	slices.Sort(list)
	return list, nil
}

func (v *memVault) APIKey(ctx context.Context, name string) (wire.APIKey, error) {
	if err := v.work(ctx); err != nil {
		return "", err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if k, ok := v.keys[name]; ok {
		return k, nil
	}
	return "", wire.E(wire.CodeNotFound, "no such key")
}

func (v *memVault) HasAPIKey(ctx context.Context, name string) (bool, error) {
	if err := v.work(ctx); err != nil {
		return false, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.keys[name]
	return ok, nil
}

func (v *memVault) APIKeys(ctx context.Context) ([]string, error) {
	if err := v.work(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Sorted(maps.Keys(v.keys)), nil
}

// scope allows what its lists hold; nil allows everything.
type scope struct{ ops, buckets, keys []string }

func (s *scope) AllowsOperation(op string) bool { return s.ops == nil || slices.Contains(s.ops, op) }
func (s *scope) AllowsBucket(provider, bucket string) bool {
	return s.buckets == nil || slices.Contains(s.buckets, provider+"/"+bucket)
}
func (s *scope) AllowsProvider(provider string) bool {
	return s.buckets == nil || slices.ContainsFunc(s.buckets, func(b string) bool { return strings.HasPrefix(b, provider+"/") })
}
func (s *scope) AllowsKey(name string) bool { return s.keys == nil || slices.Contains(s.keys, name) }

// events is an audit log in memory.
type events struct {
	mu   sync.Mutex
	list []audit.Event
}

func (e *events) Record(ev *audit.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, *ev)
}

func (e *events) all() []audit.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.list)
}

// proxy is a server that runs on a listener, with all its parts at hand.
type proxy struct {
	*Server
	vault  *memVault
	scope  atomic.Pointer[scope]
	audit  events
	log    systest.Buffer
	dial   func() (net.Conn, error)
	closed sync.Once
	served chan error
}

// prepare makes a server that does not listen yet. Everybody may do everything, as often as they like.
func prepare(change func(*Config, *proxy)) *proxy {
	p := &proxy{vault: newVault(), served: make(chan error, 1)}
	p.scope.Store(&scope{})
	cfg := Config{
		Vault: p.vault,
		Scope: func() Scope { return p.scope.Load() },
		Audit: &p.audit, Profile: "default", Logger: slog.New(slog.NewTextHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Identify: identify, OwnUID: os.Geteuid(),
		RequestsPerSecond: 1e6,
	}
	if change != nil {
		change(&cfg, p)
	}
	p.Server = New(cfg)
	return p
}

// patience is how long a test waits for what has to come: a machine may stand still for seconds.
const patience = time.Minute

// patientTimes are those of servers on real sockets: what is about time is in a bubble.
var patientTimes = times{
	handshake: time.Hour, partial: time.Hour, operation: time.Hour, refresh: time.Hour, login: time.Hour, change: time.Hour, write: time.Hour,
}

// start runs a server on a real socket until the test ends.
func start(t *testing.T, change func(*Config, *proxy)) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "server")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	p := prepare(change)
	p.times = patientTimes
	if carrying {
		b := p.carry(t, path, nil)
		p.dial = b.dial
		p.also(t, b)
		return p
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p.dial = func() (net.Conn, error) { return net.Dial("unix", path) }
	p.serve(t, ln)
	return p
}

func (p *proxy) serve(t *testing.T, ln net.Listener) {
	go func() { p.served <- p.Serve(ln) }()
	t.Cleanup(func() { p.close(t) })
}

// close shuts the server down, hard if need be, and makes sure that it ended as it should.
func (p *proxy) close(t *testing.T) {
	p.closed.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = p.Shutdown(ctx)
		if !carrying {
			if err := <-p.served; !errors.Is(err, ErrClosed) {
				t.Errorf("Serve returned %v", err)
			}
		}
		p.vault.renewals.Wait()
	})
}

// client speaks the wire by hand.
type client struct {
	net.Conn
	t *testing.T
}

func (p *proxy) connect(t *testing.T) *client {
	t.Helper()
	nc, err := p.dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return &client{nc, t}
}

// open connects and shakes hands.
func (p *proxy) open(t *testing.T, version int) *client {
	t.Helper()
	c := p.connect(t)
	c.send(fmt.Sprintf(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":%d}}`, version))
	want := fmt.Sprintf(`{"v":%d,"op":"handshake","ok":true,"data":{"version":%[1]d}}`, version)
	if got := c.recv(); got != want {
		t.Fatalf("handshake answered %s, want %s", got, want)
	}
	return c
}

func framed(payloads ...string) []byte {
	var b []byte
	for _, p := range payloads {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	return b
}

// send writes the payloads in one write.
func (c *client) send(payloads ...string) {
	c.t.Helper()
	if _, err := c.Write(framed(payloads...)); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

// read returns the next frame's payload or the error of the connection.
func (c *client) read() (string, error) {
	_ = c.SetReadDeadline(time.Now().Add(patience))
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return "", err
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(c, b)
	return string(b), err
}

func (c *client) recv() string {
	c.t.Helper()
	s, err := c.read()
	if err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return s
}

// ends checks that the server closes the connection, and cleanly.
func (c *client) ends() {
	c.t.Helper()
	if s, err := c.read(); !errors.Is(err, io.EOF) {
		c.t.Errorf("got %q, %v; want end of file", s, err)
	}
}

// answer is what a test looks at in a response.
type answer struct {
	V          int
	ID         string
	OK         bool
	Code       string
	Error      string
	RetryAfter *float64
	Data       json.RawMessage
}

func (c *client) answer() answer {
	c.t.Helper()
	var a answer
	s := c.recv()
	if err := json.Unmarshal([]byte(s), &a); err != nil {
		c.t.Fatalf("answer %q: %v", s, err)
	}
	return a
}

// request is a request's payload in version v.
func request(v int, id, op, payload string) string {
	return fmt.Sprintf(`{"v":%d,"id":%q,"op":%q,"payload":%s}`, v, id, op, payload)
}

// ask sends one version 1 request and returns the answer.
func (c *client) ask(op, payload string) answer {
	c.t.Helper()
	c.send(request(1, "x", op, payload))
	return c.answer()
}

// served checks that the client still gets its token.
func (c *client) served() {
	c.t.Helper()
	if a := c.ask("get_token", `{"provider":"acme"}`); !a.OK {
		c.t.Errorf("get_token: %+v", a)
	}
}

// open and unfinished connections of the server.
func (s *Server) counts() (conns, unfinished, established int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns), s.unfinished.n, s.established
}
