//go:build e2e && linux

package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The secret and the private key of a run are known here, and then looked for: from inside, by a program that may read whatever
// root of that container may, and on the host.
func TestSecretOfTheBridgeIsNowhere(t *testing.T) {
	inEngines(t, append(everyEngineOverTLS[:3:3], otherServers[0]), func(t *testing.T, s *sandboxed) {
		const inVariable, inFile, inMemory = "test-control-of-the-variable", "test-control-of-the-file", "test-control-of-the-memory"
		if err := os.WriteFile(s.work+"/control", []byte(inFile), 0o644); err != nil {
			t.Fatal(err)
		}
		dir := s.recorded(t)
		b := s.start(s.command(s.args([]string{"-v", "--env", "CONTROL=" + inVariable},
			append(s.shell, `credproxy token acme >/dev/null && { ./guest keep-in-mind "$1" </dev/null >&2 & } && exec ./guest search`, "sh", inMemory)...)...))
		if b.stdout.find(regexp.MustCompile(`^ready\n`), b.ended, time.Minute) == nil {
			t.Fatalf("nobody searches; stdout: %s stderr: %s", b.stdout, b.stderr)
		}
		if b.stderr.find(regexp.MustCompile(`(?m)^held `), b.ended, time.Minute) == nil {
			t.Fatalf("nobody has a secret in memory; stderr: %s", b.stderr)
		}
		h := handover(t, dir)
		secret := canaries{}
		secret.add(t, "the secret of the run", string(h.Secret[:]))
		secret.add(t, "the private key of the run", string(privateKey(t, b, h)))

		order := searchOrder{Needles: map[string][]byte{}}
		for what, values := range secret {
			for form, needle := range writings(values[0]) {
				order.Needles[what+" "+form] = masked(needle)
			}
		}
		for _, control := range []string{inVariable, inFile, strings.ToUpper(inMemory)} {
			order.Needles[control] = masked([]byte(control))
		}
		line, err := json.Marshal(order)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.stdin.Write(append(line, '\n')); err != nil {
			t.Fatal(err)
		}
		said := b.stdout.find(regexp.MustCompile(`(?m)^(\{.*\})\n`), b.ended, time.Minute)
		var r searchReport
		if said == nil || json.Unmarshal([]byte(said[1]), &r) != nil {
			t.Fatalf("the search tells nothing; stdout %.300s stderr: %s", b.stdout, b.stderr)
		}

		// What was found, and whether what was there to find was.
		controls := map[string]string{inVariable: "/environ", inFile: s.work + "/control", strings.ToUpper(inMemory): "the memory of process"}
		for _, found := range r.Found {
			name, place, _ := strings.Cut(found, " in ")
			if kind, ok := controls[name]; !ok {
				t.Errorf("inside: %s", found)
			} else if strings.Contains(place, kind) {
				controls[name] = ""
			}
		}
		for name, missing := range controls {
			if missing != "" {
				t.Errorf("the search inside has not found %s in %s", name, missing)
			}
		}
		if r.MemoryRead < 1<<20 || r.FilesRead[s.work+"/guest"] != "" || r.FilesRead["/usr/local/bin/credproxy"] != "" || len(r.FilesRead) < 3 {
			t.Errorf("the search inside has read %d bytes of memory and the files %v", r.MemoryRead, r.FilesRead)
		}
		// Our own processes are closed: process 1, and the carrier.
		var carriers int
		for pid, words := range r.Processes {
			carrier := strings.Contains(words, "sandbox-carry")
			if carrier {
				carriers++
			}
			if pid != 1 && !carrier {
				continue
			}
			for _, file := range []string{"mem", "maps", "environ", "fd", "auxv"} {
				if !slices.Contains(r.Closed[pid], file) {
					t.Errorf("%s of process %d (%s) can be read inside", file, pid, words)
				}
			}
		}
		if !strings.Contains(r.Processes[1], "sandbox-bridge") || carriers != 1 {
			t.Errorf("processes inside: %v", r.Processes)
		}

		// On the host, while it runs.
		dirs, _ := filepath.Glob("/proc/[0-9]*")
		for _, dir := range dirs {
			if pid, _ := strconv.Atoi(filepath.Base(dir)); pid == os.Getpid() {
				continue
			}
			for _, name := range []string{"cmdline", "environ"} {
				data, _ := os.ReadFile(dir + "/" + name)
				secret.search(t, dir+"/"+name, data)
			}
		}
		id := s.container(t)
		asked := map[string][]byte{}
		for _, question := range [][]string{{"inspect", id}, {"inspect", s.image}, {"history", "--no-trunc", s.image}, {"logs", id}, {"diff", id}, {"top", id}} {
			asked[question[0]], _ = s.program(s.engine, question...).CombinedOutput() // logs are an error: there are none
			secret.search(t, s.engine+" "+strings.Join(question, " "), asked[question[0]])
		}
		if id == "" || !strings.Contains(string(asked["inspect"]), "sha256:") || len(asked["history"]) < 20 {
			t.Errorf("the engine says little of %q: %s", id, asked)
		}
		if n := s.searchRecords(t, secret, id); n == 0 {
			t.Error("the engine has no file about the container")
		}
		if err := b.stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if code := b.wait(patience); code != 0 {
			t.Errorf("status %d; stderr: %s", code, b.stderr)
		}
		s.nothingLeft(t, "a search")

		// And what stays.
		for _, place := range []string{s.home, s.tmp, s.work} {
			for path, data := range filesBelow(t, place) {
				secret.search(t, path, data)
			}
		}
		calls, err := os.ReadFile(dir + "/calls")
		if err != nil || !strings.Contains(string(calls), "sandbox-bridge") || !strings.Contains(string(calls), "sandbox-carry") {
			t.Errorf("calls of the engine: %v", err)
		}
		secret.search(t, "the arguments and the environment of the engine's client", calls)
		secret.search(t, "what the run prints", s.said.bytes())
	})
}

