"""All attacks of the table against servers with their defences. Linux, whose /proc tells their memory."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.attack import Attack, Target, base_home
from tests.attacks.table import ATTACKS
from tests.attacks.undefended import outcome
from tests.attacks.without import find

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
PARAMS = [
    pytest.param(each, marks=pytest.mark.full if each.full else (), id=each.name) for each in ATTACKS.values()
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_home(tmp_path_factory.mktemp("attacks") / "home")


class Targets:
    """The target of the attacks that want the same; the one before is stopped when others come."""

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._wants: tuple[Any, ...] | None = None
        self._active: Target | None = None
        self._count = 0

    def of(self, attack: Attack) -> Target:
        if self._active is None or self._wants != attack.wants:
            self.close()
            self._count += 1
            # Each server has a home of its own, so that what one writes is not met by another.
            home = shutil.copytree(self._home, self._folder / str(self._count), symlinks=True)
            self._active, self._wants = Target(Path(home), attack.service), attack.wants
            if attack.service:
                self._active.serve(attack.options, attack.environ)
        return self._active

    def close(self) -> None:
        active, self._active = self._active, None
        if active:
            active.close()


@pytest.fixture(scope="module")
def targets(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    with contextlib.closing(Targets(home, tmp_path_factory.mktemp("targets"))) as targets:
        yield targets


@pytest.mark.parametrize("attack", PARAMS)
def test_attack(attack: Attack, targets: Targets) -> None:
    try:
        target = targets.of(attack)
        attack.run(target)
        if target.server:
            target.good()
            assert "Traceback" not in target.log
    except BaseException:
        targets.close()  # the next attack gets a server that has not seen this one
        raise


@pytest.mark.parametrize("where", sorted({where for each in ATTACKS.values() for where in each.without}))
def test_every_defence_is_where_the_table_says(where: str) -> None:
    find(where)


def test_every_attack_says_what_holds_and_what_its_defence_is() -> None:
    for each in ATTACKS.values():
        assert (each.run.__doc__ or "").strip(), each.name
        assert each.without or each.undefended_options is not None, each.name


@pytest.mark.full
def test_an_attack_is_red_without_its_defence(home: Path) -> None:
    assert outcome(ATTACKS["a_head_that_does_not_end"], home)[0] == "red"
