package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
	"rsc.io/qr"
)

// linking reports whether f is a terminal that takes hyperlinks, or at least passes over them: those that would print the
// escape sequence are the exceptions. NO_COLOR says nothing about them.
func linking(f *os.File) bool {
	name := os.Getenv("TERM")
	return isTerminal(f) && !dumb() && name != "linux" && !strings.HasPrefix(name, "eterm")
}

// link is text that leads to target where terminals can do that (OSC 8).
func link(target, text string) string {
	return "\x1b]8;;" + target + "\x1b\\" + text + "\x1b]8;;\x1b\\"
}

// size is the number of columns and lines of a terminal; 0 when it is none, or does not say.
func size(f *os.File) (columns, rows int) {
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return columns, rows
}

func width(f *os.File) int {
	columns, _ := size(f)
	return columns
}

// lines is how many lines a text takes that a terminal wraps.
func lines(text string, columns int) int {
	if columns == 0 {
		return 1
	}
	return (utf8.RuneCountInString(text) + columns - 1) / columns
}

// qrMargin is the quiet zone. The standard asks for four modules; two are enough for every reader, and more addresses fit.
const qrMargin = 2

// qrCode is text as lines of half blocks, two modules in a character. In colours it is black on white whatever the terminal
// looks like; without them, the blocks are the light modules, as on a dark terminal, and most readers take the inverse too.
// columns and rows are how many there are, 0 if nobody knows.
func qrCode(text string, colours bool, columns, rows int) (string, error) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", errors.New("the address is too long for a QR code")
	}
	size := code.Size + 2*qrMargin
	if columns > 0 && size > columns {
		return "", fmt.Errorf("the terminal is too narrow for the QR code: it needs %d columns", size)
	}
	if rows != 0 && (size+1)/2 > rows {
		return "", fmt.Errorf("the terminal is too low for the QR code: it needs %d more lines", (size+1)/2-rows)
	}
	light := func(x, y int) bool { return y < size && !code.Black(x-qrMargin, y-qrMargin) }
	var b strings.Builder
	for y := 0; y < size; y += 2 {
		if colours {
			b.WriteString("\x1b[38;5;231;48;5;16m") // the palette's own white and black, which themes leave alone
		}
		for x := range size {
			switch upper, lower := light(x, y), light(x, y+1); {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		if colours {
			b.WriteString("\x1b[0m")
		}
		b.WriteByte('\n')
	}
	return b.String(), nil
}

// letters are five rows each, of equal length within one. Zero has a dot, which the letter O has not.
var letters = map[rune][5]string{
	'A': {" ## ", "#  #", "####", "#  #", "#  #"},
	'B': {"### ", "#  #", "### ", "#  #", "### "},
	'C': {" ###", "#   ", "#   ", "#   ", " ###"},
	'D': {"### ", "#  #", "#  #", "#  #", "### "},
	'E': {"####", "#   ", "### ", "#   ", "####"},
	'F': {"####", "#   ", "### ", "#   ", "#   "},
	'G': {" ###", "#   ", "# ##", "#  #", " ###"},
	'H': {"#  #", "#  #", "####", "#  #", "#  #"},
	'I': {"###", " # ", " # ", " # ", "###"},
	'J': {"  ##", "   #", "   #", "#  #", " ## "},
	'K': {"#  #", "# # ", "##  ", "# # ", "#  #"},
	'L': {"#   ", "#   ", "#   ", "#   ", "####"},
	'M': {"#   #", "## ##", "# # #", "#   #", "#   #"},
	'N': {"#   #", "##  #", "# # #", "#  ##", "#   #"},
	'O': {" ### ", "#   #", "#   #", "#   #", " ### "},
	'P': {"### ", "#  #", "### ", "#   ", "#   "},
	'Q': {" ### ", "#   #", "# # #", "#  # ", " ## #"},
	'R': {"### ", "#  #", "### ", "# # ", "#  #"},
	'S': {" ###", "#   ", " ## ", "   #", "### "},
	'T': {"#####", "  #  ", "  #  ", "  #  ", "  #  "},
	'U': {"#  #", "#  #", "#  #", "#  #", " ## "},
	'V': {"#   #", "#   #", "#   #", " # # ", "  #  "},
	'W': {"#   #", "#   #", "# # #", "## ##", "#   #"},
	'X': {"#   #", " # # ", "  #  ", " # # ", "#   #"},
	'Y': {"#   #", " # # ", "  #  ", "  #  ", "  #  "},
	'Z': {"####", "   #", " ## ", "#   ", "####"},
	'0': {" ### ", "#   #", "# # #", "#   #", " ### "},
	'1': {" # ", "## ", " # ", " # ", "###"},
	'2': {"### ", "   #", " ## ", "#   ", "####"},
	'3': {"### ", "   #", " ## ", "   #", "### "},
	'4': {"#  #", "#  #", "####", "   #", "   #"},
	'5': {"####", "#   ", "### ", "   #", "### "},
	'6': {" ## ", "#   ", "### ", "#  #", " ## "},
	'7': {"####", "   #", "  # ", " #  ", " #  "},
	'8': {" ## ", "#  #", " ## ", "#  #", " ## "},
	'9': {" ## ", "#  #", " ###", "   #", " ## "},
	'-': {"   ", "   ", "###", "   ", "   "},
	' ': {"  ", "  ", "  ", "  ", "  "},
}

// largeLines are those of a code in block letters, with one above and one below.
const largeLines = 7

// large is a code in five lines of block letters; "" when a character has none, as small letters do not, which would be
// mistaken for capitals, or when it does not fit into the columns (0: not known).
func large(code string, columns int) string {
	var rows [5]strings.Builder
	for _, r := range code {
		letter, ok := letters[r]
		if !ok {
			return ""
		}
		for i := range rows {
			rows[i].WriteString("  " + strings.ReplaceAll(letter[i], "#", "█"))
		}
	}
	var b strings.Builder
	for i := range rows {
		row := rows[i].String()
		if columns > 0 && utf8.RuneCountInString(row) > columns {
			return ""
		}
		b.WriteString(strings.TrimRight(row, " ") + "\n")
	}
	return b.String()
}

// boldLines makes each line bold by itself, for terminals that begin every line anew.
func (p painter) boldLines(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i := range lines {
		lines[i] = p.bold(lines[i])
	}
	return strings.Join(lines, "\n") + "\n"
}
