package wire

import "strconv"

// LoginStatus says how a stored login stands and when it is renewed. It is what get_bucket_stats answers besides to a
// request with [Request.Detail], an extension of the protocol. Nothing in it is a secret. Its texts are for people and,
// like an [Error]'s, made of known-safe parts only.
//
// Times are Unix seconds, 0 when there is none or it is not known.
type LoginStatus struct {
	State       string `json:"state"`                 // "ok", "expired", "login_needed" or "unsaved"; never empty
	Expiry      int64  `json:"expiry,omitempty"`      // of the access token
	RenewsAt    int64  `json:"renewsAt,omitempty"`    // when the proxy will renew it by itself
	LastRefresh int64  `json:"lastRefresh,omitempty"` // the last time that a refresh succeeded
	LastOutcome string `json:"lastOutcome,omitempty"` // of the last refresh: "ok", "failed" or "refused"; "" before the first
	Detail      string `json:"detail,omitempty"`      // a sentence
	Store       string `json:"store,omitempty"`       // the kind of store that has it
}

// statusNames has the texts first, then the times.
var statusNames = []string{"state", "lastOutcome", "detail", "store", "expiry", "renewsAt", "lastRefresh"}

// append appends s as an object; members that say nothing are left out.
func (s *LoginStatus) append(dst []byte) []byte {
	dst = appendMember(dst, `{"state":`, s.State)
	dst = appendTime(dst, `,"expiry":`, s.Expiry)
	dst = appendTime(dst, `,"renewsAt":`, s.RenewsAt)
	dst = appendTime(dst, `,"lastRefresh":`, s.LastRefresh)
	if s.LastOutcome != "" {
		dst = appendMember(dst, `,"lastOutcome":`, s.LastOutcome)
	}
	if s.Detail != "" {
		dst = appendMember(dst, `,"detail":`, s.Detail)
	}
	if s.Store != "" {
		dst = appendMember(dst, `,"store":`, s.Store)
	}
	return append(dst, '}')
}

func appendTime(dst []byte, prefix string, seconds int64) []byte {
	if seconds <= 0 {
		return dst
	}
	return strconv.AppendInt(append(dst, prefix...), min(seconds, maxExpiry), 10)
}

// UnmarshalJSON decodes the member login of get_bucket_stats.
func (s *LoginStatus) UnmarshalJSON(raw []byte) error {
	var (
		m [7][]byte
		d LoginStatus
	)
	if err := decodeObject(raw, statusNames, m[:]); err != nil {
		return err
	}
	texts := []*string{&d.State, &d.LastOutcome, &d.Detail, &d.Store}
	for i, p := range texts {
		var ok bool
		if *p, ok = optionalText(m[i]); !ok || i == 0 && *p == "" {
			return &RuleError{"login." + statusNames[i] + " must be a string"}
		}
	}
	for i, p := range []*int64{&d.Expiry, &d.RenewsAt, &d.LastRefresh} {
		i += len(texts)
		if m[i] == nil {
			continue
		}
		var ok bool
		if *p, ok = unixTime(m[i]); !ok {
			return &RuleError{"login." + statusNames[i] + timeRule}
		}
	}
	*s = d
	return nil
}
