"""What browsers do for web pages: which writes are taken, which headers answers carry."""

import asyncio
import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient

from pdserve.services.auth import Keys
from pdserve.services.http.about import metrics_listener
from pdserve.services.http.app import build_app
from pdserve.services.http.browsers import POLICY, WRITE_HEADER, any_page_warning
from pdserve.services.http.server import http_listener
from pdserve.services.protocols import PROTOCOLS, Context, Protocol, Route
from pdserve.services.telemetry.metrics import Metrics
from pdserve.settings import ServerSettings
from tests.kinds import OPTIONS, build_home, two
from tests.running import Server, start
from tests.services.watching import FakeService

PLAIN = ServerSettings(name="imagenet")
KEY = "k" * 32
GOOD, EVIL = "https://good.example", "https://evil.example"
HEADER = {WRITE_HEADER: "1"}


def written(_: Context) -> Iterator[Route]:
    """Routes of a gallery that takes everything."""

    async def write(_: Request) -> JSONResponse:
        return JSONResponse({"written": True})

    for method in ("POST", "DELETE"):
        yield Route(method, "/v1/gallery", write, writes=True)


@pytest.fixture(autouse=True)
def gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "gallery", Protocol("gallery", "http", f"{__name__}:written", "writes"))  # type: ignore[arg-type]


@contextmanager
def client(keyed: bool = False, **more: Any) -> Iterator[TestClient]:
    metrics = Metrics()
    settings = PLAIN.model_copy(update=more)
    keys = Keys(KEY, None) if keyed else None
    app = build_app(FakeService(metrics), settings, metrics, keys=keys)
    yield TestClient(app, base_url="http://127.0.0.1:18080", follow_redirects=False)


# As a browser sends them without asking first: fetch.spec.whatwg.org, "CORS-safelisted request-header".
SIMPLE = ("multipart/form-data; boundary=x", "text/plain", "application/x-www-form-urlencoded", "")


