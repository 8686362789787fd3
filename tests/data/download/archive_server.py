"""An HTTP server on the loopback interface that plays the services of radar archives, with faults on request."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


@dataclass
class Fault:
    """What the server does with the next ``times`` requests whose path contains ``path``.

    ``status`` sends it; ``cut`` closes the connection after this many bytes of the content; ``size`` declares another
    size; ``redirect`` sends the client there; ``method`` limits it to requests of this kind.
    """

    path: str
    times: int = 1
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    size: int | None = None
    redirect: str = ""
    method: str = ""


@dataclass
class ArchiveServer:
    """Files by path (without leading ``/``), answers in JSON by path, and a log of requests."""

    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, object] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    page: int = 1000
    ranges: bool = True
    etags: bool = True
    chunked: bool = False
    key: str = ""
    on_request: object = None
    port: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def fault(self, path: str, method: str) -> Fault | None:
        with self.mutex:
            for fault in self.faults:
                if fault.times > 0 and fault.path in path and fault.method in ("", method):
                    fault.times -= 1
                    return fault
        return None

    def requested(self, text: str, method: str = "GET") -> list[str]:
        """Return the logged URLs that contain a text."""
        return [url for kind, url, _ in self.requests if kind == method and text in url]

    def listing(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        """Return a page of ListObjectsV2 of the files below ``bucket``."""
        prefix, after = query["prefix"][0], query.get("continuation-token", [""])[0]
        folder = f"{bucket}/" if bucket else ""
        keys = sorted(k[len(folder) :] for k in self.files if k.startswith(folder + prefix))
        left = [key for key in keys if key > after]
        page = left[: self.page]
        rows = "".join(
            f"<Contents><Key>{escape(k)}</Key><Size>{len(self.files[folder + k])}</Size>"
            f"<ETag>&quot;{md5(self.files[folder + k]).hexdigest()}&quot;</ETag></Contents>"
            for k in page
        )
        more = len(left) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
        ).encode()

    def knmi(self, folder: str, query: dict[str, list[str]]) -> object:
        """Return a page of the files of a data set."""
        names = sorted(k.rpartition("/")[2] for k in self.files if k.startswith(f"kdp/{folder}/"))
        left = [name for name in names if name > query.get("startAfterFilename", [""])[0]]
        page = left[: self.page]
        files = [{"filename": name, "size": len(self.files[f"kdp/{folder}/{name}"])} for name in page]
        return {"files": files, "isTruncated": len(left) > len(page)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ArchiveServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_args) -> None:
        return

    def _answer(self) -> None:
        state = self.server_state
        parts = urlsplit(self.path)
        path, query = unquote(parts.path).lstrip("/"), parse_qs(parts.query)
        with state.mutex:
            state.requests.append((self.command, self.path, dict(self.headers)))
        if callable(state.on_request):
            state.on_request(path)
        fault = state.fault(self.path, self.command)
        if fault is not None and fault.redirect:
            return self._send(302, b"", {"Location": fault.redirect})
        if fault is not None and fault.status:
            return self._send(fault.status, b"", fault.headers)
        if state.key and not path.startswith("kdp/") and self.headers.get("Authorization") != state.key:
            return self._send(401, b"")
        if "list-type" in query:
            return self._send(200, state.listing(path.rstrip("/"), query))
        if path.startswith("datasets/") and path.endswith("/files"):
            return self._send(200, json.dumps(state.knmi(path.removesuffix("/files"), query)).encode())
        if path.startswith("datasets/") and path.endswith("/url"):
            name = path.split("/")[-2]
            link = f"{state.url}/kdp/{path.rsplit('/files/', 1)[0]}/{name}?X-Amz-Signature=secret"
            return self._send(200, json.dumps({"temporaryDownloadUrl": link}).encode())
        if path in state.answers:
            answer = state.answers[path]
            answer = answer(query) if callable(answer) else answer
            return self._send(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
        if path not in state.files:
            return self._send(404, b"")
        return self._send_file(state.files[path], fault)

    def _send_file(self, content: bytes, fault: Fault | None) -> None:
        state = self.server_state
        headers = {"ETag": f'"{md5(content).hexdigest()}"'} if state.etags else {}
        status, sent = 200, content
        wanted = self.headers.get("Range")
        if wanted and state.ranges:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            if int(begin) >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            sent = content[int(begin) : int(end) + 1]
            status = 206
            total = len(content) if fault is None or fault.size is None else fault.size
            headers["Content-Range"] = f"bytes {begin}-{int(begin) + len(sent) - 1}/{total}"
        self._send(status, sent, headers, cut=None if fault is None else fault.cut)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        chunked = self.server_state.chunked and status == 200 and self.command == "GET"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if chunked:
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content) if content else b"0\r\n\r\n")
        else:
            self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def archive_server(**options) -> Iterator[ArchiveServer]:
    """Yield a running server."""
    state = ArchiveServer(**options)
    handler = type("Handler", (_Handler,), {"server_state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
