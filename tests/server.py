"""A web server on loopback that behaves as the real ones do, at their best and at their worst."""

import contextlib
import datetime
import gzip
import hashlib
import json
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


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
        self.headers: dict[str, dict[str, str]] = {}  # of a file, besides those of all
        self.redirects: dict[str, tuple[str, dict[str, str]]] = {}  # where to, and headers
        self.certificate: ssl.SSLContext | None = None  # to play any HTTPS server, as a proxy does that looks inside
        self.rate = 0.0  # bytes per second of one answer; 0: as fast as it goes
        self.asked: list[Asked] = []
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

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
        elif self.path in self.server.redirects:
            place, headers = self.server.redirects[self.path]
            self.answer(asked, 302, headers | {"Location": place}, b"", Fault())
        elif self.path in self.server.files:
            self.file(asked, self.server.files[self.path], fault)
        else:
            self.answer(asked, 404, {}, b"not here", fault)

    do_POST = do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.connection = self.request = self.server.certificate.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def file(self, asked: Asked, data: bytes, fault: Fault) -> None:
        tag = self.server.tag(data)
        headers = {"Content-Type": "application/octet-stream"} | ({"ETag": tag} if self.server.tags else {})
        headers |= {"Accept-Ranges": "bytes"} if self.server.ranges else {}
        headers |= self.server.headers.get(self.path, {})
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        if not match or self.headers.get("If-Range", tag) != tag:
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
        if self.command != "HEAD":
            self.send(asked, data)

    def send(self, asked: Asked, data: bytes) -> None:
        step = int(self.server.rate / 20) or len(data)
        for begin in range(0, len(data), step or 1):
            self.wfile.write(data[begin : begin + step])
            asked.sent = min(begin + step, len(data))
            time.sleep(0.05 if self.server.rate else 0)

    def log_message(self, *_: Any) -> None:
        pass


def drive_through(server: Server, folder: Path) -> dict[str, str]:
    """Let `server` play Drive's hosts over TLS; the variables with which clients reach it, and trust it."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    hosts = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
    signed = (x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
              .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
              .not_valid_after(now + datetime.timedelta(days=1))
              .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
              .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
              .sign(key, hashes.SHA256()))
    trusted, private = folder / "drive.pem", folder / "drive.key"
    trusted.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    server.certificate = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.certificate.load_cert_chain(trusted, private)
    return {"MAAVT_PROXY": server.url, "https_proxy": server.url, "http_proxy": "", "HTTPS_PROXY": server.url,
            "HTTP_PROXY": "", "no_proxy": "127.0.0.1", "REQUESTS_CA_BUNDLE": str(trusted)}


# As Drive sends them, each in one line, by which gdown reads.
CONFIRM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="submit" id="uc-download-link" value="Download anyway"/><input type="hidden" name="id" value="{id}">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="u-1"></form></body></html>""".replace("\n", "")
QUOTA = """<html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p></body></html>"""


def put_on_drive(server: Server, identity: str, data: bytes) -> str:
    """Play Drive with one large file; its address."""
    page = CONFIRM.format(id=identity).encode()
    server.routes["/uc"] = lambda *_: ("text/html; charset=utf-8", page)
    place = f"/download?id={identity}&export=download&confirm=t&uuid=u-1"
    server.files[place] = data
    server.headers[place] = {"Content-Disposition": 'attachment; filename="a.zip"',
                             "Last-Modified": "Mon, 13 Aug 2018 06:00:00 GMT"}
    return f"https://drive.google.com/uc?export=download&id={identity}"


class Hub:
    """A data set on the hub: its list, what its files are, and their bytes behind a redirect to where these lie."""

    def __init__(self, server: Server, store: Server | None = None, repository: str = "Loie/VGGSound"):
        self.server, self.store, self.repository = server, store or server, repository
        self.archives: dict[str, bytes] = {}
        server.routes[f"/api/datasets/{repository}/tree/main"] = lambda *_: ("application/json", self.tree())

    def put(self, name: str, data: bytes) -> None:
        self.archives[name] = data
        digest = hashlib.sha256(data).hexdigest()
        self.server.redirects[f"/datasets/{self.repository}/resolve/main/{name}"] = (
            f"{self.store.url}/store/{name}?{digest}", {
                "X-Repo-Commit": "c" * 40, "X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{digest}"',
                "ETag": '"pointer"', "Accept-Ranges": "bytes"})
        self.store.files[f"/store/{name}?{digest}"] = data

    def tree(self) -> bytes:
        return json.dumps([
            {"type": "file", "path": name, "size": len(data), "oid": "0",
             "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
            for name, data in self.archives.items()
        ] + [{"type": "file", "path": "README.md", "size": 3, "oid": "0"}]).encode()

    def fetched(self) -> list[str]:
        return [asked.path for asked in self.store.asked if asked.path.startswith("/store/") and asked.method == "GET"]


class Socks(socketserver.ThreadingTCPServer):
    """A SOCKS5 proxy, to which all names are this machine."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _SocksHandler)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _SocksHandler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.read(self.rfile.read(2)[1])  # the ways to log in
        self.request.sendall(b"\5\0")
        self.rfile.read(4 if self.rfile.read(4)[3] == 1 else self.rfile.read(1)[0])  # the address, or the name
        port = int.from_bytes(self.rfile.read(2), "big")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as there:
            self.request.sendall(b"\5\0\0\1" + bytes(6))
            threading.Thread(target=self.copy, args=(there, self.request), daemon=True).start()
            self.copy(self.request, there)

    @staticmethod
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
