package keyring

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/credproxy/credproxy/internal/vault/internal/store"
)

// Names of the Secret Service API 0.2.
const (
	destination     = "org.freedesktop.secrets"
	servicePath     = dbus.ObjectPath("/org/freedesktop/secrets")
	loginPath       = servicePath + "/collection/login"
	noPath          = dbus.ObjectPath("/")
	serviceIface    = "org.freedesktop.Secret.Service"
	collectionIface = "org.freedesktop.Secret.Collection"
	itemIface       = "org.freedesktop.Secret.Item"
	promptIface     = "org.freedesktop.Secret.Prompt"
	getProperty     = "org.freedesktop.DBus.Properties.Get"
)

// Failures of a call that another try may mend.
var (
	errBroken = errors.New("the connection to the keyring broke") // connect again
	errGone   = errors.New("the keyring's item is gone")          // search again
)

// secretStruct is the API's Secret, (oayays).
type secretStruct struct {
	Session     dbus.ObjectPath
	Parameters  []byte // of the session's encryption: none
	Value       []byte
	ContentType string
}

// service is one connection to the Secret Service with a session in it.
//
// The session is "plain": values cross the bus, a socket of this user between processes of this user, as they are. The
// API's other algorithm hides them from whoever may eavesdrop on that bus, but whoever may do that may as well ask for them.
type service struct {
	bus     *dbus.Conn
	session dbus.ObjectPath
	limit   time.Duration // of one call
}

func openService(ctx context.Context, address string, limit time.Duration) (*service, error) {
	bus, err := connect(ctx, address, limit)
	if err != nil {
		return nil, err
	}
	s := &service{bus: bus, limit: limit}
	var output dbus.Variant
	if err := s.call(ctx, servicePath, serviceIface+".OpenSession", []any{"plain", dbus.MakeVariant("")}, &output, &s.session); err != nil {
		_ = bus.Close()
		return nil, err
	}
	return s, nil
}

// call calls a method, within the limit, and stores what it returns in results.
func (s *service) call(ctx context.Context, path dbus.ObjectPath, method string, args []any, results ...any) error {
	limited, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	return s.finish(ctx, method, s.bus.Object(destination, path).CallWithContext(limited, method, 0, args...), results)
}

func (s *service) finish(ctx context.Context, method string, call *dbus.Call, results []any) error {
	if call.Err != nil {
		return failure(method, ended(ctx, call.Err, s.limit))
	}
	if len(results) == 0 {
		return nil
	}
	if err := call.Store(results...); err != nil {
		return fmt.Errorf("%w: %s answered in a form that is not the Secret Service's", store.ErrUnavailable, method)
	}
	return nil
}

