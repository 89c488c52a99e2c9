package login

import (
	"fmt"
	"net/http"
	"strconv"
)

// page writes a plain page of constant text, whole: nothing of a request is echoed, nothing is loaded, nothing is cached.
// The connection may be closed when it returns.
func page(w http.ResponseWriter, status int, title, text string) {
	body := fmt.Appendf(nil, `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>%s</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<style>body{font:1.1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto;padding:0 1rem}</style></head>
<body><h1>%s</h1><p>%s</p></body></html>
`, title, title, text)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.WriteHeader(status)
	if _, err := w.Write(body); err == nil {
		_ = http.NewResponseController(w).Flush() // fails where the browser has gone away
	}
}
