package cli

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

// probeReport is what a program found that tried, inside the demo's sandbox, to get at what it must not have. Everything
// it got is in it: the demo, on the host, knows the secrets to look for.
type probeReport struct {
	UID         int               `json:"uid"`
	Environment []string          `json:"environment"`
	Answers     []string          `json:"answers"` // of the proxy, whole
	Sockets     []string          `json:"sockets"` // in the directory of the socket
	Files       map[string]string `json:"files"`   // "" for one that could be read, else why not
}

// probeRequests are what the probe asks the proxy: what is allowed, and every way to name a refresh token. The first three
// show that the token renews: the one that is stored, a new one, and the one that is stored then.
var probeRequests = []string{
	`{"op":"get_token","payload":{"provider":"demo"}}`,
	`{"op":"refresh_token","payload":{"provider":"demo"}}`,
	`{"op":"get_token","payload":{"provider":"demo"}}`,
	`{"op":"get_token","payload":{"provider":"demo","fields":["refresh_token"],"include_refresh_token":true}}`,
	`{"op":"get_token","payload":{"provider":"demo","bucket":"refresh_token"}}`,
	`{"op":"get_refresh_token","payload":{"provider":"demo"}}`,
	`{"op":"refresh_token","payload":{"provider":"demo","include_refresh_token":true}}`,
	`{"op":"get_api_key","payload":{"name":"refresh_token"}}`,
	`{"op":"get_api_key","payload":{"name":"demo-key"}}`,
	`{"op":"get_api_key","payload":{"name":"demo-other-key"}}`,
	`{"op":"get_token","payload":{"provider":"demo","bucket":"other"}}`,
	`{"op":"save_token","payload":{"provider":"demo","bucket":"other","token":{"access_token":"x","expiry":1,"token_type":"Bearer"}}}`,
	`{"op":"list_providers"}`,
	`{"op":"list_buckets","payload":{"provider":"demo"}}`,
	`{"op":"list_api_keys"}`,
	`{"op":"get_bucket_stats","payload":{"provider":"demo"}}`,
	`{"op":"get_bucket_stats","payload":{"provider":"demo","detail":true}}`,
}

// probeCommand runs inside the demo's sandbox; the arguments are files of the host to read.
func (a *app) probeCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "demo-probe [FILE…]",
		Hidden: true,
		Short:  "Try to get at secrets from inside a sandbox (used by demo)",
		Args:   cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, files []string) error {
			path := os.Getenv(socketVariable)
			if path == "" {
				return failed("demo-probe", errors.New("it runs inside the sandbox of credproxy demo only"))
			}
			report := probeReport{UID: os.Getuid(), Environment: os.Environ(), Files: map[string]string{}}
			var err error
			if report.Answers, err = interrogate(path); err != nil {
				return failed("demo-probe", err)
			}
			entries, err := os.ReadDir(filepath.Dir(path))
			if err != nil {
				return failed("demo-probe", err)
			}
			for _, e := range entries {
				report.Sockets = append(report.Sockets, e.Name())
			}
			for _, file := range files {
				report.Files[file] = tryRead(file)
			}
			return a.writeJSON(report)
		},
	}
}

func tryRead(path string) string {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		var entries []fs.DirEntry
		if entries, err = os.ReadDir(path); err == nil && len(entries) == 0 {
			err = errors.New("empty here")
		}
	} else if err == nil {
		_, err = os.ReadFile(path)
	}
	var p *fs.PathError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &p):
		return p.Err.Error()
	}
	return err.Error()
}

// interrogate sends every request and returns every answer. It speaks the protocol by itself: a client library would
// hide what it does not expect.
func interrogate(path string) ([]string, error) {
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	answers := []string{}
	ask := func(request string) error {
		frame := binary.BigEndian.AppendUint32(nil, uint32(len(request)))
		if _, err := conn.Write(append(frame, request...)); err != nil {
			return err
		}
		var length [4]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return err
		}
		payload := make([]byte, min(binary.BigEndian.Uint32(length[:]), 4<<20))
		if _, err := io.ReadFull(conn, payload); err != nil {
			return err
		}
		answers = append(answers, string(payload))
		return nil
	}
	if err := ask(`{"v":1,"op":"handshake","payload":{"minVersion":1,"maxVersion":2}}`); err != nil {
		return nil, err
	}
	for i, r := range probeRequests {
		var request map[string]any
		if err := json.Unmarshal([]byte(r), &request); err != nil {
			return nil, err
		}
		request["v"], request["id"] = 2, fmt.Sprintf("probe-%d", i)
		b, err := json.Marshal(request)
		if err != nil {
			return nil, err
		}
		if err := ask(string(b)); err != nil {
			return nil, err
		}
	}
	return answers, nil
}
