package cli

import (
	"context"

	"github.com/credproxy/credproxy/internal/config"
)

func (a *app) checkStores(ctx context.Context, c *config.Config, dirs config.Dirs) []check {
	return nil
}
