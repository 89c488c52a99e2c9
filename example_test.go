package credproxy_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/credproxy/credproxy"
	"github.com/credproxy/credproxy/wire"
)

// An agent asks for a token when it needs one. The same code runs on the host and in a sandbox.
func ExampleTokens() {
	ctx := context.Background()
	tokens, err := credproxy.Tokens(ctx)
	if err != nil {
		log.Fatal(err)
	}
	token, err := tokens.Token(ctx, "acme", "default")
	if err != nil {
		log.Fatal(err)
	}
	if token == nil {
		log.Fatal("nobody has logged in: run credproxy auth login acme on the host")
	}
	fmt.Println(token.TokenType, "token, valid until", time.Unix(token.Expiry, 0))
}

// A service refused a token that has not expired: the agent has it renewed, and asks the user only if that is useless.
func ExampleTokens_refresh() {
	ctx := context.Background()
	tokens, err := credproxy.Tokens(ctx)
	if err != nil {
		log.Fatal(err)
	}
	token, err := tokens.RefreshToken(ctx, "acme", "default")
	if e, ok := errors.AsType[*wire.Error](err); ok {
		switch {
		case e.LoginNeeded(), e.Code == wire.CodeNotFound:
			log.Fatal("log in: run credproxy auth login acme on the host")
		case e.Code == wire.CodeRateLimited:
			time.Sleep(time.Duration(e.RetryAfter) * time.Second)
			token, err = tokens.RefreshToken(ctx, "acme", "default")
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.TokenType, "token, valid until", time.Unix(token.Expiry, 0))
}

// An agent asks for an API key.
func ExampleKeys() {
	ctx := context.Background()
	keys, err := credproxy.Keys(ctx)
	if err != nil {
		log.Fatal(err)
	}
	key, found, err := keys.APIKey(ctx, "openai")
	if err != nil || !found {
		log.Fatal("no key openai: ", err)
	}
	_ = string(key) // the key itself; printing key prints a placeholder
}

// A program that starts its containers itself gives each a proxy of its own.
func ExampleStartProxy() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	proxy, err := credproxy.StartProxy(ctx, credproxy.ProxyOptions{Profile: "work"})
	if err != nil {
		log.Fatal(err)
	}
	defer proxy.Close(context.Background())

	socket := proxy.Socket()
	agent := exec.CommandContext(ctx, "docker", "run", "--rm",
		"--mount", "type=bind,src="+socket+",dst="+socket,
		"--env", credproxy.SocketVariable+"="+socket,
		"--user", fmt.Sprint(os.Getuid()), "agent-image")
	agent.Stdout, agent.Stderr = os.Stdout, os.Stderr
	if err := agent.Run(); err != nil {
		log.Print(err)
	}
}
