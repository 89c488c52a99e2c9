// Package guest is what of ours runs inside a sandbox, and first. The same program is the host's and the guest's; a word as its first
// argument says that it is the guest.
//
// What to call: [Main], first thing in main. [CanScope] tells the host what the kernel can do for bwrap's sandboxes. The words are for
// who starts the program; they and everything that follows them are arguments, so nothing secret is among them.
//
// What goes wrong here is said on standard error, as "credproxy: what: why" and a line that begins with "hint:".
package guest

// The words that Main knows, on Linux. SocketEnv has to be set for each.
const (
	// EnterWord, with a command: the first program in bwrap. It makes sure that the socket can be reached, parts the command from
	// the abstract Unix sockets of the host, which belong to the network namespace that both share, and becomes it.
	EnterWord = "sandbox-enter"

	// StartWord, with a command: the first program in a container where the host's socket is mounted. It makes sure that the
	// socket can be reached, and starts the command as its child; where an init of the engine's is process 1, it becomes the
	// command.
	StartWord = "sandbox-start"

	// BridgeWord, with a command: process 1 of a container without the host's socket. It is told by CarryWord who the proxy is,
	// opens a socket, makes sure that the proxy answers through it, and starts the command as its child.
	BridgeWord = "sandbox-bridge"

	// CarryWord, alone: run in the same container as the same user, by the engine's exec. What it reads (quoted, see bridge.QuoteTo)
	// goes to process 1, what comes from there is its output: first the handover (package bridge), then TLS.
	CarryWord = "sandbox-carry"
)

// SocketEnv names the variable that tells where the socket is, or is to be.
const SocketEnv = "LLXPRT_CREDENTIAL_SOCKET"

// handoverName is the socket beside the one in SocketEnv at which process 1 waits for CarryWord. It is the shorter name.
const handoverName = ".handover"

// Exit statuses that are not the command's own, as docker(1) has them.
const (
	exitGuest       = 125 // we failed before the command ran
	exitCannotRun   = 126 // the command was found and could not be executed
	exitNotFound    = 127 // the command was not found
	exitSignalShift = 128 // plus the number of the signal that ended the command
)
