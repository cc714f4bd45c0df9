"""All attacks: what the modules of the kinds define, in the order of who shares a server."""

from importlib import import_module

from tests.attacks.attack import KINDS, Attack


def _gathered() -> dict[str, Attack]:
    found: dict[str, Attack] = {}
    for kind in KINDS:
        for each in vars(import_module(f"tests.attacks.{kind}")).values():
            if isinstance(each, Attack):
                if each.name in found:
                    raise ValueError(f"two attacks have the name {each.name}")
                found[each.name] = each
    return dict(sorted(found.items(), key=lambda item: repr(item[1].wants)))


ATTACKS = _gathered()
