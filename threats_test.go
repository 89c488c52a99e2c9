package credproxy_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A defence counts as long as its test is there.
func TestThreatModelNamesTestsThatExist(t *testing.T) {
	tests := map[string]bool{} // package.Name, the package by its directory
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir := filepath.Base(filepath.Dir(path))
		if dir == "." {
			dir = "credproxy"
		}
		for _, match := range function.FindAllSubmatch(source, -1) {
			tests[dir+"."+string(match[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`(\\w+\\.(?:Test|Fuzz)\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 100 {
		t.Fatalf("docs/threat-model.md names %d tests: is it read correctly?", len(named))
	}
	for _, name := range named {
		if !tests[string(name[1])] {
			t.Errorf("docs/threat-model.md names %s, which does not exist", name[1])
		}
	}
	for i, line := range strings.Split(string(page), "\n") {
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| ---") && !strings.HasPrefix(line, "| Attack") && !strings.Contains(line, ".Test") {
			t.Errorf("docs/threat-model.md:%d: a defence without a test", i+1)
		}
	}
}
