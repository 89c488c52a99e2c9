package vault

import (
	"reflect"
	"strings"
	"testing"
)

// The layer of the façade: no exported method takes or returns, at any depth, a type from the rooms in which a
// long-lived secret has a type.
func TestFacadeSpeaksNoTypeOfItsRooms(t *testing.T) {
	seen := map[reflect.Type]bool{}
	var check func(where string, typ reflect.Type)
	check = func(where string, typ reflect.Type) {
		if seen[typ] {
			return
		}
		seen[typ] = true
		if strings.Contains(typ.PkgPath(), "/vault/internal/") {
			t.Errorf("%s: %v", where, typ)
			return
		}
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Array, reflect.Chan, reflect.Map:
			if typ.Kind() == reflect.Map {
				check(where, typ.Key())
			}
			check(where, typ.Elem())
		case reflect.Func:
			for in := range typ.Ins() {
				check(where, in)
			}
			for out := range typ.Outs() {
				check(where, out)
			}
		case reflect.Struct:
			for f := range typ.Fields() {
				if f.IsExported() {
					check(where+"."+f.Name, f.Type)
				}
			}
		}
	}
	door := reflect.TypeFor[*Vault]()
	if door.NumMethod() < 15 {
		t.Fatalf("the façade has only %d methods: is this the right type?", door.NumMethod())
	}
	seen[door] = true // the receiver; its fields are unexported
	for m := range door.Methods() {
		check("Vault."+m.Name, m.Type)
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[Options](), reflect.TypeFor[LoginStatus](), reflect.TypeFor[LogoutResult](), reflect.TypeFor[LoginOptions](), reflect.TypeFor[ProviderInfo]()} {
		check(typ.Name(), typ)
	}
}
