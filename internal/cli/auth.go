package cli

import "github.com/spf13/cobra"

func (a *app) authCommand() *cobra.Command {
	return group("auth", "Log in, log out, and see how logins stand",
		`A login is stored under PROVIDER/BUCKET; without a bucket, "default" is meant.
Buckets keep several accounts of one provider apart. Providers are described in
the configuration; credproxy providers lists them.`,
		a.authLoginCommand(), a.authLogoutCommand(), a.authRefreshCommand(), a.authStatusCommand())
}
