package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/cli/browser"
)

// browserPatience is how long a browser command has to fail. One that still runs then is the browser itself. (Variable for tests.)
var browserPatience = 2 * time.Second

// openBrowser shows url to the person: by the commands in $BROWSER, the first that does not fail, else by the system's
// way. What it starts may outlive us and is not waited for beyond browserPatience; a goroutine of the wait ends with the
// browser or with this process.
func openBrowser(ctx context.Context, url string) error {
	if commands := os.Getenv("BROWSER"); commands != "" {
		return openWith(ctx, strings.Split(commands, ":"), url)
	}
	if runtime.GOOS == "linux" && os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" && os.Getenv("WSL_DISTRO_NAME") == "" {
		// The system would try text browsers, which want this terminal.
		return errors.New("there is no display")
	}
	browser.Stdout, browser.Stderr = io.Discard, io.Discard
	return patiently(ctx, func() error { return browser.OpenURL(url) })
}

func openWith(ctx context.Context, commands []string, url string) error {
	err := errors.New("BROWSER names no command")
	for _, command := range commands {
		words := strings.Fields(command)
		if len(words) == 0 {
			continue
		}
		given := false
		for i, w := range words[1:] {
			if strings.Contains(w, "%s") {
				words[1+i], given = strings.ReplaceAll(w, "%s", url), true
			}
		}
		if !given {
			words = append(words, url)
		}
		cmd := exec.Command(words[0], words[1:]...)
		// A process group of its own: Ctrl-C cancels the login and leaves the browser alone.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if startErr := cmd.Start(); startErr != nil {
			err = fmt.Errorf("BROWSER: %w", startErr)
			continue
		}
		if waitErr := patiently(ctx, cmd.Wait); waitErr != nil {
			err = fmt.Errorf("BROWSER: %s: %w", words[0], waitErr)
			continue
		}
		return nil
	}
	return err
}

// patiently returns f's error, or nil when f takes longer than a failure does.
func patiently(ctx context.Context, f func() error) error {
	result := make(chan error, 1)
	go func() { result <- f() }()
	timer := time.NewTimer(browserPatience)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}
