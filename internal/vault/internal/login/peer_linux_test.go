package login

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// The kernel's own table, with connections over IPv4, over IPv6 and from a socket of IPv6 over IPv4.
func TestOwnConnectionsAreNoStrangers(t *testing.T) {
	for listen, dial := range map[string]string{"127.0.0.1": "127.0.0.1", "::1": "::1", "127.0.0.2": "::ffff:127.0.0.2"} {
		l, err := net.Listen("tcp", net.JoinHostPort(listen, "0"))
		if listen == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
			continue // a machine without IPv6
		}
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		c, err := net.Dial("tcp", net.JoinHostPort(dial, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		peer, local := s.RemoteAddr().String(), s.LocalAddr().String()
		if stranger(peer, local) {
			t.Errorf("%s to %s: a stranger's", peer, local)
		}
		table, err := os.ReadFile("/proc/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		more, _ := os.ReadFile("/proc/net/tcp6")
		from, to := netip.MustParseAddrPort(peer), netip.MustParseAddrPort(local)
		if state, uid := find(string(table)+string(more), from, to); state != established || uid != os.Geteuid() {
			t.Errorf("%s to %s: state %q, UID %d", peer, local, state, uid)
		}
		if belongs(string(table)+string(more), from, to, []int{os.Geteuid() + 1}) {
			t.Errorf("%s to %s: another user's", peer, local)
		}
	}
}

func TestBelongs(t *testing.T) {
	from, to := netip.MustParseAddrPort("127.0.0.1:258"), netip.MustParseAddrPort("127.0.0.1:772")
	line := func(from, to netip.AddrPort, state string, uid int) string {
		return fmt.Sprintf("   7: %s %s %s 00000000:00000000 00:00000000 00000000 %5d        0 12345 1\n",
			tableAddress(from.Addr(), from.Port()), tableAddress(to.Addr(), to.Port()), state, uid)
	}
	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	server := line(to, from, established, 1000)
	for name, c := range map[string]struct {
		table string
		want  bool
	}{
		"ours":                      {server + line(from, to, established, 1000), true},
		"root's":                    {server + line(from, to, established, 0), true},
		"ours, half closed":         {server + line(from, to, "05", 1000), true},
		"another's":                 {server + line(from, to, established, 1001), false},
		"closed by another":         {line(to, from, "08", 1000) + line(from, to, "05", 0), false},
		"reset by another":          {"", false},
		"half closed, gone":         {line(to, from, "08", 1000), false},
		"from elsewhere":            {server, true},
		"of another's port":         {server + line(to, to, established, 1000), true},
		"IPv6 over IPv4, another's": {server + line(mapped(from), mapped(to), established, 1001), false},
		"IPv6 over IPv4, ours":      {server + line(mapped(from), mapped(to), established, 1000), true},
		"a table with words":        {"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n" + line(from, to, established, 1001), false},
	} {
		if got := belongs(c.table, from, to, []int{1000, 0}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
