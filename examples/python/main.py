"""python main.py ws://127.0.0.1:8000 'http://127.0.0.1:8000/dev/token?user=101' [DEVICE]"""

import asyncio
import json
import sys
from urllib.request import urlopen

import websockets

from notifier import follow


async def main(server, token_url, device=None):
    async def get_token():  # in a product: from your own backend, which knows who is logged in
        return json.load(await asyncio.to_thread(urlopen, token_url))["token"]

    async def notify(notification):
        print(notification["type"], json.dumps(notification["payload"]), flush=True)

    async def refetch():
        print("fetch everything", flush=True)

    await follow(server, get_token, notify, refetch, device)


try:
    asyncio.run(main(*sys.argv[1:]))
except websockets.ConnectionClosed as closed:
    sys.exit(f"closed for good: {closed}")
except KeyboardInterrupt:
    pass
