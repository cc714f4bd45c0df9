"""Who may load and unload services over HTTP, and how many do at once."""

import asyncio
from typing import Any

import pytest

from pdserve.errors import ModelError, OverloadedError
from pdserve.services.http.services import NotTheOperatorError, check_operator
from pdserve.services.repository import MAX_CHANGES, Repository
from pdserve.settings import ServerSettings


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1"])
def test_this_machine_needs_no_key(address: str) -> None:
    check_operator(address, ServerSettings(name="x"))


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "2001:db8::1", ""])
def test_another_machine_needs_a_key(address: str) -> None:
    with pytest.raises(NotTheOperatorError, match="from the server's own machine, or with a key"):
        check_operator(address, ServerSettings(name="x"))
    check_operator(address, ServerSettings(name="x", api_key="k" * 32))  # which was asked for before


def test_few_changes_run_at_once_and_are_finished_though_their_callers_leave() -> None:
    async def test() -> None:
        services, done, gate = Repository({}), [], asyncio.Event()

        async def change() -> None:
            await gate.wait()
            done.append(True)

        asked: list[Any] = [asyncio.create_task(services.finish(change())) for _ in range(MAX_CHANGES)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="16 services are being loaded or unloaded"):
            await services.finish(change())
        asked[0].cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.wait(asked)
        assert len(done) == MAX_CHANGES
        await services.finish(change())

        async def fail() -> None:
            raise ModelError("the file is cut")

        with pytest.raises(ModelError, match="the file is cut"):
            await services.finish(fail())

    asyncio.run(test())