// failure sorts the error of a call. The text that an error of the bus has is not passed on, only its name: the text is
// whatever the other program chose to say.
func failure(method string, err error) error {
	busErr, ok := errors.AsType[dbus.Error](err)
	if !ok {
		if errors.Is(err, store.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	short := strings.TrimPrefix(busErr.Name, "org.freedesktop.")
	switch short {
	case "Secret.Error.IsLocked":
		return errLocked
	case "Secret.Error.NoSession", "DBus.Error.NoReply", "DBus.Error.Disconnected":
		return fmt.Errorf("%w: %s: %s", errBroken, method, short)
	case "Secret.Error.NoSuchObject", "DBus.Error.UnknownObject", "DBus.Error.UnknownMethod", "DBus.Error.UnknownInterface":
		return fmt.Errorf("%w: %s: %s", errGone, method, short)
	case "DBus.Error.ServiceUnknown", "DBus.Error.NameHasNoOwner":
		return fmt.Errorf("%w: no program offers a keyring (%s) in this D-Bus session", store.ErrUnavailable, destination)
	}
	if strings.HasPrefix(short, "DBus.Error.Spawn.") || short == "DBus.Error.TimedOut" {
		return fmt.Errorf("%w: the keyring could not be started: %s", store.ErrUnavailable, short)
	}
	return fmt.Errorf("the keyring refused %s: %s", method[strings.LastIndexByte(method, '.')+1:], short)
}

// property reads a property of an object.
func property[V any](ctx context.Context, s *service, path dbus.ObjectPath, iface, name string) (value V, err error) {
	var v dbus.Variant
	if err := s.call(ctx, path, getProperty, []any{iface, name}, &v); err != nil {
		return value, err
	}
	return asVariant[V](name, v)
}

func asVariant[V any](name string, v dbus.Variant) (value V, err error) {
	value, ok := v.Value().(V)
	if !ok {
		return value, fmt.Errorf("%w: the property %s has a type that is not the Secret Service's", store.ErrUnavailable, name)
	}
	return value, nil
}

// properties reads the same property of many items. An item that is gone by then is left out.
func properties[V any](ctx context.Context, s *service, items []dbus.ObjectPath, name string) (map[dbus.ObjectPath]V, error) {
	const atATime = 64 // calls under way; every bus allows that many
	values := make(map[dbus.ObjectPath]V, len(items))
	for batch := range slices.Chunk(items, atATime) {
		if err := addProperties(ctx, s, batch, name, values); err != nil {
			return nil, err
		}
	}
	return values, nil
}

func addProperties[V any](ctx context.Context, s *service, items []dbus.ObjectPath, name string, values map[dbus.ObjectPath]V) error {
	limited, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	calls := make([]*dbus.Call, len(items))
	for i, item := range items {
		calls[i] = s.bus.Object(destination, item).GoWithContext(limited, getProperty, 0, make(chan *dbus.Call, 1), itemIface, name)
	}
	for i, item := range items {
		<-calls[i].Done
		var v dbus.Variant
		err := s.finish(ctx, getProperty, calls[i], []any{&v})
		if errors.Is(err, errGone) {
			continue
		}
		if err == nil {
			values[item], err = asVariant[V](name, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// find returns the items with these attributes in all collections, newest change first, all of them unlocked. If the
// only ones are locked, or if there may be one behind a lock, the error is errLocked.
func (s *service) find(ctx context.Context, attributes map[string]string) ([]dbus.ObjectPath, error) {
	for {
		var items, locked []dbus.ObjectPath
		if err := s.call(ctx, servicePath, serviceIface+".SearchItems", []any{attributes}, &items, &locked); err != nil {
			return nil, err
		}
		if len(locked) > 0 {
			unlocked, err := s.unlock(ctx, locked)
			if err != nil {
				return nil, err
			}
			if items = append(items, unlocked...); len(items) == 0 {
				return nil, errLocked
			}
		}
		switch len(items) {
		case 0:
			// Some services do not look into what is locked.
			collection, opened, err := s.collection(ctx)
			if err != nil || collection == noPath || !opened {
				return nil, err
			}
			continue // it was locked, and is not any more
		case 1:
			return items, nil
		}
		return s.newestFirst(ctx, items)
	}
}

func (s *service) newestFirst(ctx context.Context, items []dbus.ObjectPath) ([]dbus.ObjectPath, error) {
	modified, err := properties[uint64](ctx, s, items, "Modified")
	if err != nil {
		return nil, err
	}
	items = slices.DeleteFunc(items, func(p dbus.ObjectPath) bool { _, ok := modified[p]; return !ok })
	slices.SortFunc(items, func(a, b dbus.ObjectPath) int {
		if modified[a] != modified[b] {
			if modified[a] > modified[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(string(a), string(b))
	})
	return items, nil
}

// unlock unlocks what can be unlocked without asking the person, and returns that.
func (s *service) unlock(ctx context.Context, objects []dbus.ObjectPath) ([]dbus.ObjectPath, error) {
	var unlocked []dbus.ObjectPath
	var prompt dbus.ObjectPath
	if err := s.call(ctx, servicePath, serviceIface+".Unlock", []any{objects}, &unlocked, &prompt); err != nil {
		return nil, err
	}
	return unlocked, s.dismiss(ctx, prompt)
}

// dismiss drops a prompt that the service has ready, before anybody has seen it.
func (s *service) dismiss(ctx context.Context, prompt dbus.ObjectPath) error {
	if prompt == noPath {
		return nil
	}
	if err := s.call(ctx, prompt, promptIface+".Dismiss", nil); err != nil && !errors.Is(err, errGone) {
		return err
	}
	return nil
}

// collection returns where new items go, noPath if there is no such collection, or errLocked. opened says that it was
// locked until now.
func (s *service) collection(ctx context.Context) (collection dbus.ObjectPath, opened bool, err error) {
	if err := s.call(ctx, servicePath, serviceIface+".ReadAlias", []any{"default"}, &collection); err != nil {
		return noPath, false, err
	}
	if collection == noPath {
		all, err := property[[]dbus.ObjectPath](ctx, s, servicePath, serviceIface, "Collections")
		if err != nil || !slices.Contains(all, loginPath) {
			return noPath, false, err
		}
		collection = loginPath
	}
	locked, err := property[bool](ctx, s, collection, collectionIface, "Locked")
	if err != nil || !locked {
		return collection, false, err
	}
	unlocked, err := s.unlock(ctx, []dbus.ObjectPath{collection})
	if err == nil && !slices.Contains(unlocked, collection) {
		err = errLocked
	}
	return collection, true, err
}

// value returns the item's value.
func (s *service) value(ctx context.Context, item dbus.ObjectPath) ([]byte, error) {
	var v secretStruct
	if err := s.call(ctx, item, itemIface+".GetSecret", []any{s.session}, &v); err != nil {
		return nil, err
	}
	return v.Value, nil
}

func (s *service) secret(value string) secretStruct {
	return secretStruct{Session: s.session, Parameters: []byte{}, Value: []byte(value), ContentType: "text/plain"}
}

// setValue changes the item's value and leaves its attributes and label as they are.
func (s *service) setValue(ctx context.Context, item dbus.ObjectPath, value string) error {
	return s.call(ctx, item, itemIface+".SetSecret", []any{s.secret(value)})
}

// create makes a new item in the default collection. If one with these attributes was made since find, it is replaced.
func (s *service) create(ctx context.Context, label string, attributes map[string]string, value string) error {
	collection, _, err := s.collection(ctx)
	if err != nil {
		return err
	}
	if collection == noPath {
		return errNoCollection
	}
	var item, prompt dbus.ObjectPath
	err = s.call(ctx, collection, collectionIface+".CreateItem", []any{map[string]dbus.Variant{
		itemIface + ".Label":      dbus.MakeVariant(label),
		itemIface + ".Attributes": dbus.MakeVariant(attributes),
	}, s.secret(value), true}, &item, &prompt)
	return s.unlessPrompted(ctx, prompt, err)
}

func (s *service) remove(ctx context.Context, item dbus.ObjectPath) error {
	var prompt dbus.ObjectPath
	err := s.call(ctx, item, itemIface+".Delete", nil, &prompt)
	return s.unlessPrompted(ctx, prompt, err)
}

// unlessPrompted turns "done if the person agrees" into errLocked.
func (s *service) unlessPrompted(ctx context.Context, prompt dbus.ObjectPath, err error) error {
	if err != nil || prompt == noPath {
		return err
	}
	_ = s.dismiss(ctx, prompt)
	return errLocked
}

var errNoCollection = fmt.Errorf("%w: the keyring has no default collection to store in: make one in \"Passwords and Keys\" or the like", store.ErrUnavailable)
