package credproxy_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"time"

	"github.com/credproxy/credproxy"
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
