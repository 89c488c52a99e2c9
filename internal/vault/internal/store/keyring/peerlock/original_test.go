package peerlock_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The two versions of the original client, by their own rules, for tests to run in processes of their own beside ours.

// newer is the newer version's lock. It waits for as long as it takes, and looks more often.
type newer struct{ path, token string }

// owner is the newer version's record.
type owner struct {
	Version         int     `json:"version"`
	OwnerToken      string  `json:"ownerToken"`
	PID             int     `json:"pid"`
	Hostname        string  `json:"hostname"`
	StartTimeMS     float64 `json:"startTimeMs"`
	StartTimeSource string  `json:"startTimeSource"`
}

// psStart is a process's start as the newer version finds it out, in ms.
func psStart(pid int) (float64, bool) {
	cmd := exec.Command("ps", "-o", "lstart=", "-p", strconv.Itoa(pid))
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return 0, false
	}
	t, err := time.ParseInLocation("Mon Jan _2 15:04:05 2006", strings.TrimSpace(string(out)), time.Local)
	return float64(t.UnixMilli()), err == nil
}

func thisOwner(token string) owner {
	host, _ := os.Hostname()
	o := owner{1, token, os.Getpid(), host, 0, "approximate"}
	if start, ok := psStart(o.PID); ok {
		o.StartTimeMS, o.StartTimeSource = start, "canonical"
	}
	return o
}

func readOwner(path string) (raw string, o owner, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", o, false
	}
	err = json.Unmarshal(text, &o)
	return string(text), o, err == nil && o.Version == 1 && o.OwnerToken != "" && o.Hostname != "" && o.PID > 0
}

func (o owner) dead() bool {
	if host, _ := os.Hostname(); o.Hostname != host {
		return false
	}
	if err := syscall.Kill(o.PID, 0); err != nil {
		return errors.Is(err, syscall.ESRCH)
	}
	if o.StartTimeSource != "canonical" {
		return false
	}
	start, ok := psStart(o.PID)
	return ok && math.Abs(o.StartTimeMS-start) > 2000
}

func (l newer) publish(path string, o owner) bool {
	text, _ := json.Marshal(o)
	temp := fmt.Sprintf("%s.%s.tmp", path, o.OwnerToken)
	defer os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close()) == nil && os.Link(temp, path) == nil
}

func removeOwned(path, token string) {
	if _, o, ok := readOwner(path); ok && o.OwnerToken == token {
		_ = os.Remove(path)
	}
}

func (l newer) lock(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	for attempt := 0; ctx.Err() == nil; attempt++ {
		o := thisOwner(l.token)
		if l.publish(l.path, o) || l.recover(o) {
			return nil
		}
		time.Sleep(min(5*time.Millisecond<<min(attempt, 4), 50*time.Millisecond) + rand.N(5*time.Millisecond))
	}
	return ctx.Err()
}

func (l newer) recover(o owner) bool {
	raw, existing, ok := readOwner(l.path)
	if !ok || !existing.dead() {
		return false
	}
	fence := l.path + ".fence"
	if !l.publish(fence, o) {
		if _, f, ok := readOwner(fence); ok && f.dead() {
			removeOwned(fence, f.OwnerToken)
		}
		return false
	}
	defer removeOwned(fence, o.OwnerToken)
	now, again, ok := readOwner(l.path)
	if now != raw || !ok || !again.dead() {
		return false
	}
	_ = os.Remove(l.path)
	return l.publish(l.path, o)
}

func (l newer) unlock() { removeOwned(l.path, l.token) }

// older is the older version's lock. Its removals by name are prompt, as we suppose of the real one, in 250 ms: on a machine that lets
// a process stand still for longer it leaves a removal be. If it was stopped in the very moment, it says so in lateFile.
type older struct{ path string }

const (
	promptly = 100 * time.Millisecond
	lateFile = "late" // below HOME
)

func (l older) lock(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	for ctx.Err() == nil {
		f, err := os.OpenFile(l.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintf(f, `{"pid":%d,"timestamp":%d}`, os.Getpid(), time.Now().UnixMilli())
			return errors.Join(err, f.Close())
		}
		var r struct{ Timestamp float64 }
		begun := time.Now()
		text, err := os.ReadFile(l.path)
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		if !errors.Is(err, fs.ErrNotExist) && (err != nil || float64(time.Now().UnixMilli())-r.Timestamp > 30_000) {
			time.Sleep(rand.N(5 * time.Millisecond)) // a slow disk: the worst that is to be reckoned with
			if time.Since(begun) > promptly {
				continue // it is another one by now, perhaps
			}
			_ = os.Remove(l.path)
			if took := time.Since(begun); took > promptly {
				_ = os.WriteFile(filepath.Join(os.Getenv("HOME"), lateFile), fmt.Append(nil, took), 0o600)
			}
			continue
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

func (l older) unlock() { _ = os.Remove(l.path) }

// abandon leaves the lock as one that is too old, and is up to be broken by everyone at once.
func (l older) abandon() error {
	return os.WriteFile(l.path, fmt.Appendf(nil, `{"pid":%d,"timestamp":%d}`, os.Getpid(), time.Now().Add(-time.Minute).UnixMilli()), 0o600)
}
