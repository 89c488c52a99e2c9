package guest

// Main does what the word args[0] says; args is os.Args[1:]. If mine is false, it is no word of ours and nothing was done; else the
// program has to exit with the status. Where all goes well it does not return from EnterWord: the program has become the command.
func Main(args []string) (status int, mine bool) {
	if len(args) < 2 {
		return 0, false
	}
	switch args[0] {
	case EnterWord:
		return enter(args[1:]), true
	}
	return 0, false
}
