package provider

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
)

// SetInstall says where the id of this installation comes from: a UUID that stays the same (RFC 9562 section 4, lower
// case), for the one vendor that asks for it. Without it the id lives as long as the client. It is called before the
// client is used.
func (c *Client) SetInstall(id func() (string, error)) { c.install = id }

// installation is the installation's UUID.
func (c *Client) installation() (string, error) {
	id, err := c.install()
	if err != nil {
		return "", err
	}
	groups := strings.Split(id, "-")
	if len(id) != 36 || len(groups) != 5 || strings.Trim(id, "0123456789abcdef-") != "" {
		return "", errors.New("it is not a UUID")
	}
	for i, n := range []int{8, 4, 4, 4, 12} {
		if len(groups[i]) != n {
			return "", errors.New("it is not a UUID")
		}
	}
	return id, nil
}

// NewUUID is a random UUID (RFC 9562 section 5.4), as [Client.SetInstall] wants one.
func NewUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
