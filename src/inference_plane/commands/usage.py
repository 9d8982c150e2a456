"""Adds up the tokens in the audit lines of routers and engines, by team, cost center, model, version and backend."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from typing import Any

import rich.box
import rich.console
import rich.table

from inference_plane import usage

EPILOG = """\
examples:
  kubectl -n inference logs -l app.kubernetes.io/part-of=inference-plane --tail -1 --since 24h > lines.log
  scripts/usage lines.log
  scripts/usage --csv router.log engines-*.log > november.csv
  zcat archive/*.gz | scripts/usage --json -

Lines that are no audit lines are skipped. docs/metering.md says what is exact and what is estimated. Exits 2 where a
file cannot be read or holds no audit line.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/usage", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", metavar="LOG", nargs="+", help="a file of lines; - is standard input")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="CSV on stdout, the checks on stderr")
    form.add_argument("--json", action="store_true", help="JSON with the checks")
    arguments = parser.parse_args(argv)
    lines = usage.Lines()
    try:
        for name in arguments.logs:
            if name == "-":
                lines.read(sys.stdin)
            else:
                with open(name, encoding="utf-8", errors="replace") as file:
                    lines.read(file)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}. Name files of log lines, or - for stdin.", file=sys.stderr)
        return 2
    if not lines.requests and not lines.strays:
        print(
            f"error: no audit line in {', '.join(arguments.logs)}. They are JSON with a `type` of "
            f"{', '.join(usage.TYPES)}: stderr and stdout of the router's pods, stdout of the engines'.",
            file=sys.stderr,
        )
        return 2
    made = usage.report(lines)
    if arguments.json:
        document = {"rows": usage.rows(made), "total": vars(made.total()), "checks": checks(lines, made)}
        print(json.dumps(document, indent=2))
    elif arguments.csv:
        writer = csv.DictWriter(sys.stdout, usage.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(usage.rows(made))
        _print_checks(lines, made, sys.stderr)
    else:
        console = rich.console.Console()
        if not console.is_terminal:
            console = rich.console.Console(width=150)
        console.print(table(made))
        _print_checks(lines, made, sys.stdout)
    return 0


def checks(lines: usage.Lines, made: usage.Report) -> dict[str, Any]:
    """How far the sums can be trusted."""
    return {
        "requests": sum(1 for request in lines.requests.values() if request.router),
        "lost": dict(made.lost),
        "without_engine_line": made.without_engine,
        "engine_lines_without_request": made.without_router,
        "tries_of_unknown_cost": made.unknown,
        "unreadable_lines": lines.unreadable,
        "tokens_by_source": dict(made.sources),
    }


def _print_checks(lines: usage.Lines, made: usage.Report, file: Any) -> None:
    found = checks(lines, made)
    lost = ", ".join(f"{count} last seen at the {place}" for place, count in sorted(found["lost"].items()))
    tokens = ", ".join(f"{count} by {source}" for source, count in sorted(found["tokens_by_source"].items()) if count)
    for what, value in (
        ("requests", found["requests"]),
        ("started without an end", lost or 0),
        ("answers of the fleet without an engine line", found["without_engine_line"]),
        ("engine lines without a router line", found["engine_lines_without_request"]),
        ("tries whose engine could not say what they cost", found["tries_of_unknown_cost"]),
        ("lines that were cut", found["unreadable_lines"]),
        ("tokens", tokens or 0),
    ):
        print(f"{what}: {value}", file=file)


def table(made: usage.Report) -> rich.table.Table:
    """For a person; the last row is the sum."""
    drawn = rich.table.Table(box=rich.box.SIMPLE, show_footer=True)
    total = vars(made.total())
    for name in usage.FIELDS:
        number = name in total
        drawn.add_column(
            name.removesuffix("_tokens").replace("_", " "),
            footer=f"{total[name]:,}" if number else "",
            justify="right" if number else "left",
        )
    for row in usage.rows(made):
        drawn.add_row(*(f"{value:,}" if isinstance(value, int) else value or "-" for value in row.values()))
    return drawn


if __name__ == "__main__":
    sys.exit(main())
