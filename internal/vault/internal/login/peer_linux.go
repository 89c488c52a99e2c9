package login

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// stranger reports whether the TCP connection from peer to local was made by a process of another user of this machine. The
// address of a login stands in the arguments of the browser, where all of them can read it: who has it could finish the
// login with an account of their own. Root may, and so may what comes from elsewhere (a browser outside of a virtual machine).
func stranger(peer, local string) bool {
	from, err1 := netip.ParseAddrPort(peer)
	to, err2 := netip.ParseAddrPort(local)
	v4, err3 := os.ReadFile("/proc/net/tcp")
	if err1 != nil || err2 != nil || err3 != nil {
		return false
	}
	v6, _ := os.ReadFile("/proc/net/tcp6") // not there without IPv6
	uids := []int{os.Geteuid(), 0}
	if uid, err := strconv.Atoi(os.Getenv("SUDO_UID")); err == nil && os.Geteuid() == 0 {
		uids = append(uids, uid)
	}
	return !belongs(string(v4)+string(v6), from, to, uids)
}

const established = "01"

// belongs looks for both ends of the connection in a table as proc_net_tcp(5) has it. An end that its process has closed is
// shown as root's, or not at all: it counts as nobody's, and no browser closes before it has been answered. One that only
// has nothing more to say (shutdown for writing) still is shown as its user's.
func belongs(table string, from, to netip.AddrPort, uids []int) bool {
	if state, uid := find(table, from, to); state != "" {
		return slices.Contains(uids, uid) && (state == established || uid != 0)
	}
	state, _ := find(table, to, from)
	return state == established
}

// find returns the state, "" for none, and the UID of the socket that is bound to from and connected to to.
func find(table string, from, to netip.AddrPort) (state string, uid int) {
	ends := [][]string{
		{tableAddress(from.Addr().Unmap(), from.Port()), tableAddress(to.Addr().Unmap(), to.Port())},
		// A socket of IPv6 that is connected over IPv4.
		{tableAddress(netip.AddrFrom16(from.Addr().As16()), from.Port()), tableAddress(netip.AddrFrom16(to.Addr().As16()), to.Port())},
	}
	for line := range strings.Lines(table) {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid …
		f := strings.Fields(line)
		if len(f) < 8 || !slices.Equal(f[1:3], ends[0]) && !slices.Equal(f[1:3], ends[1]) {
			continue
		}
		if uid, err := strconv.Atoi(f[7]); err == nil {
			return f[3], uid
		}
	}
	return "", 0
}

// tableAddress writes an address as the table does: 32-bit words in the machine's byte order.
func tableAddress(a netip.Addr, port uint16) string {
	var b []byte
	for word := range slices.Chunk(a.AsSlice(), 4) {
		b = binary.NativeEndian.AppendUint32(b, binary.BigEndian.Uint32(word))
	}
	return strings.ToUpper(hex.EncodeToString(b) + ":" + hex.EncodeToString(binary.BigEndian.AppendUint16(nil, port)))
}
