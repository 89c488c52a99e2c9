// Static is a guest as it is shipped: one file that needs no other. The tests use it where the test binary would need a C library,
// or where the race detector would have memory of its own.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/credproxy/credproxy/internal/guest"
)

func main() {
	if status, mine := guest.Main(os.Args[1:]); mine {
		os.Exit(status)
	}
	info, err := os.Lstat(os.Getenv(guest.SocketEnv))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	fmt.Println("holding", info.Mode(), os.Getpid())
	<-end
	os.Exit(9)
}
