"""What a page of a stranger can make a browser send."""

import json
import re
from typing import Any

import httpx

from tests.attacks.attack import Target, attack
from tests.kinds import two

EVIL = "https://evil.example"
# One server for all: it may be written to, and other pages than the attacker's may ask.
OPEN = ("--gallery-writes", "--cors-origin", "https://good.example", "--prometheus-port", "0")
# What a browser says of a page of another site; old ones say the origin alone.
SAYS = ({"Origin": EVIL, "Sec-Fetch-Site": "cross-site"}, {"Origin": EVIL}, {"Origin": "null"}, {})


def gallery(target: Target) -> dict[str, Any]:
    """What the gallery is."""
    return dict(target.http.get("/v1/gallery").json())


def nothing_written(target: Target, before: dict[str, Any], answers: list[httpx.Response]) -> None:
    assert {answer.status_code for answer in answers} == {403}, [answer.text[:80] for answer in answers]
    assert gallery(target) == before


@attack(
    service="recognition",
    options=OPEN,
    without={"pdserve.services.http.browsers:check_write": lambda *_, **named: None},
)
def a_page_of_another_site_writes(target: Target) -> None:
    """What browsers send without asking first changes nothing: forms, text, no type."""
    before = gallery(target)
    entries = {"images": [{"image": "iVBORw0KGgo=", "label": "planted"}]}
    text = json.dumps(entries).encode()
    answers = []
    for says in SAYS:
        files = {"images": ("x.png", two())}
        answers.append(target.http.post("/v1/gallery", files=files, data={"label": "x"}, headers=says))
        for kind in (
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {},
        ):
            answers.append(target.http.post("/v1/gallery", content=text, headers={**says, **kind}))
    nothing_written(target, before, answers)


@attack(
    service="recognition",
    options=OPEN,
    without={"pdserve.services.http.browsers:_may_write": lambda *_: True},
)
def a_page_that_another_origin_was_allowed_for(target: Target) -> None:
    """An origin that is allowed lets in no other one, and none that only begins or ends so."""
    before = gallery(target)
    origins = ("null", "https://good.example.evil.example", "https://evil.example/https://good.example")
    origins += ("http://good.example", "https://good.example:444", "https://notgood.example")
    nothing_written(
        target,
        before,
        [
            target.http.request(
                method, "/v1/gallery?label=blue", headers={"Origin": origin, "X-Pdserve-Write": "1"}
            )
            for origin in origins
            for method in ("POST", "DELETE")
        ],
    )


@attack(
    service="recognition",
    options=OPEN,
    without={"pdserve.services.http.hosts:Hosts.check": lambda self, scope: None},
)
def a_rebound_name(target: Target) -> None:
    """A page whose own name means this machine reads nothing and writes nothing, though it is same-origin."""
    before = gallery(target)
    for name in ("evil.example", f"evil.example:{target.port}", "127.0.0.1.nip.io", "localhost.evil.example"):
        headers = {"Host": name, "Sec-Fetch-Site": "same-origin", "X-Pdserve-Write": "1"}
        for path in ("/v1/gallery", "/v2", "/metrics", "/docs", "/openapi.json", "/v1/models"):
            answer = target.http.get(path, headers=headers)
            assert answer.status_code == 421, (name, path, answer.text[:80])
        headers["Origin"] = f"http://{name}"
        answer = target.http.delete("/v1/gallery", params={"label": "blue"}, headers=headers)
        assert answer.status_code == 421
        assert target.http.post(target.route, content=two(), headers=headers).status_code == 421
    assert gallery(target) == before


@attack(
    service="recognition",
    options=OPEN,
    without={"pdserve.services.http.about:require_host": lambda app, *_: app},
)
def a_rebound_name_at_the_port_of_metrics(target: Target) -> None:
    """The second port asks for a name of the server's as well."""
    found = re.search(r"metrics on 127\.0\.0\.1:(\d+)", target.log)
    assert found
    url = f"http://127.0.0.1:{found[1]}/metrics"
    assert httpx.get(url, trust_env=False).status_code == 200
    assert httpx.get(url, headers={"Host": "evil.example"}, trust_env=False).status_code == 421


@attack(without={"pdserve.services.http.browsers:with_policy": lambda app, *_: app})
def an_answer_in_a_frame_or_as_a_script(target: Target) -> None:
    """Each answer says that it is no page, no script, no frame, and of this origin alone."""
    for path in (
        "/v2",
        "/docs",
        "/metrics",
        "/nothing",
        "/v1/nothing",
        "/v1/classification",
        "/docs/start.js",
    ):
        headers = target.http.get(path).headers
        policy = headers.get("Content-Security-Policy", "")
        assert "default-src 'none'" in policy, path
        assert "frame-ancestors 'none'" in policy, path
        assert "unsafe" not in policy, path
        assert headers.get("X-Content-Type-Options") == "nosniff", path
        assert headers.get("Cross-Origin-Resource-Policy") == "same-origin", path
        assert headers.get("Referrer-Policy") == "no-referrer", path
