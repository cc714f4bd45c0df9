"""A real file server on a free port of this machine, with ranges, and faults on demand.

``server.put("/a.tar", b"…", faults=[Fault(status=500), Fault(stop=1000)])`` answers 500, then breaks
off after 1,000 bytes, then serves well. ``server.asked`` has every request's path and headers.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request: another ``status``; or the body ends after ``stop`` bytes.

    With ``linger`` the connection stays open then, silent, until the server is closed.
    """

    status: int | None = None
    stop: int | None = None
    linger: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class File:
    body: bytes
    headers: dict[str, str]
    faults: list[Fault]
    ranges: bool = True
    if_range: bool = True
    chunked: bool = False


@dataclass
class FileServer:
    url: str
    files: dict[str, File] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(
        self,
        path: str,
        body: bytes,
        *,
        etag: str | None = '"1"',
        headers: dict[str, str] | None = None,
        faults: list[Fault] | None = None,
        ranges: bool = True,
        if_range: bool = True,
        chunked: bool = False,
    ) -> str:
        own = {**({"ETag": etag} if etag else {}), **(headers or {})}
        self.files[path] = File(body, own, faults or [], ranges, if_range, chunked)
        return self.url + path

    @property
    def ranges(self) -> list[str | None]:
        """The Range of every request so far, None for those without."""
        return [headers.get("range") for _, headers in self.asked]


@contextmanager
def serve() -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = {key.lower(): value for key, value in self.headers.items()}
            server.asked.append((self.path, asked))
            file = server.files.get(self.path)
            if file is None:
                self.answer(404, {}, b"")
                return
            fault = file.faults.pop(0) if file.faults else Fault()
            if fault.status is not None:
                self.answer(fault.status, fault.headers, b"")
                return
            start, status, headers = 0, 200, {**file.headers, **fault.headers}
            same = asked.get("if-range") in (None, headers.get("ETag"), headers.get("Last-Modified"))
            if file.ranges and "range" in asked and (same or not file.if_range):
                start, status = int(asked["range"].removeprefix("bytes=").removesuffix("-")), 206
                if start >= len(file.body):
                    self.answer(416, {}, b"")
                    return
                end, total = len(file.body) - 1, len(file.body)
                headers.setdefault("Content-Range", f"bytes {start}-{end}/{total}")
            self.answer(status, headers, file.body[start:], fault, file.chunked)

        def answer(
            self,
            status: int,
            headers: dict[str, str],
            body: bytes,
            fault: Fault | None = None,
            chunked: bool = False,
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif "Content-Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            stop = fault.stop if fault else None
            sent = body[:stop]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if chunked else sent)
            if stop is not None:
                self.wfile.flush()
                if fault and fault.linger:
                    server.closing.wait(60)
                self.close_connection = True
            elif chunked:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    server = FileServer(f"http://127.0.0.1:{httpd.server_address[1]}")
    # A client that goes away mid-answer is part of the play.
    httpd.handle_error = lambda request, address: None  # type: ignore[method-assign]
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        httpd.shutdown()
        httpd.server_close()
        thread.join()
