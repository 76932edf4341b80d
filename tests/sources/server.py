"""A web server on loopback that behaves as the real ones do, at their best and at their worst."""

import gzip
import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What goes wrong with an answer: a status instead of it, a break after some bytes, a false length."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    break_after: int | None = None
    announce: int | None = None
    encoding: str = ""  # of the way: chunked, or gzip for the content


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    sent: int = 0  # bytes of the body


class Server(ThreadingHTTPServer):
    """Serves `files` with ETags and ranges, and `routes`, which are functions; `fault` may spoil any answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.routes: dict[str, Callable[[_Handler, bytes], tuple[str, bytes]]] = {}
        self.fault: Callable[[Asked], Fault | None] = lambda asked: None
        self.ranges = self.tags = True
        self.whole: Callable[[Asked], bool] = lambda asked: False  # though a part was asked for
        self.rate = 0.0  # bytes per second of one answer; 0: as fast as it goes
        self.open = self.most_open = 0  # answers on their way
        self.asked: list[Asked] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    @staticmethod
    def tag(data: bytes) -> str:
        return f'"{hashlib.md5(data).hexdigest()}"'

    def handle_error(self, *_: Any) -> None:
        pass  # the other side hung up


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = Asked(self.command, self.path, dict(self.headers))
        self.server.asked.append(asked)
        fault = self.server.fault(asked) or Fault()
        if fault.status:
            self.answer(asked, fault.status, fault.headers, b"trouble", Fault())
            return
        route = self.path.partition("?")[0]
        if route in self.server.routes:
            kind, data = self.server.routes[route](self, body)
            self.answer(asked, 200, {"Content-Type": kind}, data, fault)
        elif self.path in self.server.files:
            self.file(asked, self.server.files[self.path], fault)
        else:
            self.answer(asked, 404, {}, b"not here", fault)

    do_POST = do_GET

    def file(self, asked: Asked, data: bytes, fault: Fault) -> None:
        tag = self.server.tag(data)
        headers = {"Content-Type": "application/octet-stream"} | ({"ETag": tag} if self.server.tags else {})
        headers |= {"Accept-Ranges": "bytes"} if self.server.ranges else {}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        if not match or self.headers.get("If-Range", tag) != tag or self.server.whole(asked):
            return self.answer(asked, 200, headers, data, fault)
        begin = int(match[1])
        if begin >= len(data):
            return self.answer(asked, 416, headers | {"Content-Range": f"bytes */{len(data)}"}, b"", fault)
        end = min(int(match[2] or len(data)) + 1, len(data))
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
        self.answer(asked, 206, headers, data[begin:end], fault)

    def answer(self, asked: Asked, status: int, headers: dict[str, str], data: bytes, fault: Fault) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.encoding == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            data = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[n : n + 50_000] for n in range(
                0, len(data), 50_000))) + b"0\r\n\r\n"
        else:
            if fault.encoding == "gzip":
                self.send_header("Content-Encoding", "gzip")
                data = gzip.compress(data)
            self.send_header("Content-Length", str(len(data) if fault.announce is None else fault.announce))
        self.end_headers()
        if fault.break_after is not None or fault.announce is not None:
            data = data[: fault.break_after]
            self.close_connection = True
        with self.server.lock:
            self.server.open += 1
            self.server.most_open = max(self.server.open, self.server.most_open)
        try:
            self.send(asked, data)
        finally:
            with self.server.lock:
                self.server.open -= 1

    def send(self, asked: Asked, data: bytes) -> None:
        step = int(self.server.rate / 20) or len(data)
        for begin in range(0, len(data), step or 1):
            self.wfile.write(data[begin : begin + step])
            asked.sent = min(begin + step, len(data))
            time.sleep(0.05 if self.server.rate else 0)

    def log_message(self, *_: Any) -> None:
        pass
