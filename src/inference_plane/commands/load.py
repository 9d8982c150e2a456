"""Sends load as users make it, and says whether they noticed: first tokens, gaps, refusals, losses, who answered."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Any

import rich.console

from inference_plane import helm
from inference_plane.cluster import network
from inference_plane.commands import _runs
from inference_plane.load import curve, drive, marks, profiles, report, returns, router, targets, thresholds
from inference_plane.loop.times import TIMES, Times
from inference_plane.onehost.processes import Processes

EPILOG = """\
examples:
  scripts/load smoke --target elastic --png t.png         with real KEDA and Karpenter, and nodes that come
  scripts/load rollout --target elastic --mark router-rollout   every router is replaced under load
  scripts/load smoke                                      half a minute against the plane on this machine
  scripts/load monday-surge --dry-run                     the curve, and what it would send
  scripts/load monday-surge --time-scale 10 --html r.html the surge in a tenth of the time, with a report
  scripts/load steady --target https://router.example --token-file care=care.jwt --token-file appeals=appeals.jwt
  scripts/load smoke --target http://127.0.0.1:8000 --model assistant=my-model --model records=my-model

Profiles: {names}. Exits 1 when a threshold of the profile is not kept, 2 when the load could not be
sent. docs/load.md says what each measure means.
"""

#: What a process knows by that it is in the elastic target's network.
_INSIDE = "INFERENCE_PLANE_ELASTIC"

WRITERS = {
    "json": report.write_json,
    "csv": report.write_csv,
    "html": report.write_html,
    "png": report.write_png,
}


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    console = rich.console.Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = rich.console.Console(stderr=True, highlight=False, width=140)
    try:
        source = profiles.find(arguments.profile)
        profile = profiles.load(arguments.profile).scaled(arguments.time_scale, arguments.rate_scale)
        profile = profile.marked(arguments.mark) if arguments.mark else profile
        own = {name: value for name in ("seed", "users") if (value := getattr(arguments, name)) is not None}
        profile = dataclasses.replace(profile, **own)
        if arguments.target == "elastic" and not arguments.dry_run:
            command = [sys.executable, "-m", "inference_plane.commands", "load", *(argv or sys.argv[1:])]
            _enter(command, arguments, profile)
        if arguments.dry_run:
            print(curve.text(profile))
            return 0
        with _runs.folder(arguments.keep_logs) as folder:
            return _run(arguments, profile, source, folder, console)
    except KeyboardInterrupt:
        console.print("\ninterrupted: everything is ended")
        return 130
    except (profiles.ProfileError, targets.TargetError, helm.HelmError, OSError, RuntimeError, LookupError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/load",
        description=__doc__,
        epilog=EPILOG.format(names=", ".join(profiles.names())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("profile", metavar="PROFILE", help="a name under tests/load/profiles/, or a file")
    parser.add_argument(
        "--target",
        default="demo",
        help="demo (the plane on this machine, the default), elastic (with real control loops), or a URL without /v1",
    )
    for name, seconds in vars(Times()).items():
        parser.add_argument(
            f"--{name}-seconds", dest=name, type=float, default=seconds, help=f"elastic: {TIMES[name]} ({seconds:g})"
        )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the curve and what would be sent, and send nothing"
    )
    parser.add_argument(
        "--token-file",
        action="append",
        default=[],
        metavar="[TENANT=]FILE",
        help="a bearer token, for one tenant or all",
    )
    parser.add_argument("--ca-file", type=Path, metavar="FILE", help="who vouches for the target's certificate (PEM)")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=NAME", help="what the target calls a model of the profile"
    )
    parser.add_argument(
        "--driver",
        metavar="COMMAND",
        help="acts on the profile's events: `COMMAND marks` lists them, `COMMAND act MARK`",
    )
    parser.add_argument("--mark", metavar="MARK", help="in place of the profile's one event, such as router-rollout")
    parser.add_argument("--time-scale", type=_positive, default=1.0, help="compress curve and events so many times")
    parser.add_argument("--rate-scale", type=_positive, default=1.0, help="multiply the requests a second")
    parser.add_argument("--seed", type=int, help="in place of the profile's")
    parser.add_argument("--users", type=_count, help="requests under way at once, in place of the profile's")
    for kind, what in zip(
        WRITERS, ("all measures", "a row a request", "one page with plots", "the timeline"), strict=True
    ):
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"write {what}")
    parser.add_argument("--keep-logs", metavar="DIR", type=Path, help="keep logs and samples there")
    return parser


def _run(
    arguments: argparse.Namespace, profile: profiles.Profile, source: Path, folder: Path, console: rich.console.Console
) -> int:
    models = _pairs("--model", arguments.model)
    if arguments.target not in ("demo", "elastic") and not arguments.target.startswith(("http://", "https://")):
        raise targets.TargetError(
            f"--target {arguments.target}: is neither demo nor elastic nor a URL. Set http://... or https://..."
        )
    ca_file = str(arguments.ca_file) if arguments.ca_file else None
    if arguments.target in ("demo", "elastic") and (ca_file or arguments.token_file):
        raise targets.TargetError(
            f"--target {arguments.target}: has tokens of its own and no certificate, so --token-file and --ca-file "
            "would be passed over. Leave them out, or set --target to a URL"
        )
    with contextlib.ExitStack() as stack:
        step = functools.partial(_runs.step, console)
        plane: Any = None
        driver: drive.Driver = drive.NoDriver()
        if arguments.target == "demo":
            plane = targets.Plane(folder, step)
            driver = marks.PlaneDriver(plane)
        elif arguments.target == "elastic":
            from inference_plane.loop.plane import Loop  # moto and more: seconds that only this target pays

            plane = Loop(folder, step, _times(arguments), _asked(arguments, profile))
            driver = plane.driver
        if arguments.driver:
            driver = marks.CommandDriver(arguments.driver)
        if unknown := drive.unknown(profile, driver):
            raise targets.TargetError(
                f"{profile.name}: nothing acts on its events {', '.join(unknown)} at {arguments.target}. They would "
                "be lines "
                f"in a plot, and their thresholds about nothing. Set --driver to a command that knows them"
                + (f"; this one knows {', '.join(driver.marks)}" if driver.marks else "")
            )
        if plane:
            stack.enter_context(plane)
            processes, url = plane.processes, plane.url
            tokens = {tenant: plane.token(tenant) for tenant in profile.tenants}
        else:
            url = arguments.target.rstrip("/")
            tokens = _tokens(arguments.token_file)
            processes = stack.enter_context(Processes())
        for tenant, wanted in profile.asks().items():
            token = tokens.get(tenant) or tokens.get("")
            if note := targets.check(url, [models.get(model, model) for model in wanted], token, ca_file):
                console.print(f"not checked: {note}", markup=False)
        with console.status("") if console.is_terminal else contextlib.nullcontext() as status:
            outcome = drive.run(
                processes,
                folder / "load",
                profile,
                source=source,
                scales=(arguments.time_scale, arguments.rate_scale),
                url=url,
                models=models,
                tokens=tokens,
                ca_file=ca_file,
                driver=driver,
                progress=lambda at: status.update(f"{at:.0f} of {profile.seconds:.0f} s") if status else None,
            )
        if arguments.target == "elastic":
            processes.check()  # a loop that has died was measured as if it had done nothing
        lines = router.of(plane.router) if plane else []
        compared = router.compare(outcome.samples, lines) if plane else None
        steps = plane.steps(outcome.began, lines) if plane else None
    verdicts = thresholds.judge(profile, outcome.samples)
    if plane:
        # By content, whatever a profile demands: an answer does not tell where its prompt has been.
        verdicts.append(thresholds.nothing_left(plane.restricted.count))
        verdicts.append(thresholds.as_the_router(compared))
    if steps:
        verdicts.append(thresholds.every_step(steps))
    fleet = plane.fleet(outcome.began) if plane else ()
    back = returns.returns(fleet)
    if verdict := thresholds.returned(back):
        verdicts.append(verdict)
    made = report.document(profile, arguments.target, outcome, verdicts, compared, fleet, back, steps)
    print(report.text(made))
    for kind, write in WRITERS.items():
        if path := getattr(arguments, kind):
            write(path, made, outcome.samples, profile)
            console.print(f"wrote {path}", markup=False)
    for verdict in (failed := [verdict for verdict in verdicts if not verdict.kept]):
        print(f"not kept: {verdict}", file=sys.stderr)
    return 1 if failed else 0


def _asked(arguments: argparse.Namespace, profile: profiles.Profile) -> list[str]:
    """The models that a profile asks for, by the target's names."""
    models = _pairs("--model", arguments.model)
    return sorted({models.get(kind.model, kind.model) for kind in profile.kinds})


