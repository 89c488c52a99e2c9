// Package guest is what of ours runs inside a sandbox, and first. The same program is the host's and the guest's; a word as its first
// argument says that it is the guest.
//
// What to call: [Main], first thing in main. [CanScope] tells the host what the kernel can do for bwrap's sandboxes.
package guest

// The words that Main knows, on Linux.
const (
	// EnterWord, with a command: the first program in bwrap. It parts the command from the abstract Unix sockets of the host, which
	// belong to the network namespace that both share, and then becomes it.
	EnterWord = "sandbox-enter"
)

// Exit statuses that are not the command's own, as docker(1) has them.
const (
	exitGuest       = 125 // we failed before the command ran
	exitCannotRun   = 126 // the command was found and could not be executed
	exitNotFound    = 127 // the command was not found
	exitSignalShift = 128 // plus the number of the signal that ended the command
)
