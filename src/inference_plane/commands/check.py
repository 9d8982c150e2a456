"""Judges an environment, or manifests in a folder: schemas, CEL rules, relations, residency and least privilege.

Exits 1 on a violation and 2 when it could not judge: a green answer means that every rule judged every object of its
kinds.
"""

import argparse
import dataclasses
import datetime
import pathlib
import sys
import threading
import time
from collections.abc import Sequence

from inference_plane import argocd, helm
from inference_plane.checkout import ROOT, VALUES
from inference_plane.commands import _environment
from inference_plane.compliance import report, rules, suppressions
from inference_plane.compliance.built_in import DIGESTS, NOT_APPLICABLE
from inference_plane.compliance.scanner import NotJudged, Scanner
from inference_plane.compliance.sources import DOCUMENT, Source, SourceError, environment, folder
from inference_plane.manifests import CRDError, check

EPILOG = """\
examples:
  scripts/check                                   every environment under values/
  scripts/check prod                              one of them
  scripts/check my-values.yaml --format json
  scripts/check rendered/ --external "Secret inference/router-tls"
  scripts/check argocd/                           what Argo CD would render of its Applications
  scripts/check prod --suppressions exceptions.yaml --sarif check.sarif

Suppressions are a YAML list of rule, object, reason, owner and expires (the last day). The rules: docs/policies.md.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/check", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="*", metavar="ENV|FILE|DIR", help="a name under values/, a values file, or a folder of manifests"
    )
    parser.add_argument("--format", choices=["text", "json", "sarif"], default="text", help="%(default)s by default")
    parser.add_argument("--sarif", type=pathlib.Path, metavar="FILE", help="write SARIF to this file as well")
    parser.add_argument(
        "--suppressions", type=pathlib.Path, metavar="FILE", help="violations that somebody answers for"
    )
    parser.add_argument(
        "--external", action="append", default=[], metavar="'KIND NAMESPACE/NAME'", help="exists without being rendered"
    )
    parser.add_argument("--require-digests", action="store_true", help="an image without a digest is a violation")
    parser.add_argument("--namespace", default="inference", help="where objects without one go (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        with _Progress() as progress, Scanner() as scanner:
            verdicts, artifacts = _judge(arguments, scanner, progress)
    except (_environment.UnknownEnvironment, SourceError, NotJudged, rules.RuleError, CRDError) as error:
        return _not_judged(error)
    except (helm.HelmError, argocd.ArgoError, suppressions.SuppressionError) as error:
        return _not_judged(error)
    known = rules.load()
    if arguments.sarif:
        arguments.sarif.write_text(report.sarif(verdicts, known, artifacts) + "\n")
    formats = {"text": report.text, "json": report.as_json, "sarif": lambda v, r: report.sarif(v, r, artifacts)}
    print(formats[arguments.format](verdicts, known))
    return int(any(verdict.violations for verdict in verdicts))


def _not_judged(error: Exception) -> int:
    print(f"error: could not judge: {error}", file=sys.stderr)
    return 2


def _judge(
    arguments: argparse.Namespace, scanner: Scanner, progress: "_Progress"
) -> tuple[list[report.Verdict], dict[str, str]]:
    excuses = suppressions.read(arguments.suppressions) if arguments.suppressions else []
    artifacts, verdicts = {}, []
    for what in arguments.what or sorted(path.stem for path in VALUES.glob("*.yaml")):
        progress.now = f"rendering {what}"
        for source in _sources(what, arguments):
            artifacts[source.name] = _artifact(what)
            progress.now = f"judging {source.name}"
            verdicts.append(_verdict(source, scanner))
    # Once for all sources: what suppresses in one of them is not idle in another.
    violations = [violation for verdict in verdicts for violation in verdict.violations]
    left, suppressed = suppressions.apply(violations, excuses, datetime.date.today())
    for verdict in verdicts:
        mine = verdict.violations
        verdict.violations = [v for v in left if any(v is m for m in mine)]
        verdict.suppressed = [(s, v) for s, v in suppressed if any(v is m for m in mine)]
    verdicts[-1].violations += [v for v in left if v.layer == "suppressions"]
    return verdicts, artifacts


def _sources(what: str, arguments: argparse.Namespace) -> Sequence[Source]:
    if pathlib.Path(what).is_dir():
        found = folder(pathlib.Path(what), arguments.namespace)
    else:
        found = [environment(what, _environment.load(what), arguments.namespace)]
    return [
        dataclasses.replace(
            source,
            external=(*source.external, *arguments.external),
            digests=source.digests or arguments.require_digests,
        )
        for source in found
    ]


def _artifact(what: str) -> str:
    """The file that code scanning shows a result at: relative to the checkout where it is in it."""
    path = pathlib.Path(what) if pathlib.Path(what).is_dir() else _environment.path(what)
    path = path.resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_uri()


def _verdict(source: Source, scanner: Scanner) -> report.Verdict:
    started = time.monotonic()
    rules.refuse_unknown(source.judged)
    left_out = {i: why for i, why in NOT_APPLICABLE.items() if not (source.digests and i == DIGESTS)}
    scanner.ask(source.judged, source.namespace, which="all", skip=left_out)
    # Checkov works on in its own process.
    shaped = [o for o in (*source.objects, *source.roles) if o["apiVersion"] != DOCUMENT["apiVersion"]]
    findings = check(shaped, namespace=source.namespace, external=source.external)
    answer = scanner.answer()
    objects = {"schema", "cel", "name", "duplicate"}
    found = [
        report.Violation("objects" if f.rule in objects else "relations", f.rule, f.object, f.path, f.message)
        for f in findings
    ]
    found += [report.Violation("policies", **violation) for violation in answer["violations"]]
    found += [report.Violation("checkov", own["rule"], own["object"], "", own["name"]) for own in answer["built_in"]]
    return report.Verdict(
        source.name,
        found,
        objects=answer["objects"],
        judged=answer["judged"],
        built_in_rules=answer["built_in_rules"],
        not_applicable=left_out,
        notes=source.notes,
        seconds=time.monotonic() - started,
    )


class _Progress:
    """Says on a terminal's standard error what goes on, from the second second on."""

    def __init__(self) -> None:
        self.now = "loading checkov"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        said = ""
        while not self._ended.wait(2):
            if self.now != said:
                print(f"... {self.now}", file=sys.stderr, flush=True)
                said = self.now

    def __enter__(self) -> "_Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()


if __name__ == "__main__":
    sys.exit(main())
