"""pdserve beside what else would serve the same models: Paddle Serving and today's servers, on one machine.

Every contender (contenders.py) gets the same model, the same image in Paddle Serving's JSON body, and the
same load. They take turns: in a round each is started, its answer compared with the raw pipeline's, loaded
by each number of clients, and stopped, so that one runs at a time and a machine whose speed drifts does so
for all. Figures are medians over the rounds. A contender that cannot be installed, does not start or answers
wrongly is left out by name, with the reason.

    python benchmarks/compare.py --image photo.jpg --paddle-serving-python /opt/ps39/bin/python
    python benchmarks/compare.py --image photo.jpg --servers pdserve litserve --models ResNet50_vd --rounds 1
    python benchmarks/compare.py --image photo.jpg --resume --page docs/benchmarks.md    # and write

Results are written after each measurement; --resume measures only what they lack. Needs the models:
``pdserve fetch``, ``pdserve fetch ResNet50_vd EfficientNet_lite0``, ``pdserve convert``; for INT8 what
``pdserve optimize --precision int8`` publishes for each. Runs on Linux.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from benchmarks import comparison
from benchmarks.answers import labels
from benchmarks.comparison_plot import plot
from benchmarks.comparison_report import Report, say
from benchmarks.contenders import CONTENDERS, DETECTOR, EMBEDDER, MODELS, RECOGNITION, Contender, Pythons
from benchmarks.installed_size import installed_mb
from benchmarks.measurement import Plan, UnfitError, measure_server
from benchmarks.raw_side import RawSide, raw_process, right_answer
from benchmarks.rivals.environment import ROOT, prepare, requirements
from pdserve.models.home import Home

HERE = Path(__file__).parent


def find_pythons(given: argparse.Namespace, report: Report) -> Pythons:
    """Environments of the rivals, made where they are not there; what cannot be made is left out."""
    rivals = {}
    for name in given.servers:
        if CONTENDERS[name].kind == "rival":
            try:
                rivals[name] = prepare(name, given.envs)
            except RuntimeError as error:
                report.skip(CONTENDERS[name].title, str(error))
    return Pythons(rivals, given.paddle_serving_python)


def measure_sizes(servers: Sequence[str], pythons: Pythons, report: Report) -> None:
    """The installed sizes of all servers."""
    sizes = report.content["installed"]
    for name in servers:
        one = CONTENDERS[name]
        if one.kind in ("pdserve", "int8"):
            sizes[name] = installed_mb(Path(sys.executable), ["pdserve"], ROOT / "pdserve")
        elif one.kind == "paddle-serving" and pythons.paddle_serving:
            sizes[name] = installed_mb(pythons.paddle_serving, None)
        elif name in pythons.rivals:
            roots = requirements(name).read_text("utf-8").split()
            sizes[name] = installed_mb(pythons.rivals[name], roots)
    report.write()


def right_answers(given: argparse.Namespace, servers: Sequence[str], report: Report) -> dict[Any, Any]:
    """By model and precision; what has no right answer is left out."""
    found = {}
    with raw_process(given.seconds) as raw:
        for model in given.models:
            for precision in ["fp32"] + ["int8"] * ("pdserve-int8" in servers):
                try:
                    found[model, precision] = right_answer(raw, model, given.image, precision)
                    say(f"{model} {precision}: {found[model, precision]}")
                except UnfitError as error:
                    report.skip(f"{model} {precision}", str(error))
    for model in given.models:
        if (model, "int8") in found:
            report.content["notes"] += int8_notes(model, found[model, "int8"], found[model, "fp32"])
    return found


def int8_notes(model: str, int8: dict[str, str], float32: dict[str, str]) -> list[str]:
    """How well the INT8 forms agree, as `pdserve optimize` found, and whether they do on this image."""
    names = (DETECTOR, EMBEDDER) if model == RECOGNITION else (model,)
    agreements = []
    for name in names:
        path = Home.from_environ(os.environ).serving_model(name) / ".pdserve" / "int8" / "report.json"
        agreement = json.loads(path.read_text("utf-8"))["agreement"]
        figures = f"{agreement['measure']}, {agreement['images']} images"
        agreements.append(f"{name} {agreement['value']:.2f} ({figures})")
    same = "the same labels" if labels(int8) == labels(float32) else "other labels"
    return [f"INT8, {model}: agreement with float32 {', '.join(agreements)}; for this image it has {same}."]


def fit(one: Contender, pythons: Pythons, report: Report) -> bool:
    """Whether a contender can be started at all."""
    if one.kind == "paddle-serving" and pythons.paddle_serving is None:
        report.skip(one.title, "no --paddle-serving-python was given.")
        return False
    return one.kind != "rival" or one.name in pythons.rivals


def measure_all(given: argparse.Namespace, report: Report) -> None:
    """Rounds over models over contenders. One that failed is not tried in later rounds."""
    pythons = find_pythons(given, report)
    servers = [name for name in given.servers if fit(CONTENDERS[name], pythons, report)]
    measure_sizes(servers, pythons, report)
    answers = right_answers(given, servers, report)
    plan = Plan(
        Home.from_environ(os.environ).root, given.image, given.clients, given.seconds, given.patience, pythons
    )
    raw_side = RawSide(plan)
    failed: set[tuple[str, str]] = set()
    for number in range(1, given.rounds + 1):
        for model in given.models:
            for name in servers:
                one = CONTENDERS[name]
                wanted = answers.get((model, "int8" if one.kind == "int8" else "fp32"))
                if wanted is None or (model, name) in failed or report.has(number, model, name):
                    continue
                say(f"round {number}/{given.rounds}, {model}, {one.title} …")
                try:
                    if one.kind == "raw":
                        found = raw_side.measure(one, model)
                    else:
                        found = measure_server(one, model, plan, wanted)
                except (UnfitError, RuntimeError, OSError) as error:
                    failed.add((model, name))
                    report.skip(f"{one.title}, {model}", str(error))
                    continue
                report.add({"round": number, "model": model, "server": name, **found})
                figures = [
                    f"{n}: {load['images_per_s']:.1f}/s" if "images_per_s" in load else f"{n}: –"
                    for n, load in found["loads"].items()
                ]
                say(f"round {number}/{given.rounds}, {model}, {one.title}: " + ", ".join(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--image", type=Path, required=True, help="a JPEG of 40 to 80 KB")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    parser.add_argument(
        "--servers",
        nargs="+",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        metavar="SERVER",
        help="of " + ", ".join(CONTENDERS),
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64], metavar="N")
    parser.add_argument("--seconds", type=float, default=4, help="of each load, at least")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--patience",
        type=float,
        default=20,
        help="s; where a request would take longer, a load is not offered",
    )
    parser.add_argument(
        "--envs", type=Path, default=ROOT / ".venv" / "rivals", help="the rivals' environments"
    )
    parser.add_argument("--paddle-serving-python", type=Path, help="an interpreter with Paddle Serving 0.9.0")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "compare.json")
    parser.add_argument("--resume", action="store_true", help="measure only what --out lacks")
    parser.add_argument("--page", type=Path, help="put table and picture into this page of docs/")
    parser.add_argument(
        "--random-weights",
        nargs="*",
        choices=MODELS,
        help="models whose weights are not trained, as their INT8 rows then say",
    )
    given = parser.parse_args()
    given.image = given.image.absolute()
    given.clients = sorted(given.clients)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(given.out, given)
    # Ended by a signal or by Ctrl-C, it still ends the server that runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM; go on with --resume"))
    measure_all(given, report)
    text = comparison.markdown(report.content)
    given.out.with_suffix(".md").write_text(text, "utf-8")
    picture = given.page.parent / "images" / "compare.png" if given.page else given.out.with_suffix(".png")
    plot(report.content, picture)
    comparison.show(report.content, Console(width=None if sys.stdout.isatty() else 160))
    if given.page:
        comparison.put_into(given.page, ["", "![Throughput and p99 by server](images/compare.png)", "", text])


if __name__ == "__main__":
    main()
