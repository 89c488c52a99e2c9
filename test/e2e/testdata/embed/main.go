// Command embed is a program of somebody else's that starts a proxy for a command: embed PROFILE COMMAND [ARG…].
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/credproxy/credproxy"
)

func main() {
	ctx := context.Background()
	proxy, err := credproxy.StartProxy(ctx, credproxy.ProxyOptions{Profile: os.Args[1]})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cmd := exec.Command(os.Args[2], os.Args[3:]...)
	cmd.Env = append(os.Environ(), credproxy.SocketVariable+"="+proxy.Socket())
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err = cmd.Run()
	if closeErr := proxy.Close(ctx); err == nil {
		err = closeErr
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
