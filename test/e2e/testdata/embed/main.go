// Command embed is a program of somebody else's that uses the Go packages: "embed PROFILE COMMAND [ARG…]" starts a proxy for a
// command, "embed login PROVIDER/BUCKET" logs in with a face of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/credproxy/credproxy"
	"github.com/credproxy/credproxy/client"
)

func main() {
	ctx := context.Background()
	do := proxied
	if os.Args[1] == "login" {
		do = login
	}
	if err := do(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func proxied(ctx context.Context, args []string) error {
	proxy, err := credproxy.StartProxy(ctx, credproxy.ProxyOptions{Profile: args[0]})
	if err != nil {
		return err
	}
	cmd := exec.Command(args[1], args[2:]...)
	cmd.Env = append(os.Environ(), credproxy.SocketVariable+"="+proxy.Socket())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Join(cmd.Run(), proxy.Close(ctx))
}

func login(ctx context.Context, args []string) error {
	provider, bucket, _ := strings.Cut(args[1], "/")
	token, err := credproxy.Login(ctx, client.LoginOptions{Provider: provider, Bucket: bucket, Face: face{}})
	if err != nil {
		return err
	}
	fmt.Println("token", token.AccessToken)
	return nil
}

// face prints the address, and has no other way to log in.
type face struct{}

func (face) ShowURL(_ context.Context, url string) error {
	fmt.Println(url)
	return nil
}

func (face) ShowCode(context.Context, string, string, string) error {
	return errors.New("this program knows no codes")
}

func (f face) AskCode(ctx context.Context, _ string) (string, error) {
	return "", f.ShowCode(ctx, "", "", "")
}

func (face) Waiting(time.Time) {}
