"""A client: receives a user's notifications, acknowledges them, and resumes where it was after every break."""

import asyncio
import json
import random
from urllib.parse import urlencode

import websockets


async def follow(server, get_token, notify, refetch, device=None):
    """Calls `notify` with each notification in order, and `refetch` when some may be missing: load all from your API."""
    since, token, ceiling = None, None, 1.5
    while True:
        query, wait = {"device": device} if device else {}, None
        if since:
            query["since"] = since
        try:
            token = token or await get_token()
            url, headers = f"{server}/v1/connect?{urlencode(query)}", {"Authorization": f"Bearer {token}"}
            async with websockets.connect(url, additional_headers=headers, max_size=None) as socket:
                async for text in socket:
                    frame = json.loads(text)
                    match frame["type"], frame["payload"]:
                        case "$hello", hello:
                            epoch, ceiling = hello["epoch"], hello["reconnect_ms"] / 1000
                            if not since:  # the start
                                since = f"{epoch}-{hello['cursor']}"
                                await refetch()
                        case "$gap", gap:  # some will not come, whatever the reason
                            since = f"{epoch}-{gap['to']}"
                            await refetch()
                        case "$bye", bye:
                            wait = bye.get("reconnect_ms")  # a time of our own, so that not all come back at once
                        case kind, _ if not kind.startswith("$"):
                            await notify(frame)
                            if "seq" in frame:  # transient ones have none
                                since = f"{epoch}-{frame['seq']}"
                                await socket.send(json.dumps({"ack": frame["seq"]}))
        except websockets.ConnectionClosedError as closed:  # by 1000 and 1001 the loop just ends
            code = closed.rcvd.code if closed.rcvd else None
            if code in (4003, 4004):
                raise  # replaced, or a bug here: connecting again would end the same way
            token = None if code == 4001 else token  # it has expired
        except (OSError, websockets.InvalidHandshake):
            token = None  # it may be what was refused
        await asyncio.sleep(random.uniform(0, ceiling) if wait is None else wait / 1000)
        ceiling = min(ceiling * 2, 30)  # until a $hello names it again
