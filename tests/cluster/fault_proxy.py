"""A reverse proxy that fails on purpose: between a client and an S3 server, by a seeded plan, and keeping count.

It passes the Host header on unchanged, which S3's signatures cover: the server does not see that it is there.
"""

import asyncio
import contextlib
import dataclasses
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import aiohttp
from aiohttp import web
from yarl import URL

from tests.cluster.ceph import Keys

#: What a request can meet. The first six are noisy; a store that drops or truncates says 200 as if all were well.
Fault = Literal["500", "503", "reset", "stall", "cut", "slow", "drop", "truncate"]
NOISY: tuple[Fault, ...] = ("500", "503", "reset", "stall", "cut", "slow")
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
INTERNAL = b"<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


@dataclasses.dataclass
class Plan:
    """Which requests fail (method and path match), how often, in which ways, and how many times in all."""

    kinds: Sequence[Fault]
    matching: str = ""
    rate: float = 1.0
    times: int | None = None
    stall_seconds: float = 20.0
    seed: int = 0
    counts: Counter[str] = dataclasses.field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.failed: Counter[str] = Counter()

    def choose(self, request: web.BaseRequest) -> Fault | None:
        """The kinds in turn, so that each takes place; one request, repeated, fails twice at most."""
        name = f"{request.method} {request.path_qs} {request.headers.get('Range', '')}"
        done = sum(self.counts.values())
        if not re.search(self.matching, f"{request.method} {request.path}") or done == self.times:
            return None
        if self.failed[name] >= 2 or self.random.random() >= self.rate:
            return None
        kind = self.kinds[done % len(self.kinds)]
        if kind == "cut" and request.method != "GET":
            kind = "reset"
        self.failed[name] += 1
        self.counts[kind] += 1
        return kind


class FaultProxy:
    """Runs in a thread of its own from the start; harmless but within ``failing``."""

    def __init__(self, upstream: str, keys: Keys) -> None:
        self.upstream, self.keys = upstream, keys
        self.sent: Counter[str] = Counter()  # bytes of objects given to readers, by path
        self.plans: Sequence[Plan] = ()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._serve(), self.loop).result(30)
        self.endpoint = f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def failing(self, *plans: Plan) -> Iterator[None]:
        """Fail by these plans; of several that would have a request fail, the first one decides."""
        self.plans = plans
        try:
            yield
        finally:
            self.plans = ()

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result(30)
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _serve(self) -> int:
        self.session = aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), skip_auto_headers=["User-Agent"]
        )
        self.runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        return int(self.runner.addresses[0][1])

    async def _close(self) -> None:
        await self.runner.cleanup()
        await self.session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Expect", "").lower() == "100-continue":
            assert request.transport is not None
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await request.content.read()  # request.read() has a limit
        chosen = ((plan, kind) for plan in self.plans if (kind := plan.choose(request)) is not None)
        plan, kind = next(chosen, (None, None))
        if kind in ("500", "503"):
            return web.Response(status=int(kind), body=SLOW_DOWN if kind == "503" else INTERNAL)
        if kind in ("stall", "reset"):
            assert plan is not None
            await asyncio.sleep(plan.stall_seconds if kind == "stall" else 0)
            return self._reset(request)
        if kind == "slow":
            await asyncio.sleep(1)
        if kind == "drop":
            return web.Response(headers={"ETag": '"00000000000000000000000000000000"'})
        if kind == "truncate":
            await self.loop.run_in_executor(None, self._put, request.path, body[: len(body) // 2])
            return web.Response(headers={"ETag": '"00000000000000000000000000000000"'})
        return await self._forward(request, body, cut=kind == "cut")

    async def _forward(self, request: web.BaseRequest, body: bytes, cut: bool) -> web.StreamResponse:
        url = URL(self.upstream + request.raw_path, encoded=True)
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP]
        async with self.session.request(
            request.method, url, headers=headers, data=body or None, allow_redirects=False
        ) as answer:
            content = await answer.read()
            kept = [(k, v) for k, v in answer.headers.items() if k.lower() not in HOP_BY_HOP]
            response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=kept)
            length = int(answer.headers.get("Content-Length", len(content)))
        if answer.status not in (204, 304):
            response.content_length = length
        await response.prepare(request)
        if request.method == "GET":
            self.sent[request.path] += len(content)
        if cut and len(content) > 1:
            await response.write(content[: len(content) // 2])
            return self._reset(request, response)
        if request.method != "HEAD":
            await response.write(content)
        await response.write_eof()
        return response

    def _reset(
        self, request: web.BaseRequest, response: web.StreamResponse | None = None
    ) -> web.StreamResponse:
        """The connection ends without (the rest of) an answer."""
        if request.transport is not None:
            request.transport.abort()
        return response or web.Response()

    def _put(self, path: str, body: bytes) -> None:
        bucket, _, key = path.lstrip("/").partition("/")
        self.keys.client(self.upstream).put_object(Bucket=bucket, Key=key, Body=body)
