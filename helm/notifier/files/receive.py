"""`helm test`: waits until the notification with the id $ID arrives at a client, and acknowledges it.

Needs nothing but Python. The Service's name may not be in the node's certificate, and nothing secret is received, so
that certificates are not checked.
"""
import base64, hashlib, hmac, json, os, ssl, sys, time, urllib.error, urllib.request

DEADLINE = time.monotonic() + 120


def token():
    if "TOKEN" in os.environ:
        return os.environ["TOKEN"].strip()
    secret = os.environ["JWT_SECRET"]
    # As the program reads a file: a line end after the secret does not belong to it.
    secret = secret[:-1] if secret.endswith("\n") else secret
    claims = {"sub": os.environ["TEST_USER"], "exp": int(time.time()) + 300}
    claims.update({k: os.environ[v] for k, v in (("iss", "ISSUER"), ("aud", "AUDIENCE")) if v in os.environ})
    encode = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")
    signed = b".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
    return (signed + b"." + encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest())).decode()


def request(path, body=None):
    headers = {"Authorization": "Bearer " + token(), "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    context = ssl._create_unverified_context()
    return urllib.request.urlopen(
        urllib.request.Request(os.environ["URL"] + path, data, headers), timeout=60, context=context
    )


def receive():
    """Reads the stream until the notification comes; everything before it is acknowledged with it."""
    session = None
    for line in request("/v1/stream?device=helm-test"):
        # Heartbeats keep the stream alive for ever.
        if time.monotonic() > DEADLINE:
            break
        if not line.startswith(b"data:"):
            continue
        frame = json.loads(line[5:])
        if frame["type"] == "$hello":
            session = frame["payload"]["session"]
        if frame.get("id") == os.environ["ID"]:
            request(f"/v1/sessions/{session}/ack", {"ack": frame["seq"]}).read()
            return frame
    raise OSError("the stream has ended without it")


while True:
    try:
        print("received", json.dumps(receive()))
        sys.exit(0)
    except urllib.error.HTTPError as error:
        reason = f"{error}: {error.read(2000).decode(errors='replace')}"
        if error.code in (400, 401, 403, 404):
            sys.exit(reason)
    except OSError as error:
        reason = str(error)
    if time.monotonic() > DEADLINE:
        sys.exit(f"not received in time: {reason}")
    print("again:", reason, file=sys.stderr)
    time.sleep(2)
