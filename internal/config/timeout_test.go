package config

import (
	"testing"
	"time"
)

func TestLoginTimeout(t *testing.T) {
	const rule = " is not a number of seconds from 1 to 86400"
	for value, want := range map[string]struct {
		d   time.Duration
		err string
	}{
		"":                     {10 * time.Minute, ""},
		"1":                    {time.Second, ""},
		"90":                   {90 * time.Second, ""},
		"86400":                {24 * time.Hour, ""},
		"0":                    {0, `"0"` + rule},
		"86401":                {0, `"86401"` + rule},
		"-1":                   {0, `"-1"` + rule},
		"+5":                   {0, `"+5"` + rule},
		"600s":                 {0, `"600s"` + rule},
		"1.5":                  {0, `"1.5"` + rule},
		"0x10":                 {0, `"0x10"` + rule},
		" 600":                 {0, `" 600"` + rule},
		"1_000":                {0, `"1_000"` + rule},
		"18446744073709551616": {0, `"18446744073709551616"` + rule},
		"a\n":                  {0, `"a\n"` + rule},
	} {
		t.Setenv(loginTimeoutVariable, value)
		d, err := LoginTimeout()
		if want.err != "" {
			want.err = "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS: " + want.err
		}
		if d != want.d || (err == nil) != (want.err == "") || err != nil && err.Error() != want.err {
			t.Errorf("%q: %v, %v; want %v, %s", value, d, err, want.d, want.err)
		}
	}
}