@pytest.mark.parametrize("kind", SIMPLE)
@pytest.mark.parametrize("origin", [EVIL, "null", "http://127.0.0.1:1", "http://localhost.evil.example", ""])
@pytest.mark.parametrize("cors", [(), (GOOD,)])
def test_a_page_of_another_site_writes_nothing(kind: str, origin: str, cors: tuple[str, ...]) -> None:
    headers = {"Content-Type": kind} if kind else {}
    headers |= {"Origin": origin} if origin else {}
    with client(cors_origins=cors) as http:
        answer = http.post("/v1/gallery", content=b"x", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["error"]["code"] == ("other_site" if origin else "write_header_missing")


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_what_is_missing_is_said(method: str) -> None:
    with client() as http:
        answer = http.request(method, "/v1/gallery")
        assert answer.status_code == 403
        message = answer.json()["error"]["message"]
        assert f"`{WRITE_HEADER}: 1`" in message
        assert "--api-key" in message
        assert http.request(method, "/v1/gallery", headers=HEADER).status_code == 200
        assert http.request(method, "/v1/gallery", headers={WRITE_HEADER: ""}).status_code == 403


@pytest.mark.parametrize(
    "more", [{}, {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_the_header_does_not_make_another_sites_page_ours(more: dict[str, str]) -> None:
    with client(cors_origins=(GOOD,)) as http:
        status = http.post("/v1/gallery", headers=HEADER | more).status_code
        assert status == (403 if more else 200)


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_our_own_page_writes_behind_a_proxy_that_changes_the_name(site: str) -> None:
    headers = HEADER | {"Origin": "https://shop.example", "Sec-Fetch-Site": site}
    with client() as http:
        assert http.post("/v1/gallery", headers=headers).status_code == 200


def test_our_own_page_writes_by_plain_http() -> None:
    with client() as http:
        same = str(http.base_url).rstrip("/")
        assert http.post("/v1/gallery", headers=HEADER | {"Origin": same}).status_code == 200
        headers = HEADER | {"Origin": "https://pdserve", "Host": "pdserve:443"}
        assert http.post("/v1/gallery", headers=headers).status_code == 200
        assert http.post("/v1/gallery", headers=HEADER | {"Origin": "http://localhost:1"}).status_code == 403


def test_pages_that_are_named_may_write_and_read_why_not() -> None:
    with client(cors_origins=(GOOD,)) as http:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": WRITE_HEADER}
        preflight = http.options("/v1/gallery", headers={"Origin": GOOD} | asked)
        assert preflight.status_code == 200
        assert WRITE_HEADER.lower() in preflight.headers["Access-Control-Allow-Headers"].lower()
        refused = http.post("/v1/gallery", headers={"Origin": GOOD, "Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403
        assert refused.headers["Access-Control-Allow-Origin"] == GOOD
        headers = HEADER | {"Origin": GOOD, "Sec-Fetch-Site": "cross-site"}
        assert http.post("/v1/gallery", headers=headers).status_code == 200
        assert http.options("/v1/gallery", headers={"Origin": EVIL} | asked).status_code == 400


def test_a_key_takes_the_place_of_the_header() -> None:
    with client(keyed=True) as http:
        assert http.post("/v1/gallery").status_code == 401
        assert http.post("/v1/gallery", headers=HEADER).status_code == 401
        assert http.post("/v1/gallery", headers={"X-API-Key": KEY}).status_code == 200
        assert http.post("/v1/gallery", headers={"X-API-Key": KEY, "Origin": EVIL}).status_code == 403


def test_predictions_need_no_header() -> None:
    with client() as http:
        assert http.post("/v1/classification", content=b"x", headers={"Origin": EVIL}).status_code == 200


def test_the_document_says_which_header() -> None:
    def parameters(keyed: bool) -> list[Any]:
        more = {"api_key": SecretStr(KEY)} if keyed else {}
        with client(keyed, **more) as http:
            found = http.get("/openapi.json", headers={"X-API-Key": KEY}).json()["paths"]
        return [each["name"] for each in found["/v1/gallery"]["delete"].get("parameters", ())]

    operation = {"summary": "writes", "responses": {200: {"description": "done"}}}

    def described(context: Context) -> Iterator[Route]:
        for each in written(context):
            yield Route(each.method, each.path, each.endpoint, operation, writes=True)

    globals()["described"] = described
    patch = pytest.MonkeyPatch()
    patch.setitem(PROTOCOLS, "gallery", Protocol("gallery", "http", f"{__name__}:described", "writes"))  # type: ignore[arg-type]
    try:
        assert parameters(keyed=False) == [WRITE_HEADER]
        assert parameters(keyed=True) == []
    finally:
        patch.undo()


@pytest.mark.parametrize(
    ("more", "option"),
    [
        ({"cors_origins": ("*",)}, "--cors-origin *"),
        ({"allowed_hosts": ("*",)}, "--allowed-host *"),
        ({"cors_origins": (GOOD,), "allowed_hosts": ("a.example",)}, None),
        ({"cors_origins": ("*",), "api_key": SecretStr(KEY)}, None),
    ],
)
def test_what_lets_any_page_in_is_said(more: dict[str, Any], option: str | None) -> None:
    warning = any_page_warning(PLAIN.model_copy(update=more))
    assert (option in warning) if option and warning else warning is None


# Headers

WANTED = {name.decode(): value.decode() for name, value in POLICY}


def lacking(answer: httpx.Response) -> set[str]:
    """The headers that an answer does not carry, or more than once."""
    return {name for name, value in WANTED.items() if answer.headers.get_list(name) != [value]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/health/live", 200),
        ("GET", "/metrics", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs/start.js", 200),
        ("GET", "/docs/swagger-ui.css", 200),
        ("GET", "/redoc", 307),
        ("POST", "/v1/classification", 200),
        ("GET", "/v1/classification", 405),
        ("GET", "/nothing", 404),
        ("POST", "/v1/gallery", 403),
        ("POST", "/v1/embeddings", 404),
    ],
)
def test_every_answer_carries_them(method: str, path: str, status: int) -> None:
    with client() as http:
        answer = http.request(method, path, content=b"x" if method == "POST" else None)
        assert (answer.status_code, lacking(answer)) == (status, set())


def test_refusals_carry_them() -> None:
    with client() as http:
        answer = http.get("/v2", headers={"Host": "evil.example"})
        assert (answer.status_code, lacking(answer)) == (421, set())
        answer = http.post("/v1/classification", content=b"broken")
        assert (answer.status_code, lacking(answer)) == (500, set())
    with client(keyed=True) as http:
        answer = http.get("/v2")
        assert (answer.status_code, lacking(answer)) == (401, set())


def test_paddle_servings_route_has_them_but_for_what_its_gateway_says_itself() -> None:
    with client() as http:
        answer = http.post("/imagenet/prediction", json={"key": ["a"], "value": ["eA=="]})
        assert (answer.status_code, lacking(answer)) == (200, {"x-content-type-options"})
        answer = http.get("/imagenet/prediction")
        assert (answer.status_code, lacking(answer)) == (405, set())


def test_the_page_has_a_policy_of_its_own() -> None:
    with client() as http:
        answer = http.get("/docs")
        assert lacking(answer) == {"content-security-policy"}
        (policy,) = answer.headers.get_list("content-security-policy")
        words = dict(each.split(" ", 1) for each in policy.split("; "))
        assert words["default-src"] == "'none'"
        assert words["script-src"] == words["connect-src"] == words["style-src"] == "'self'"
        assert words["frame-ancestors"] == "'none'"
        assert "unsafe" not in policy
        assert "<script>" not in answer.text
        assert "style=" not in answer.text


def test_what_is_no_request_gets_them_and_the_port_of_metrics() -> None:
    async def test() -> None:
        stop, metrics = asyncio.Event(), Metrics()
        settings = PLAIN.model_copy(update={"prometheus_port": 0})
        async with http_listener(build_app(FakeService(metrics), PLAIN, metrics), PLAIN, 0, stop) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"nonsense\r\n\r\n")
            answer = (await reader.read()).decode().lower()
            writer.close()
            assert answer.startswith("http/1.1 400")
            for name, value in WANTED.items():
                assert f"\r\n{name}: {value}\r\n".lower() in answer
        async with (
            metrics_listener(metrics, settings, stop) as port,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            url = f"http://127.0.0.1:{port}/metrics"
            assert lacking(await http.get(url)) == set()
            refused = await http.get(url, headers={"Host": "evil.example"})
            assert (refused.status_code, lacking(refused)) == (421, set())
            assert "--allowed-host" in refused.text

    asyncio.run(test())


# A real browser

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs a browser: `apt-get install chromium`, or google-chrome"
)
PAGE = """<!doctype html><title>a page of another site</title><iframe name="hidden"></iframe>
<form id="form" method="post" enctype="multipart/form-data" target="hidden" action="{url}/v1/gallery">
<input name="label" value="planted by a form"></form>
<pre id="seen">nothing yet</pre>
<script>
const url = "{url}", png = Uint8Array.from(atob("{png}"), c => c.charCodeAt(0)), seen = [];
async function attempt(name, path, options) {{
  try {{
    const answer = await fetch(url + path, options);
    seen.push(name + ": " + answer.type + " " + answer.status + " " + (await answer.text()).length);
  }} catch (error) {{ seen.push(name + ": " + error.name); }}
}}
(async () => {{
  const form = new FormData();
  form.append("images", new Blob([png], {{type: "image/png"}}), "x.png");
  form.append("label", "planted");
  await attempt("multipart", "/v1/gallery", {{method: "POST", mode: "no-cors", body: form}});
  const text = JSON.stringify({{images: [{{image: "{png}", label: "planted"}}]}});
  await attempt("text", "/v1/gallery", {{method: "POST", mode: "no-cors", body: text}});
  await attempt("json", "/v1/gallery", {{method: "POST", body: text, headers: {{"X-Pdserve-Write": "1"}}}});
  await attempt("delete", "/v1/gallery?label=blue", {{method: "DELETE"}});
  await attempt("read", "/v1/gallery", {{}});
  navigator.sendBeacon(url + "/v1/gallery", form);
  document.getElementById("form").submit();
  await new Promise(done => setTimeout(done, 300));
  document.getElementById("seen").textContent = "over; " + seen.join("; ");
}})();
</script>"""


def browse(address: str, folder: Path, *options: str) -> tuple[str, str]:
    """A page's document once its scripts have run, and what the browser logs."""
    assert CHROMIUM
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--disable-background-networking", "--no-first-run", f"--user-data-dir={folder}"),
            *("--enable-logging=stderr", "--virtual-time-budget=10000", "--timeout=30000", *options),
            *("--dump-dom", address),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, "\n".join(console)


@pytest.fixture(scope="module")
def writable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose gallery may be changed."""
    home = build_home(tmp_path_factory.mktemp("browsers") / "home")
    options = (*OPTIONS["recognition"], "--gallery-writes", "--cors-origin", GOOD)
    with start(home, *options, service="recognition") as server:
        yield server


@contextmanager
def site(page: str) -> Iterator[str]:
    """A site of another origin that has one page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = page.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as opened:
        thread = threading.Thread(target=opened.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{opened.server_address[1]}/"
        finally:
            opened.shutdown()
            thread.join()


def gallery_of(server: Server) -> dict[str, Any]:
    return dict(httpx.get(f"{server.url}/v1/gallery", trust_env=False).json())


@chromium
@pytest.mark.full
def test_in_a_browser_a_page_of_another_site_writes_nothing_and_reads_nothing(
    writable: Server, tmp_path: Path
) -> None:
    before = gallery_of(writable)
    png = base64.b64encode(two()).decode()
    with site(PAGE.format(url=writable.url, png=png)) as address:
        seen, _ = browse(address, tmp_path)
    (text,) = re.findall(r'<pre id="seen">(.*?)</pre>', seen)
    names = ("multipart", "text", "json", "delete", "read")
    assert text == "over; " + "; ".join(f"{name}: TypeError" for name in names)
    # What a page may send without asking did go out: the form by script, the text, the beacon and the form.
    metrics = httpx.get(f"{writable.url}/metrics", trust_env=False).text
    assert 'pdserve_requests_total{code="403",route="/v1/gallery"} 4.0' in metrics
    assert gallery_of(writable) == before


@chromium
@pytest.mark.full
def test_in_a_browser_a_rebound_name_reads_nothing(writable: Server, tmp_path: Path) -> None:
    rules = "--host-resolver-rules=MAP rebound.example 127.0.0.1"
    address = f"http://rebound.example:{writable.http_port}/v1/gallery"
    seen, _ = browse(address, tmp_path, rules)
    assert "does not go by the name 'rebound.example'" in seen
    assert "index_version" not in seen


@chromium
@pytest.mark.full
def test_in_a_browser_the_page_works_under_its_policy(writable: Server, tmp_path: Path) -> None:
    netlog = tmp_path / "net.json"
    seen, console = browse(f"{writable.url}/docs", tmp_path / "profile", f"--log-net-log={netlog}")
    assert console == ""
    for path in ("/v1/recognition", "/v1/gallery", "/v2/health/live"):
        assert f'data-path="{path}"' in seen
    # The page's requests carry its address as their initiator.
    events = json.loads(netlog.read_text("utf-8"))["events"]
    asked = [each["params"] for each in events if "initiator" in each.get("params", {})]
    urls = {each["url"] for each in asked if each["initiator"] == writable.url}
    assert {url.removeprefix(writable.url) for url in urls} == {
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/start.js",
        "/openapi.json",
    }