// searchRecords searches what the engine keeps about a container on the disk, and returns how many files that are.
func (s *sandboxed) searchRecords(t *testing.T, secret canaries, id string) (files int) {
	t.Helper()
	roots := map[string]string{"docker": "{{.DockerRootDir}}", "podman": "{{.Store.GraphRoot}} {{.Store.RunRoot}}"}
	out, err := s.program(s.engine, "info", "--format", roots[s.engine]).Output()
	if err != nil {
		t.Fatal(err)
	}
	for root := range strings.FieldsSeq(string(out)) {
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return nil // containers of other tests end
			case d.IsDir() && (d.Name() == "overlay" || d.Name() == "overlay2" || d.Name() == "merged"):
				return fs.SkipDir // its file system, which is searched from inside
			case !d.Type().IsRegular() || !strings.Contains(path, id):
				return nil
			}
			if data, err := os.ReadFile(path); err == nil {
				files++
				secret.search(t, path, data)
			}
			return nil
		})
	}
	return files
}

// A program inside cannot trace our processes either.
func TestProcessesOfTheBridgeAreClosed(t *testing.T) {
	inEngines(t, everyEngineOverTLS, func(t *testing.T, s *sandboxed) {
		r := s.in(append(s.shell, `./guest spy 1; for p in /proc/[0-9]*; do
			if grep -q sandbox-carry $p/cmdline && [ $p != /proc/1 ] && [ ${p#/proc/} != $$ ]; then ./guest spy ${p#/proc/}; fi; done
			echo here; ./guest linger "$PWD/lingers" >/dev/null & until [ -s lingers ]; do sleep 0.01; done; ./guest spy $(cat lingers); kill -9 $!; credproxy token acme >/dev/null; echo "status $?"`)...)
		before, after, _ := strings.Cut(r.stdout, "here\n")
		before = strings.ReplaceAll(before, "listed fd\n", "") // root may see how many there are, see TestSecretOfTheBridgeIsNowhere
		if r.code != 0 || before != "done\ndone\n" {
			t.Errorf("process 1 and the carrier: %v", r)
		}
		// The spy can see, and the bridge still works.
		if !strings.Contains(after, "read environ") || !strings.Contains(after, "read mem") || !strings.HasSuffix(after, "status 0\n") {
			t.Errorf("a process that does not close itself: %v", r)
		}
		s.nothingLeft(t, "a spy")
	})
}
