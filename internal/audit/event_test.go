package audit

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var fullEvent = Event{
	Time:    time.Date(2026, 11, 3, 9, 8, 7, 6_500_000, time.FixedZone("", 3600)),
	Profile: "work", Op: "get_token", Provider: "acme", Bucket: "default", Key: "openai", Outcome: OK, Code: "NOT_FOUND",
	Duration: 1_204_056 * time.Microsecond, UID: 1000, PID: 4711, Container: "3f2a9c0b1d4e",
}

func TestEventLine(t *testing.T) {
	at := time.Date(2026, 11, 3, 8, 8, 7, 0, time.UTC)
	const head = `{"time":"2026-11-03T08:08:07.000Z","proxy":42`
	tests := []struct {
		event Event
		want  string
	}{
		{fullEvent, `{"time":"2026-11-03T08:08:07.006Z","proxy":42,"profile":"work","op":"get_token","provider":"acme","bucket":"default",` +
			`"key":"openai","outcome":"ok","code":"NOT_FOUND","duration_ms":1204.056,"uid":1000,"pid":4711,"container":"3f2a9c0b1d4e"}`},
		{Event{Time: at}, head + `,"outcome":"error","duration_ms":0.000,"uid":0}`},
		{Event{Time: at, Op: "connect", Outcome: Denied, UID: -1, PID: -1}, head + `,"op":"connect","outcome":"denied","duration_ms":0.000}`},
		{Event{Time: at, Outcome: Outcome(9), Duration: 1999, UID: -1}, head + `,"outcome":"error","duration_ms":0.001}`},
		{Event{Time: at, Duration: 10*time.Millisecond + 90*time.Microsecond, UID: -1}, head + `,"outcome":"error","duration_ms":10.090}`},
		{Event{Time: at, Duration: -time.Second, UID: -1}, head + `,"outcome":"error","duration_ms":0.000}`},
		{Event{Time: at, Profile: "a\nb", Op: `a"b`, Provider: "a\\b", Bucket: "é", Key: strings.Repeat("k", 65), Code: " ", Container: "\x00", UID: -1},
			head + `,"profile":"?","op":"?","provider":"?","bucket":"?","key":"?","outcome":"error","code":"?","duration_ms":0.000,"container":"?"}`},
		{Event{Time: at, Key: strings.Repeat("k", 64), UID: -1}, head + `,"key":"` + strings.Repeat("k", 64) + `","outcome":"error","duration_ms":0.000}`},
	}
	for _, tt := range tests {
		if got := string(appendEvent([]byte("before"), &tt.event, 42)); got != "before"+tt.want+"\n" {
			t.Errorf("got  %swant before%s", got, tt.want)
		}
	}
}

func TestEventTimeIsNow(t *testing.T) {
	before := time.Now().Truncate(time.Millisecond)
	var line struct{ Time time.Time }
	if err := json.Unmarshal(appendEvent(nil, &Event{}, 1), &line); err != nil {
		t.Fatal(err)
	}
	if line.Time.Before(before) || line.Time.After(time.Now()) {
		t.Errorf("time %v", line.Time)
	}
}

// An event has room for names, numbers and closed sets, and for nothing else: no []byte, no error, no map, no any.
func TestEventHasNoRoomForSecrets(t *testing.T) {
	for field := range reflect.TypeFor[Event]().Fields() {
		switch field.Type {
		case reflect.TypeFor[string](), reflect.TypeFor[int](), reflect.TypeFor[Outcome](), reflect.TypeFor[time.Time](), reflect.TypeFor[time.Duration]():
		default:
			t.Errorf("Event.%s has type %v; decide how it is kept from carrying a secret, and say so in docs/audit-log.md", field.Name, field.Type)
		}
	}
	for _, secret := range []string{"Bearer test-access-token-1", "refresh/token+1==", strings.Repeat("test-refresh-token-1", 4)} {
		e := Event{Profile: secret, Op: secret, Provider: secret, Bucket: secret, Key: secret, Code: secret, Container: secret}
		if line := string(appendEvent(nil, &e, 1)); strings.Contains(line, secret[:12]) {
			t.Errorf("%q is in %s", secret, line)
		}
	}
}

// The page's table has the fields, in the order in which they stand in a line.
func TestDocumentedFields(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit-log.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for row := range strings.Lines(string(page)) {
		if cells := strings.Split(row, "`"); strings.HasPrefix(row, "| `") {
			documented = append(documented, cells[1])
		}
	}
	var written []string
	dec := json.NewDecoder(bytes.NewReader(appendEvent(nil, &fullEvent, 1)))
	for i := 0; dec.More() || i == 0; i++ {
		token, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		if name, ok := token.(string); ok && i%2 == 1 {
			written = append(written, name)
		}
	}
	if !slices.Equal(documented, written) {
		t.Errorf("documented %q, written %q", documented, written)
	}
}

// FuzzEvent: whatever the strings are, an event is one line of JSON that a standard decoder takes, made of names.
func FuzzEvent(f *testing.F) {
	f.Add("work", "get_token", "acme", "default", "k", "NOT_FOUND", "3f2a", uint8(1), int64(1500), 1000, 1)
	f.Add("\n", "\"", "\\", "\u2028", "\xff", strings.Repeat("a", 65), "\x7f", uint8(200), int64(-1), -1, -1)
	f.Fuzz(func(t *testing.T, profile, op, provider, bucket, key, code, container string, outcome uint8, duration int64, uid, pid int) {
		e := Event{time.Unix(duration%1e11, 0), profile, op, provider, bucket, key, Outcome(outcome), code, time.Duration(duration), uid, pid, container}
		b := appendEvent(nil, &e, 1)
		if bytes.IndexByte(b, '\n') != len(b)-1 || len(b) > 1024 {
			t.Fatalf("not one short line: %q", b)
		}
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		var line Line
		if err := dec.Decode(&line); err != nil {
			t.Fatalf("%v: %q", err, b)
		}
		if _, err := dec.Token(); err != io.EOF {
			t.Fatalf("more than an object: %q", b)
		}
		for _, s := range []string{line.Profile, line.Op, line.Provider, line.Bucket, line.Key, line.Code, line.Container} {
			if s != "?" && !isName(s) {
				t.Errorf("%q is not a name in %q", s, b)
			}
		}
	})
}

// Line is a line of the log as a reader sees it.
type Line struct {
	Time      time.Time
	Proxy     int
	Profile   string
	Op        string
	Provider  string
	Bucket    string
	Key       string
	Outcome   string
	Code      string
	Duration  float64 `json:"duration_ms"`
	UID       *int
	PID       int
	Container string
}