def _times(arguments: argparse.Namespace) -> Times:
    return Times(**{name: getattr(arguments, name) for name in vars(Times())})


def _enter(command: list[str], arguments: argparse.Namespace, profile: profiles.Profile) -> None:
    """Goes on in a network of its own, in which every pod has its address; fetches and builds before, outside."""
    if os.environ.get(_INSIDE):
        return
    from inference_plane.loop import catalogue, needs

    needs.fetch(with_kserve=catalogue.kserve(catalogue.chosen(_asked(arguments, profile), _times(arguments))))
    words = network.inside(command)
    os.environ[_INSIDE] = "1"
    os.execvp(words[0], words)


def _pairs(option: str, given: list[str]) -> dict[str, str]:
    for each in given:
        if "=" not in each:
            raise targets.TargetError(
                f"{option} {each}: is no NAME=NAME. Set the profile's name first, then the target's"
            )
    return dict(each.split("=", 1) for each in given)


def _tokens(given: list[str]) -> dict[str, str]:
    """The tokens by tenant, "" for all others."""
    found = {}
    for tenant, _, file in (each.rpartition("=") for each in given):
        try:
            found[tenant] = Path(file).read_text().strip()
        except OSError as error:
            raise targets.TargetError(
                f"--token-file {file}: cannot be read: {error.strerror}. Set FILE, or TENANT=FILE, of a file with a "
                "token"
            ) from None
    return found


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _positive(text: str) -> float:
    if (value := float(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
