"""Runs the workflow on standard input as a browser would, and prints what it was sent while that ran.

Run by ComfyUI's own Python, which has a websocket client: watch.py PORT [NODE] < workflow.json
With the id of a node, the user presses "cancel" at its first sign of progress.
"""

import asyncio
import io
import json
import struct
import sys
import uuid

import aiohttp
from PIL import Image

ENDS = {"execution_success", "execution_error", "execution_interrupted"}
PREVIEW_WITH_METADATA = 4


async def main(port: str, cancel_at: str | None = None) -> None:
    client, events, previews = uuid.uuid4().hex, [], []
    url = f"http://127.0.0.1:{port}"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws?clientId={client}", max_msg_size=0) as ws,
    ):
        await ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        body = {"prompt": json.load(sys.stdin), "client_id": client}
        async with session.post(f"{url}/prompt", json=body) as answer:
            answer.raise_for_status()
        async for message in ws:
            if message.type == aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                events.append([event["type"], event["data"]])
                if event["type"] in ENDS:
                    break
                if event["type"] == "progress" and event["data"]["node"] == cancel_at:
                    (await session.post(f"{url}/interrupt", json={"prompt_id": event["data"]["prompt_id"]})).close()
            elif message.type == aiohttp.WSMsgType.BINARY:
                kind, length = struct.unpack(">II", message.data[:8])
                if kind == PREVIEW_WITH_METADATA:
                    node = json.loads(message.data[8 : 8 + length])["node_id"]
                    previews.append([node, Image.open(io.BytesIO(message.data[8 + length :])).size])
    print(json.dumps({"events": events, "previews": previews}))


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 300))
