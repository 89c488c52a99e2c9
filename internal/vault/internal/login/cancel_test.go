package login

import (
	"context"
	"net"
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credproxy/credproxy/internal/oauthtest"
	"github.com/credproxy/credproxy/wire"
)

func TestCancelStopsPolling(t *testing.T) {
	bubble(t, oauthtest.Options{Approval: oauthtest.AskUser}, 0, func(t *testing.T, x *proxy) {
		waiting := x.session(t, FlowDevice)
		time.Sleep(6 * time.Second)
		if err := x.Cancel(me, waiting.ID); err != nil {
			t.Fatal(err)
		}
		x.w.server.Decide(waiting.UserCode, true)

		// A poll is under way, and the provider issues tokens whose answer comes too late.
		asking := x.session(t, FlowDevice)
		x.w.server.Decide(asking.UserCode, true)
		x.w.server.Fault(oauthtest.Token, oauthtest.Fault{AfterIssue: true, Wait: make(chan struct{})}, 1)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		calls := x.w.server.Calls(oauthtest.Token)
		if calls != 2 {
			t.Fatalf("%d polls, want 2", calls)
		}
		if err := x.Cancel(me, asking.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if n := x.w.server.Calls(oauthtest.Token); n != calls || x.count() != 0 {
			t.Errorf("%d more polls, %d stored", n-calls, x.count())
		}
		for _, s := range []*wire.Session{waiting, asking} {
			_, err := x.Poll(me, s.ID)
			wants(t, "poll", err, wire.CodeSessionNotFound)
		}
	})
}

func TestCancelFreesThePort(t *testing.T) {
	w := newWorld(t, oauthtest.Options{})
	x := newProxy(w, 0)
	defer x.Close()
	address := func(s *wire.Session) string {
		q, _ := url.Parse(s.AuthURL)
		u, _ := url.Parse(q.Query().Get("redirect_uri"))
		return u.Host
	}
	free := func(address string) error {
		l, err := net.Listen("tcp", address)
		if err == nil {
			l.Close()
		}
		return err
	}
	s := x.session(t, FlowBrowser)
	if free(address(s)) == nil {
		t.Fatal("nobody listens")
	}
	if err := x.Cancel(me, s.ID); err != nil {
		t.Fatal(err)
	}
	if err := free(address(s)); err != nil {
		t.Errorf("after cancel: %v", err)
	}
	brief := newProxy(w, 300*time.Millisecond)
	defer brief.Close()
	s = brief.session(t, FlowBrowser)
	<-brief.byID[s.ID].done // its lifetime ends it, nobody sweeps
	if err := free(address(s)); err != nil {
		t.Errorf("after its lifetime: %v", err)
	}
}

func TestCancelDuringTheExchange(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		s := x.session(t, FlowPaste)
		code := x.code(t, s)
		x.w.server.Fault(oauthtest.Token, oauthtest.Fault{AfterIssue: true, Wait: make(chan struct{})}, 1)
		exchanged := make(chan error, 1)
		go func() {
			_, err := x.Exchange(t.Context(), me, s.ID, code)
			exchanged <- err
		}()
		synctest.Wait()
		if err := x.Cancel(me, s.ID); err != nil {
			t.Fatal(err)
		}
		wants(t, "the exchange", <-exchanged, wire.CodeSessionNotFound)
		_, err := x.Exchange(t.Context(), me, s.ID, code)
		wants(t, "the next", err, wire.CodeSessionNotFound)
		if x.count() != 0 {
			t.Error("stored after cancel")
		}
	})
}

// A grant that is being stored is past cancelling: to stop halfway would lose it.
func TestCancelWhileStoring(t *testing.T) {
	bubble(t, oauthtest.Options{}, 0, func(t *testing.T, x *proxy) {
		release := make(chan struct{})
		var waiting context.Context
		x.storing = func(ctx context.Context) error {
			waiting = ctx
			<-release // a write that has begun
			return nil
		}
		s := x.session(t, FlowPaste)
		code := x.code(t, s)
		exchanged := make(chan error, 1)
		go func() {
			_, err := x.Exchange(t.Context(), me, s.ID, code)
			exchanged <- err
		}()
		synctest.Wait()
		if err := x.Cancel(me, s.ID); err != nil {
			t.Fatal(err)
		}
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			x.Close()
		}()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("Close did not wait for the store")
		default:
		}
		if waiting.Err() == nil {
			t.Error("whoever still waits for the store's lock does not learn that the proxy ends")
		}
		close(release)
		if err := <-exchanged; err != nil || x.count() != 1 {
			t.Errorf("the exchange: %v", err)
		}
		<-closed
	})
}
