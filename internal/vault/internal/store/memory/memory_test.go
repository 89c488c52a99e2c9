package memory_test

import (
	"testing"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
	"github.com/credproxy/credproxy/internal/vault/internal/store/memory"
	"github.com/credproxy/credproxy/internal/vault/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) (a, b store.Store) {
		s := memory.New()
		return s, s
	})
}
