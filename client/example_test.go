package client_test

import (
	"bufio"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/credproxy/credproxy/client"
)

// lines is the plainest face there is: lines on the terminal, and one that is typed.
type lines struct{ in *bufio.Reader }

func (lines) ShowURL(_ context.Context, url string) error {
	fmt.Println("Open this address in a browser on the host:", url)
	return nil
}

func (lines) ShowCode(_ context.Context, url, _, userCode string) error {
	fmt.Println("Open", url, "and type the code", userCode)
	return nil
}

func (l lines) AskCode(ctx context.Context, problem string) (string, error) {
	if problem != "" {
		fmt.Println("Not yet:", problem)
	}
	fmt.Print("Paste the code: ")
	typed := make(chan string, 1)
	go func() { // nobody can interrupt a read from a terminal; it ends with the program
		line, _ := l.in.ReadString('\n')
		typed <- line
	}()
	select {
	case line := <-typed:
		return line, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (lines) Waiting(until time.Time) {
	fmt.Printf("Waiting for the browser; %v left\n", time.Until(until).Round(time.Second))
}

// A login from inside the sandbox. Ctrl-C gives it up, on the host too.
func ExampleClient_Login() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c := client.New(client.Options{Socket: os.Getenv("LLXPRT_CREDENTIAL_SOCKET")})
	defer c.Close()
	token, err := c.Login(ctx, client.LoginOptions{
		Provider: "anthropic",
		Face:     lines{bufio.NewReader(os.Stdin)},
	})
	if err != nil {
		log.Print(err)
		return
	}
	fmt.Println("Logged in until", time.Unix(token.Expiry, 0))
}
