"""A client of the credential socket that was written from docs/protocol.md alone, with the standard library only.

    client.py SOCKET CHAPTER [ARGUMENT]

plays one chapter and prints a transcript: "case: what came back". What came back is "ok" and the data, or the error
code; "closed" when the connection ended, after the code of an error frame where the protocol demands one.
"""

import fcntl
import json
import select
import socket
import struct
import sys
import time

PATIENCE = 60
path, chapter, argument = sys.argv[1], sys.argv[2], sys.argv[3:]


class Conn:
    def __init__(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(path)
        self.buffer = b""

    def raw(self, data):
        """Sends bytes; a server that has closed already is seen when its answer is read."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def frame(self, payload):
        if not isinstance(payload, bytes):
            payload = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
        self.raw(struct.pack(">I", len(payload)) + payload)

    def take(self, n):
        while len(self.buffer) < n:
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.buffer += data
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def answer(self):
        """The next answer, or None when the connection has ended."""
        head = self.take(4)
        if head is None:
            return None
        payload = self.take(struct.unpack(">I", head)[0])
        return None if payload is None else json.loads(payload)

    def silent(self, seconds):
        """Whether nothing comes for so long."""
        return not self.buffer and not select.select([self.sock], [], [], seconds)[0]

    def hello(self, version):
        self.version = version
        self.frame({"v": 1, "op": "handshake", "payload": {"minVersion": version, "maxVersion": version}})
        answer = self.answer()
        assert answer["ok"] and answer["data"]["version"] == version and answer["v"] == version, answer
        return self

    def call(self, op, payload=None, **other):
        request = {"v": self.version, "id": "id-1", "op": op, **other}
        if payload is not None:
            request["payload"] = payload
        self.frame(request)
        return self.answer()


def text(answer, id="id-1", version=None):
    if answer is None:
        return "closed"
    result = "ok " + json.dumps(answer["data"], sort_keys=True) if answer["ok"] else answer["code"]
    if not answer["ok"] and not (isinstance(answer["error"], str) and answer["error"]):
        result += " WITHOUT TEXT"
    if "retryAfter" in answer:
        result += " retryAfter=%s" % answer["retryAfter"]
    if answer.get("id") != id:
        result += " id=%s" % answer.get("id")
    if version is not None and answer["v"] != version:
        result += " v=%s" % answer["v"]
    return result


def say(case, result):
    print("%s: %s" % (case, result), flush=True)


def handshakes():
    def hello(case, frame):
        c = Conn()
        c.frame(frame)
        first = c.answer()
        if first is not None and first["ok"]:
            assert first["op"] == "handshake" and first["v"] == first["data"]["version"], first
            say(case, "version %d" % first["v"])
            return
        say(case, text(first, id=None) + (" closed" if first is not None and c.answer() is None else ""))

    def bounds(low, high, v=1):
        return {"v": v, "op": "handshake", "payload": {"minVersion": low, "maxVersion": high}}

    for low, high in [(1, 1), (2, 2), (1, 2), (1, 99), (0, 1), (-5, 1), (3, 9), (0, 0), (2, 1),
                      (1, "1"), ("1", 1), (1, 1.5), (None, 1), (True, True), ([1], 1), (1, 1e300)]:
        hello("bounds %s to %s" % (json.dumps(low), json.dumps(high)), bounds(low, high))
    for v in [1, 2, 3, 0, "1", 1.5, None]:
        hello("v %s alone" % json.dumps(v), {"v": v, "op": "handshake"})
        hello("v %s with an empty payload" % json.dumps(v), {"v": v, "op": "handshake", "payload": {}})
    hello("no version at all", {"op": "handshake"})
    hello("unknown members", {"v": 1, "op": "handshake", "x": 1, "payload": {"minVersion": 1, "maxVersion": 1, "y": {}}})
    hello("another operation first", {"v": 1, "id": "id-1", "op": "list_providers"})
    hello("no operation", {"v": 1})
    hello("wrong case", {"v": 1, "Op": "handshake"})
    hello("payload is an array", {"v": 1, "op": "handshake", "payload": []})
    hello("duplicate bound", '{"v":1,"op":"handshake","payload":{"minVersion":1,"minVersion":1,"maxVersion":1}}')
    for case, frame in [("null", "null"), ("an array", "[]"), ("not JSON", "hello"), ("nothing", "")]:
        c = Conn()
        c.frame(frame)
        answer = c.answer()
        say("first frame is " + case, "closed" if answer is None or c.answer() is None else "open")
    c = Conn()
    c.raw(struct.pack(">I", 65537))
    answer = c.answer()
    say("first frame over 64 KiB", "closed" if answer is None or c.answer() is None else "open")
    c = Conn()
    c.hello(1)
    c.frame({"v": 1, "id": "id-1", "op": "handshake", "payload": {"minVersion": 1, "maxVersion": 1}})
    say("a second handshake", text(c.answer()))


def capability():
    right = open(argument[0]).read().strip()

    def hello(case, payload):
        c = Conn()
        c.frame({"v": 1, "op": "handshake", "payload": {"minVersion": 1, "maxVersion": 1, **payload}})
        first = c.answer()
        if first["ok"]:
            c.version = 1
            say(case, "version %d, then list_providers %s" % (first["v"], text(c.call("list_providers"))))
            return
        assert first["op"] == "handshake", first
        say(case, text(first, id=None) + (" closed" if c.answer() is None else ""))

    hello("right", {"capabilityToken": right})
    hello("missing", {})
    hello("empty", {"capabilityToken": ""})
    hello("wrong", {"capabilityToken": "x" * len(right)})
    hello("a prefix", {"capabilityToken": right[:-1]})
    hello("one more", {"capabilityToken": right + "x"})
    hello("a number", {"capabilityToken": 1})
    hello("null", {"capabilityToken": None})
    hello("in an array", {"capabilityToken": [right]})
    c = Conn()
    c.frame({"v": 1, "id": "id-1", "op": "get_api_key", "payload": {"name": "openai"}, "capabilityToken": right})
    say("no handshake", text(c.answer(), id=None) + (" closed" if c.answer() is None else ""))


def operations(version):
    c = Conn().hello(version)

    def op(case, name, payload=None, **other):
        say("v%d %s" % (version, case), text(c.call(name, payload, **other), version=version))

    op("list_providers", "list_providers")
    op("list_providers with a payload", "list_providers", {"ignored": 1})
    op("list_buckets", "list_buckets", {"provider": "acme"})
    op("list_buckets of nobody", "list_buckets", {"provider": "nobody"})
    op("get_token", "get_token", {"provider": "acme"})
    op("get_token default", "get_token", {"provider": "acme", "bucket": "default"})
    op("get_token work", "get_token", {"provider": "acme", "bucket": "work"})
    op("get_token nowhere", "get_token", {"provider": "acme", "bucket": "nowhere"})
    op("get_token nobody", "get_token", {"provider": "nobody"})
    op("get_token unknown members", "get_token", {"provider": "acme", "extra": [1, {"a": None}]}, more="x")
    op("get_bucket_stats", "get_bucket_stats", {"provider": "acme"})
    op("get_bucket_stats work", "get_bucket_stats", {"provider": "acme", "bucket": "work"})
    op("get_bucket_stats nobody", "get_bucket_stats", {"provider": "nobody"})

    token = {"access_token": "test-saved-1", "expiry": 2000000000, "token_type": "Bearer", "scope": "a b",
             "note": {"list": [1, "\u00e9", None]}}
    op("save_token", "save_token", {"provider": "mine", "token": token})
    op("get what was saved", "get_token", {"provider": "mine"})
    op("list_providers with it", "list_providers")
    op("save_token with refresh tokens", "save_token", {"provider": "mine", "token": {
        "access_token": "test-saved-2", "expiry": 2000000001, "token_type": "bearer", "refresh_token": "test-refresh",
        "refreshToken": "test-refresh", "nested": {"Refresh_Token": "test-refresh", "kept": [{"refresh-token": "test-refresh"}]}}})
    op("get without refresh tokens", "get_token", {"provider": "mine"})
    op("save_token over a login", "save_token", {"provider": "acme", "bucket": "saved", "token": {
        "access_token": "test-saved-3", "expiry": 2000000002, "token_type": "Bearer"}})
    op("get it", "get_token", {"provider": "acme", "bucket": "saved"})
    op("remove_token", "remove_token", {"provider": "mine"})
    op("get after remove_token", "get_token", {"provider": "mine"})
    op("remove_token again", "remove_token", {"provider": "mine"})
    op("remove_token saved", "remove_token", {"provider": "acme", "bucket": "saved"})
    for case, bad in [
        ("no token", None), ("array", []), ("string", "x"), ("empty", {}),
        ("no access_token", {"expiry": 1, "token_type": "Bearer"}),
        ("no expiry", {"access_token": "a", "token_type": "Bearer"}),
        ("no token_type", {"access_token": "a", "expiry": 1}),
        ("empty access_token", {"access_token": "", "expiry": 1, "token_type": "Bearer"}),
        ("object access_token", {"access_token": {"0": "n"}, "expiry": 1, "token_type": "Bearer"}),
        ("string expiry", {"access_token": "a", "expiry": "1", "token_type": "Bearer"}),
        ("negative expiry", {"access_token": "a", "expiry": -1, "token_type": "Bearer"}),
        ("milliseconds", {"access_token": "a", "expiry": 2000000000000, "token_type": "Bearer"}),
        ("number scope", {"access_token": "a", "expiry": 1, "token_type": "Bearer", "scope": 1}),
    ]:
        op("save_token: " + case, "save_token", {"provider": "mine"} if bad is None else {"provider": "mine", "token": bad})
    op("nothing of these was saved", "get_token", {"provider": "mine"})

    op("get_api_key", "get_api_key", {"name": "openai"})
    op("get_api_key of nothing", "get_api_key", {"name": "nothing"})
    op("get_api_key of a client secret", "get_api_key", {"name": "acme-secret"})
    op("has_api_key", "has_api_key", {"name": "openai"})
    op("has_api_key of nothing", "has_api_key", {"name": "nothing"})
    op("list_api_keys", "list_api_keys")
    for name in ["set_api_key", "save_api_key", "remove_api_key", "delete_api_key"]:
        op(name, name, {"name": "openai", "key": "x"})

    def refresh(case, **payload):
        answer = c.call("refresh_token", payload)
        needed = not answer["ok"] and answer["error"].startswith("login needed: ")
        say("v%d %s" % (version, case), text(answer, version=version) + (", login needed" if needed else ""))
        return answer.get("data")

    # Another login for each version: the provider is asked once in 30 s.
    mine = ["acme", "other"][version - 1]
    token = refresh("refresh_token", provider=mine)
    refresh("refresh_token again", provider=mine, bucket="default")
    op("get it", "get_token", {"provider": mine})
    op("how it stands", "get_bucket_stats", {"provider": mine, "detail": True})
    op("how it stands: detail is false", "get_bucket_stats", {"provider": mine, "detail": False})
    op("how it stands: detail is 1", "get_bucket_stats", {"provider": mine, "detail": 1})
    op("save_token, expired", "save_token", {"provider": mine, "token": {"access_token": "test-saved-4", "expiry": 1, "token_type": "Bearer"}})
    retry = c.call("refresh_token", {"provider": mine})
    say("v%d refresh_token within 30 s" % version, "%s, again within 30 s: %s" % (retry["code"], 1 <= retry.get("retryAfter", 0) <= 30))
    op("how it stands, expired", "get_bucket_stats", {"provider": mine, "detail": True})
    op("save_token, as it was", "save_token", {"provider": mine, "token": token})
    refresh("refresh_token nowhere", provider="acme", bucket="nowhere")
    refresh("refresh_token nobody", provider="nobody")
    op("save_token, no refresh token", "save_token", {"provider": "mine", "token": {"access_token": "test-saved-5", "expiry": 1, "token_type": "Bearer"}})
    refresh("refresh_token of it", provider="mine")
    op("how it stands, without", "get_bucket_stats", {"provider": "mine", "detail": True})
    op("remove it", "remove_token", {"provider": "mine"})
    op("oauth_initiate of nobody", "oauth_initiate", {"provider": "nobody"})
    op("oauth_initiate with a flow that there is not", "oauth_initiate", {"provider": "acme", "flow": "device_code"})
    op("oauth_initiate with no flow type", "oauth_initiate", {"provider": "acme", "flow": "carrier_pigeon"})
    op("oauth_initiate with an empty flow", "oauth_initiate", {"provider": "acme", "flow": ""})
    op("oauth_initiate with detail 1", "oauth_initiate", {"provider": "acme", "detail": 1})

    def login(case, payload):
        """Begins a login and returns its id. What differs from run to run is not said."""
        answer = c.call("oauth_initiate", payload)
        data = answer.get("data", {})
        id = data.get("session_id")
        if id is not None:
            assert isinstance(id, str) and 0 < len(id) <= 128, id
            assert data["auth_url"].startswith("http://127.0.0.1:"), data
            data["session_id"], data["auth_url"] = "ID", "ADDRESS"
        say("v%d %s" % (version, case), text(answer, version=version))
        return id

    first = login("oauth_initiate", {"provider": "acme"})
    second = login("oauth_initiate with everything", {"provider": "acme", "bucket": "default", "flow": "browser_redirect", "detail": True})
    assert first != second
    op("oauth_poll", "oauth_poll", {"session_id": first})
    op("oauth_exchange of a login that is polled", "oauth_exchange", {"session_id": first, "code": "c"})
    op("oauth_poll, still", "oauth_poll", {"session_id": first})
    for case, id in [("", first), (" again", first), (" of the other", second)]:
        op("oauth_cancel" + case, "oauth_cancel", {"session_id": id})
    op("oauth_poll after it", "oauth_poll", {"session_id": first})
    nowhere = "0123456789abcdef0123456789abcdef"
    for operation, more in [("oauth_exchange", {"code": "c"}), ("oauth_poll", {}), ("oauth_cancel", {})]:
        op(operation + " of nothing", operation, {"session_id": nowhere, **more})
        op(operation + " without session", operation, more)
        for id in ["", "x" * 128, "x" * 129, "../x", "\u00e9", None, 1, [], {}]:
            name = json.dumps(id) if not isinstance(id, str) or len(id) < 9 else "%d x" % len(id)
            op("%s of %s" % (operation, name), operation, {"session_id": id, **more})
    op("oauth_exchange without code", "oauth_exchange", {"session_id": nowhere})
    for code in ["", "x" * 4096, "x" * 4097, "a\nb", "a\u0000b", "a\u007fb", None, 1, []]:
        name = json.dumps(code) if not isinstance(code, str) or len(code) < 9 else "%d x" % len(code)
        op("oauth_exchange of code " + name, "oauth_exchange", {"session_id": nowhere, "code": code})
    op("cancel of nothing", "cancel", {"targetId": "nobody"})
    op("cancel without target", "cancel", {})

    for name in ["", "GET_TOKEN", "get_token ", "__proto__", "constructor", "toString", "hasOwnProperty", "x" * 1000]:
        op("op %s" % json.dumps(name[:20]), name, {"provider": "acme"})
    for kind in [None, 1, [], {}]:
        c.frame({"v": version, "id": "id-1", "op": kind, "payload": {"provider": "acme"}})
        say("v%d op is %s" % (version, json.dumps(kind)), text(c.answer()))
    c.frame({"v": version, "id": "id-1", "payload": {"provider": "acme"}})
    say("v%d no op" % version, text(c.answer()))

    bad = ["", "x" * 65, "a/b", "../acme", "a b", "acme:work", "acme\n", "acme\0", "\u00e9", "*", "a%2fb", 1, [], {}, True]
    for value in bad:
        name = json.dumps(value if value != "x" * 65 else "65 x")
        op("provider %s" % name, "get_token", {"provider": value})
        op("bucket %s" % name, "get_token", {"provider": "acme", "bucket": value})
        op("key %s" % name, "get_api_key", {"name": value})
    op("no provider", "get_token", {})
    op("no payload", "get_token")
    op("no key", "get_api_key", {})
    op("64 characters", "get_token", {"provider": "Az09._-" + "x" * 57})
    for value in [None, [], "x", 1]:
        c.frame({"v": version, "id": "id-1", "op": "list_providers", "payload": value})
        say("v%d payload is %s" % (version, json.dumps(value)), text(c.answer()))

    def broken(case, frame, id="id-1"):
        c.frame(frame)
        say("v%d %s" % (version, case), text(c.answer(), id=id, version=version))

    start = '{"v":%d,"id":"id-1",' % version
    broken("no id", '{"v":%d,"op":"list_providers"}' % version, "unknown")
    for value in ['""', "1", "null", "[]", "{}"]:
        broken("id is %s" % value, '{"v":%d,"id":%s,"op":"list_providers"}' % (version, value), "unknown")
    broken("v is the other one", '{"v":%d,"id":"id-1","op":"list_providers"}' % (3 - version))
    broken("v is a string", '{"v":"%d","id":"id-1","op":"list_providers"}' % version)
    broken("no v", '{"id":"id-1","op":"list_providers"}')
    broken("op twice", start + '"op":"list_providers","op":"list_providers"}')
    broken("id twice", '{"v":%d,"id":"id-1","id":"id-2","op":"list_providers"}' % version, "unknown")
    broken("provider twice", start + '"op":"get_token","payload":{"provider":"acme","provider":"other"}}')
    broken("provider twice, once escaped", start + '"op":"get_token","payload":{"provider":"acme","\\u0070rovider":"other"}}')
    broken("an unknown member twice", start + '"op":"list_providers","x":{"a":1,"a":1}}')
    broken("twice in the token", start + '"op":"save_token","payload":{"provider":"mine","token":'
           '{"access_token":"a","access_token":"b","expiry":1,"token_type":"Bearer"}}}')
    broken("Op", start + '"Op":"list_providers"}')
    broken("ID", '{"v":%d,"ID":"id-1","op":"list_providers"}' % version, "unknown")
    broken("Provider", start + '"op":"get_token","payload":{"Provider":"acme"}}')
    broken("provider and Provider", start + '"op":"get_token","payload":{"provider":"acme","Provider":"acme"}}')
    broken("Access_Token", start + '"op":"save_token","payload":{"provider":"mine","token":'
           '{"access_token":"a","Access_Token":"b","expiry":1,"token_type":"Bearer"}}}')
    broken("a control character in a member's name", start + '"op":"list_providers","a\\u0000b":1}')
    broken("DEL in a member's name", start + '"op":"list_providers","a\\u007fb":1}')
    broken("a non-ASCII character in a member's name", start + '"op":"list_providers","\u00e9":1}')
    nested = lambda n: start + '"op":"has_api_key","payload":{"name":"openai","x":' + "[" * n + "]" * n + "}}"
    broken("32 levels", nested(30))
    broken("33 levels", nested(31))
    broken("10,000 levels", nested(10000))
    deep = lambda n: start + '"op":"has_api_key","payload":{"name":"openai","x":' + '{"a":' * n + "1" + "}" * n + "}}"
    broken("33 levels of objects", deep(31))
    broken("spaces around", " \t\r\n" + start + '"op":"has_api_key" , "payload" : { "name":"openai"}} \n')
    broken("escapes in values", start + '"op":"has_\\u0061pi_key","payload":{"name":"\\u006fpenai"}}')
    broken("an id of 200 characters", '{"v":%d,"id":"%s","op":"list_api_keys"}' % (version, "\u00e9" * 200), "\u00e9" * 200)

    limit = 65536 if version == 1 else 4 << 20
    frame = start + '"op":"has_api_key","payload":{"name":"openai","x":""}}'
    padding = limit - len(frame)
    broken("the largest frame", frame.replace('""', '"' + "x" * padding + '"'))
    c.raw(b"".join(struct.pack(">I", len(f)) + f for f in (
        ('{"v":%d,"id":"%d","op":"has_api_key","payload":{"name":"openai"}}' % (version, i)).encode() for i in range(20))))
    answers = sorted(int(c.answer()["id"]) for _ in range(20))
    say("v%d twenty frames in one write" % version, "all answered" if answers == list(range(20)) else answers)
    payload = (start + '"op":"has_api_key","payload":{"name":"openai"}}').encode()
    for byte in struct.pack(">I", len(payload)) + payload:
        c.raw(bytes([byte]))
    say("v%d one frame byte by byte" % version, text(c.answer()))

    def fatal(case, payload, length=None):
        d = Conn().hello(version)
        if isinstance(payload, str):
            payload = payload.encode()
        d.raw(struct.pack(">I", len(payload) if length is None else length) + payload)
        answer = d.answer()
        if answer is not None and not answer["ok"] and answer["code"] in ("INVALID_REQUEST", "RESPONSE_TOO_LARGE"):
            answer = d.answer()  # "an error frame may go first"
        say("v%d %s" % (version, case), text(answer, id=None))

    whole = start + '"op":"list_providers"}'
    fatal("null", "null")
    fatal("an array", "[" + whole + "]")
    fatal("a string", '"x"')
    fatal("a number", "1")
    fatal("an empty frame", "")
    fatal("no JSON", "hello")
    fatal("half an object", whole[:-1])
    fatal("trailing data", whole + "x")
    fatal("two objects", whole + whole)
    fatal("a trailing comma", whole[:-1] + ",}")
    fatal("a byte order mark", b"\xef\xbb\xbf" + whole.encode())
    fatal("bad UTF-8 in a value", whole.encode()[:-1] + b',"x":"\xff"}')
    fatal("bad UTF-8 in a name", whole.encode()[:-1] + b',"\xc0\x80":1}')
    fatal("half a surrogate in UTF-8", whole.encode()[:-1] + b',"x":"\xed\xa0\x80"}')
    fatal("a control character in a string", whole.encode()[:-1] + b',"x":"\x01"}')
    fatal("NaN", whole[:-1] + ',"x":NaN}')
    fatal("01", whole[:-1] + ',"x":01}')
    fatal("a comment", whole[:-1] + "/**/}")
    fatal("one byte too many", b"", limit + 1)
    fatal("one byte too many, sent", b" " * (limit + 1))
    fatal("4 GiB", b"", 0xFFFFFFFF)
    fatal("2 GiB", b"", 0x80000000)
    say("v%d the first connection still works" % version, text(c.call("has_api_key", {"name": "openai"})))


def large():
    """A token may be larger than an answer of version 1, and not larger than what is stored."""
    c = Conn().hello(2)

    def save(case, **fields):
        say(case, text(c.call("save_token", {"provider": "large", "token": {
            "access_token": "test-large", "expiry": 1, "token_type": "Bearer", **fields}})))

    save("save 600 KiB", a="x" * (600 << 10))
    answer = c.call("get_token", {"provider": "large"})
    say("v2 get", "ok, %d characters" % len(answer["data"]["a"]))
    say("v1 get", text(Conn().hello(1).call("get_token", {"provider": "large"})))
    save("save 600 KiB more", b="x" * (600 << 10))
    save("save 3 MiB", a="x" * (3 << 20))
    answer = c.call("get_token", {"provider": "large"})
    say("what was there is still there", "ok, %d characters" % len(answer["data"]["a"]))
    say("remove", text(c.call("remove_token", {"provider": "large"})))


def scope():
    c = Conn().hello(2)
    for login in [("acme", None), ("acme", "default"), ("acme", "work"), ("acme", "nowhere"), ("other", None), ("nobody", None)]:
        payload = {"provider": login[0], **({"bucket": login[1]} if login[1] else {})}
        token = {"access_token": "test-saved", "expiry": 1, "token_type": "Bearer"}
        for op in ["get_token", "get_bucket_stats", "save_token", "remove_token", "refresh_token", "oauth_initiate"]:
            if login[0] == "acme" and login[1] in (None, "default") and op in ("save_token", "remove_token"):
                continue  # allowed, and the login is needed
            full = {**payload, "token": token} if op == "save_token" else payload
            answer = c.call(op, full)
            say("%s %s/%s" % (op, login[0], login[1] or ""), "ok" if answer["ok"] else text(answer))
            if op == "oauth_initiate" and answer["ok"]:
                c.call("oauth_cancel", {"session_id": answer["data"]["session_id"]})
    for provider in ["acme", "other", "nobody"]:
        say("list_buckets " + provider, text(c.call("list_buckets", {"provider": provider})))
    say("list_providers", text(c.call("list_providers")))
    say("list_api_keys", text(c.call("list_api_keys")))
    for name in ["openai", "hidden", "nothing"]:
        say("get_api_key " + name, text(c.call("get_api_key", {"name": name})))
        say("has_api_key " + name, text(c.call("has_api_key", {"name": name})))


def inflight():
    """The lock of a login, held by this process, keeps requests in flight for as long as the test wants."""
    lock = open(argument[0])
    token = {"access_token": "test-saved", "expiry": 1, "token_type": "Bearer"}
    for version in [1, 2]:
        fcntl.flock(lock, fcntl.LOCK_EX)
        c = Conn().hello(version)
        request = lambda id, op, payload: c.frame({"v": version, "id": id, "op": op, "payload": payload})
        save = {"provider": "held", "token": token}
        request("slow", "save_token", save)
        request("slow", "list_providers", {})
        say("v%d an id in flight" % version, text(c.answer(), id="slow"))
        request("quick", "has_api_key", {"name": "openai"})
        say("v%d a quick one overtakes" % version, text(c.answer(), id="quick"))
        if version == 2:
            request("c", "cancel", {"targetId": "slow"})
            answers = {a["id"]: a for a in (c.answer(), c.answer())}
            say("v2 cancel", text(answers["c"], id="c"))
            say("v2 the cancelled one", text(answers["slow"], id="slow"))
            request("slow", "has_api_key", {"name": "openai"})
            say("v2 its id again", text(c.answer(), id="slow"))
            request("slow", "save_token", save)
        for i in range(63):
            request("more-%d" % i, "save_token", save)
        request("last", "has_api_key", {"name": "openai"})
        say("v%d the 65th waits unread" % version, c.silent(1))
        fcntl.flock(lock, fcntl.LOCK_UN)
        answers = {}
        for _ in range(65):
            a = c.answer()
            answers[a["id"]] = text(a, id=a["id"])
        say("v%d all are answered" % version, " ".join(sorted(set(answers.values()))) + " %d" % len(answers))
        request("end", "remove_token", {"provider": "held"})
        say("v%d remove_token" % version, text(c.answer(), id="end"))


def rate():
    def burst(conns, each):
        start = time.monotonic()
        good, limited = 0, set()
        while not limited and time.monotonic() - start < PATIENCE:  # a machine may be too slow for the limit at first
            for c in conns:
                c.raw(b"".join(struct.pack(">I", len(f)) + f for f in (
                    ('{"v":1,"id":"%d","op":"has_api_key","payload":{"name":"openai"}}' % i).encode() for i in range(each))))
            for c in conns:
                for _ in range(each):
                    a = c.answer()
                    if a["ok"]:
                        good += 1
                    else:
                        limited.add(text(a, id=a["id"]))
        most = 61 + 60 * (time.monotonic() - start)
        return ("60 and what time brought" if 60 <= good <= most else "%d good ones" % good) + ", then " + ", ".join(limited)

    def rested(c):
        """Waits for a whole second of permits."""
        deadline = time.monotonic() + PATIENCE
        time.sleep(1.2)
        while time.monotonic() < deadline:
            if c.call("has_api_key", {"name": "openai"})["ok"]:
                break
        time.sleep(1.2)

    conns = [Conn().hello(1) for _ in range(10)]
    say("one connection", burst(conns[:1], 200))
    rested(conns[0])
    say("it goes on", text(conns[0].call("has_api_key", {"name": "openai"})))
    rested(conns[0])
    say("ten connections", burst(conns, 30))
    rested(conns[0])
    more = [Conn().hello(1) for _ in range(5)]
    for c in conns:
        c.sock.close()
    say("new connections", burst(more, 40))
    # Between two that are turned away, so that no new second can have begun.
    c, start = more[0], time.monotonic()
    while time.monotonic() - start < PATIENCE:
        requests = ['{"v":1,"id":"x","op":"has_api_key","payload":{"name":"openai"}}'] * 100
        requests[-4:-1] = ['{"v":1,"id":"x","op":"nonsense"}'] * 3
        c.raw(b"".join(struct.pack(">I", len(f)) + f.encode() for f in requests))
        answers = [text(c.answer(), id="x") for _ in requests]
        if answers[-5].startswith("RATE_LIMITED") and answers[-1].startswith("RATE_LIMITED"):
            say("bad requests count too", " ".join(set(answers[-4:-1])))
            break


def slow():
    """What a connection may leave unfinished, and for how long. All wait at the same time."""
    waiting, begun = {}, {}

    def begin(case, version, data):
        start = time.monotonic()  # before the server's own time begins
        conn = Conn()
        if version:
            conn.hello(version)
        conn.raw(data)
        waiting[conn.sock], begun[case] = case, start
        return conn

    half = struct.pack(">I", 60) + b'{"v":1,"id":"id-1"'
    begin("silence instead of a handshake", None, b"")
    begin("half a header instead of a handshake", None, b"\0\0")
    begin("half a handshake", None, struct.pack(">I", 60) + b'{"v":1,"op"')
    begin("half a header", 1, b"\0\0\0")
    begin("a header only", 1, struct.pack(">I", 60))
    begin("half a frame", 2, half)
    drip = begin("a drop at a time", 1, half)
    hand = begin("a handshake a drop at a time", None, struct.pack(">I", 60) + b'{"v":1')
    idle = Conn().hello(1)
    next_drop = time.monotonic() + 0.5
    while waiting:
        ready = select.select(list(waiting), [], [], max(0, next_drop - time.monotonic()))[0]
        for sock in ready:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                case = waiting.pop(sock)
                took = time.monotonic() - begun[case]
                say(case, "closed after 5 s" if 4.9 <= took <= 15 else "closed after %.1f s" % took)
        if time.monotonic() >= next_drop:
            drip.raw(b" ")
            hand.raw(b" ")
            next_drop += 0.5
        if time.monotonic() - min(begun.values()) > PATIENCE:
            for case in waiting.values():
                say(case, "open after %d s" % PATIENCE)
            break
    say("an idle connection", text(idle.call("has_api_key", {"name": "openai"})))


if chapter == "operations":
    operations(int(argument[0]))
else:
    {"handshakes": handshakes, "capability": capability, "large": large, "scope": scope, "inflight": inflight,
     "rate": rate, "slow": slow}[chapter]()
