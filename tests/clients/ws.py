"""ws.py URL TOKEN N [--ack]: a WebSocket client on Python's `websockets`.

The token travels as the subprotocol `notifier.token.<JWT>`, the way of a browser. Every frame is printed as one line:
its own text, with line breaks (white space, in JSON) as spaces. Status 0 after N notifications (frames whose type does
not start with `$`; N = 0: after the first frame); 1 when the connection ends before, the server answers with another
subprotocol, or after 60 s. A close by the server is printed as a last line of type `$closed`.
"""

import asyncio
import json
import sys

import websockets

DEADLINE_SECONDS = 60
SUBPROTOCOL = "notifier.v1.json"


async def receive(url: str, token: str, wanted: int, acknowledge: bool) -> int:
    subprotocols = [SUBPROTOCOL, f"notifier.token.{token}"]
    # Frames are as large as the server's limits let a payload be.
    async with websockets.connect(url, subprotocols=subprotocols, max_size=None) as socket:
        if socket.subprotocol != SUBPROTOCOL:
            print(f"the server chose the subprotocol {socket.subprotocol!r}", file=sys.stderr)
            return 1
        seen = 0
        try:
            async for text in socket:
                print(text.replace("\r", " ").replace("\n", " "), flush=True)
                frame = json.loads(text)
                if not frame["type"].startswith("$"):
                    seen += 1
                    if acknowledge and "seq" in frame:
                        await socket.send(json.dumps({"ack": frame["seq"]}))
                if seen >= wanted:
                    return 0
        except websockets.ConnectionClosed:
            pass  # without a close frame, or with a code other than 1000 and 1001: reported below
    closed = {"code": socket.close_code, "reason": socket.close_reason}
    print(json.dumps({"type": "$closed", "payload": closed}), flush=True)
    return 1


async def main() -> int:
    arguments = sys.argv[1:]
    acknowledge = "--ack" in arguments
    url, token, wanted = (argument for argument in arguments if argument != "--ack")
    try:
        return await asyncio.wait_for(receive(url, token, int(wanted), acknowledge), DEADLINE_SECONDS)
    except asyncio.TimeoutError:
        print(f"not done after {DEADLINE_SECONDS} s", file=sys.stderr)
    except (OSError, websockets.InvalidHandshake) as error:
        print(f"no connection: {error}", file=sys.stderr)
    return 1


sys.exit(asyncio.run(main()))
