package bridge

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"testing"
)

func TestAuthenticateIsHMAC(t *testing.T) {
	for _, n := range []int{0, 1, secretLen, sha256.BlockSize} {
		key, message := make([]byte, n), make([]byte, 2*n)
		_, _ = rand.Read(key)
		_, _ = rand.Read(message)
		mac := hmac.New(sha256.New, key)
		mac.Write(message)
		if want := mac.Sum(nil); !bytes.Equal(authenticate(key, message), want) {
			t.Errorf("a key of %d bytes: not the HMAC", n)
		}
	}
}
