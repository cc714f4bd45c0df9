"""The unit, judged by systemd's own tools, and what a word of it may hold."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdserve.deploy import systemd
from pdserve.deploy.bundle import Bundle
from pdserve.pipelines import SERVICES
from tests.running import pdserve

ANALYZE = shutil.which("systemd-analyze") or ""
analyzed = pytest.mark.skipif(not ANALYZE, reason="needs systemd-analyze: apt-get install systemd")


def plain(**given: Any) -> Bundle:
    entry = SERVICES["classification"]
    return Bundle("pdserve-tiny", entry, entry.settings(given, {}), {"model": (None, "tiny")})


def unit(made: Bundle, program: str = systemd.PROGRAM) -> str:
    return systemd.texts(made, program)["pdserve-tiny.service"]


def analyze(folder: Path, text: str, *arguments: str) -> str:
    """What systemd-analyze says of a unit that it takes."""
    path = folder / "pdserve-tiny.service"
    path.write_text(text)
    command = [ANALYZE, *arguments, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


EACH = {
    "plain": plain(),
    "others may reach it": plain(host="0.0.0.0"),
    "gpu": plain(devices=("gpu:0", "gpu:3")),
    "low port": plain(http_port=80),
    "secrets": replace(plain(), secrets={"--api-key": "keys.txt", "--tls-cert": "tls.crt"}),
    "odd words": replace(plain(), options=('a b"c\\d', "100%", "$HOME", "new\nline", "")),
}


@analyzed
@pytest.mark.parametrize("made", EACH.values(), ids=EACH)
def test_systemd_takes_the_unit(tmp_path: Path, made: Bundle) -> None:
    text = unit(made, shutil.which("true") or "/bin/true").replace("WantedBy=multi-user.target\n", "")
    said = analyze(tmp_path, text, "verify")
    assert "pdserve-tiny" not in said, said  # a warning names the unit


@analyzed
@pytest.mark.parametrize(
    ("name", "most"), [("plain", 1.2), ("others may reach it", 1.4), ("low port", 1.6), ("gpu", 1.4)]
)
def test_the_exposure_is_small(tmp_path: Path, name: str, most: float) -> None:
    """From 0 to 10; a unit without hardening has 9.6."""
    said = analyze(tmp_path, unit(EACH[name]), "security", "--offline=true", "--no-pager")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found
    assert float(found[1]) <= most


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("plain-1.0/x", "plain-1.0/x"),
        ("two words", '"two words"'),
        ("50%", '"50%%"'),
        ("$HOME", '"$$HOME"'),
        ('a"b\\c', r'"a\"b\\c"'),
        ("a\nExecStartPre=/bin/evil", r'"a\nExecStartPre=/bin/evil"'),
        ("", '""'),
        (";", '";"'),
    ],
)
def test_a_word_stays_one_word(word: str, written: str) -> None:
    made = replace(plain(), options=(word,))
    starts = [line for line in unit(made).splitlines() if line.startswith("Exec")]
    assert len(starts) == 2
    assert starts[0].endswith(f" --model tiny {written} --host 127.0.0.1 --offline")


def test_it_may_reach_nobody_unless_others_may_reach_it() -> None:
    assert "IPAddressDeny=any\nIPAddressAllow=localhost\n" in unit(plain())
    assert "\nIPAddress" not in unit(plain(host="0.0.0.0"))


def test_gpus_and_low_ports_get_what_they_need() -> None:
    with_gpu = unit(EACH["gpu"])
    assert "PrivateDevices" not in with_gpu
    assert "DeviceAllow=/dev/nvidia0 rw\nDeviceAllow=/dev/nvidia3 rw\n" in with_gpu
    assert "AmbientCapabilities=CAP_NET_BIND_SERVICE" in unit(EACH["low port"])


def test_the_stop_has_more_time_than_the_servers_grace() -> None:
    assert "TimeoutStopSec=67\n" in unit(plain(grace_s=60))


def test_the_command_writes_it(tiny_home: Path, tmp_path: Path) -> None:
    out = tmp_path / "unit"
    done = pdserve(
        tiny_home, "export", "systemd", "--out", str(out), "--model", "tiny", "--top-k", "2", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert f'"unit":"{out}/pdserve-classification.service"' in done.stdout.replace(": ", ":")
    text = (out / "pdserve-classification.service").read_text()
    words = f"{systemd.PROGRAM} serve classification --model tiny --top-k 2 --host 127.0.0.1 --offline"
    assert f"ExecStart={words}\n" in text
    assert (out / "home/models/tiny_serving/inference.pdmodel").is_file()
    assert "cp -r home/. /var/lib/pdserve-classification/" in (out / "README.md").read_text()
