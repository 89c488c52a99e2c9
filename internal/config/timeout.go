package config

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// loginTimeoutVariable is the name that the original client has for it.
const loginTimeoutVariable = "LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS"

// Bounds of a login's lifetime, in seconds.
const (
	defaultLoginTimeout = 600
	maxLoginTimeout     = 24 * 60 * 60
)

// LoginTimeout says how long a login may take: $LLXPRT_OAUTH_SESSION_TIMEOUT_SECONDS, from one second to a
// day, or ten minutes if that is not set.
func LoginTimeout() (time.Duration, error) {
	value := os.Getenv(loginTimeoutVariable)
	if value == "" {
		return defaultLoginTimeout * time.Second, nil
	}
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil || n < 1 || n > maxLoginTimeout {
		return 0, fmt.Errorf("%s: %s is not a number of seconds from 1 to %d", loginTimeoutVariable, quote(value), maxLoginTimeout)
	}
	return time.Duration(n) * time.Second, nil
}
