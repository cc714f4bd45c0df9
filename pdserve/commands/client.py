"""The command of pdserve-client: ``predict``'s remote half, with the standard library's options alone."""

import os
import sys
from argparse import SUPPRESS, ArgumentParser, HelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pdserve import __version__, console, process
from pdserve.clients.credentials import Access, key_to_send
from pdserve.commands.images import find_sources
from pdserve.commands.predict_options import IMAGES, OPTIONS, Option
from pdserve.commands.remote import ask_server
from pdserve.errors import OnlyClientError, UsageError
from pdserve.pipelines import SERVICES

_PROGRAM = "pdserve-client"
_HELP = """\
usage: pdserve-client predict [OPTIONS] PATH|URL|DIR|-…

Ask a server of pdserve about images. All other commands come with pdserve itself: pip install pdserve.

commands:
  predict    see `pdserve-client predict --help`

options:
  --version  show the version and exit
  --help     show this and exit"""


def app() -> None:
    """Run the command that ``sys.argv`` has. Raises PdserveError, and SystemExit with the exit code."""
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("--help", "-h"):
        console.verbatim(_HELP)
    elif word == "--version":
        console.line(f"{_PROGRAM} {__version__}")
    elif word == "predict":
        _predict(rest)
    else:
        raise OnlyClientError(f"`{word}`" if word.startswith("-") else f"The command {word}")


def _predict(words: list[str]) -> None:
    process.begin("answers that are printed are whole; the same command starts again.")
    given, unknown = _parser().parse_known_intermixed_args([_hyphened(word) for word in words])
    if unknown:  # most likely one that runs models, as --local
        raise OnlyClientError(f"The option {unknown[0].partition('=')[0]}")
    access = Access(key_to_send(given.api_key, os.environ), given.tls, given.ca)
    named = {name: getattr(given, name) for name in OPTIONS if name not in ("api_key", "tls", "ca")}
    failed = ask_server(find_sources(given.images), access=access, **named)
    raise SystemExit(1 if failed else 0)


def _hyphened(word: str) -> str:
    """An option as it is declared, where it is spelled with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        said = message[:1].upper() + message[1:].rstrip(".")
        raise UsageError(f"{said}; `{self.prog} --help` shows what there is.")


def _parser() -> ArgumentParser:
    parser = _Parser(
        prog=f"{_PROGRAM} predict",
        usage=f"%(prog)s [OPTIONS] {IMAGES.metavar}",
        description="Ask a running server about images. Without --url it is the server that runs on this "
        "machine, on whatever port; --service says which where several run.",
        epilog="What runs models (--local and the options of models) and draws pictures (--draw) needs "
        "pdserve itself: pip install pdserve.",
        formatter_class=lambda prog: HelpFormatter(prog, max_help_position=28),
        allow_abbrev=False,
    )
    parser.add_argument("images", nargs="+", metavar=IMAGES.metavar, help=IMAGES.help)
    for name, option in OPTIONS.items():
        if option.kind is bool:
            parser.add_argument(option.flag, dest=name, action="store_true", help=option.help)
            continue
        note = "" if option.default is None else f" [default: {option.default}]"
        parser.add_argument(
            option.flag,
            dest=name,
            type=_kind if name == "service" else _reader(option),
            metavar=option.metavar,
            default=option.default,
            help=SUPPRESS if name == "draw" else option.help + note,
        )
    return parser


def _kind(text: str) -> str:
    if text not in SERVICES:
        raise UsageError(f"--service: {text!r} is not one of {', '.join(SERVICES)}.")
    return SERVICES[text].kind


def _reader(option: Option) -> Callable[[str], Any]:
    """What reads an option's value, within its bounds."""

    def read(text: str) -> Any:
        if option.kind in (str, Path):
            return option.kind(text)
        try:
            value = option.kind(text)
        except ValueError:
            raise UsageError(f"{option.flag} is {text!r}, and no number.") from None
        if (option.least is not None and not value >= option.least) or (
            option.most is not None and not value <= option.most
        ):
            most = "" if option.most is None else f" and at most {option.most:g}"
            raise UsageError(f"{option.flag} is {text}; it is at least {option.least:g}{most}.")
        return value

    return read
