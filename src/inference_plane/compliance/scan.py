"""Runs checkov over renders: one JSON line in, one JSON line out, until standard input ends.

    in:  {"objects": [...], "namespace": "inference", "which": "all", "skip": ["CKV_K8S_8"]}
    out: {"violations": [...], "built_in": [...], "judged": {...}, "objects": 92, "rules": 40, "errors": [...]}

Belongs to checkov's own environment (`policies/requirements.lock`). Checkov answers "nothing wrong" in several ways
when it has looked at nothing: a folder of rules without `__init__.py`, a rule that fails to import, a file that holds
`{{ .Values.`, an object with an odd name. So the answer counts: each object must be among what checkov took in, each
rule on disk among what it loaded, and each pair of a rule and an object of its kinds must have a verdict of both
checkov and the rule. Whatever is missing is an error, and then nothing was judged.
"""

import contextlib
import json
import logging
import os
import pathlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("CHECKOV_PARALLELIZATION_TYPE", "none")  # Processes cost more than so few files are worth.
os.environ.setdefault("CHECKOV_RUN_IN_DOCKER", "false")
logging.disable(logging.WARNING)

from checkov.common.models.enums import CheckResult  # noqa: E402
from checkov.kubernetes.checks.resource.registry import registry  # noqa: E402
from checkov.kubernetes.runner import Runner  # noqa: E402
from checkov.runner_filter import RunnerFilter  # noqa: E402

from inference_plane.compliance import checkov_check, rules  # noqa: E402
from inference_plane.kube import Index, name_of  # noqa: E402


def load(policies: pathlib.Path = rules.POLICIES) -> None:
    """Has checkov load both packs.

    Raises:
        rules.RuleError: checkov left a rule out, in silence or with a word to its log.
    """
    for pack in rules.PACKS:
        registry.load_external_checks(str(policies / pack))
    rules.verify(policies)
    if missing := set(rules.RULES) - {check.id for checks in _by_kind().values() for check in checks}:
        raise rules.RuleError(f"checkov did not register {', '.join(sorted(missing))}")


def _by_kind() -> dict[str, list[Any]]:
    return {**registry.checks, **registry.wildcard_checks}


def scan(objects: Sequence[Mapping], namespace: str, which: str, skip: Sequence[str] = ()) -> dict[str, Any]:
    """What `which` says of one render: the rules of the `packs`, or `all`, checkov's own but for those of `skip` too.

    Violations have `rule`, `object`, `path` and `message`; checkov's own have `rule`, `object` and `name`. `judged`
    counts the objects that each rule judged. `errors` says why the answer may not be trusted.
    """
    files = {f"{number:05}.json": obj for number, obj in enumerate(objects)}
    current = checkov_check.current = checkov_check.Scan(files, Index(objects, namespace, ()))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for file, obj in files.items():
            pathlib.Path(folder, file).write_text(json.dumps(obj))
        chosen = {"checks": sorted(rules.RULES)} if which == "packs" else {"skip_checks": sorted(skip)}
        report = Runner().run(root_folder=folder, runner_filter=RunnerFilter(framework=["kubernetes"], **chosen))
    records = {
        (record.file_path.rsplit("/", 1)[-1], record.check_id): record.check_result["result"]
        for record in (*report.passed_checks, *report.failed_checks, *report.skipped_checks)
    }
    taken = {resource.split(":", 1)[0].rsplit("/", 1)[-1] for resource in report.resources}
    errors = [f"checkov did not take in {name_of(files[file])}" for file in sorted(set(files) - taken)]
    errors += [f"checkov could not parse {name_of(files[file.rsplit('/', 1)[-1]])}" for file in report.parsing_errors]
    violations, judged = [], dict.fromkeys(sorted(rules.RULES), 0)
    for file, obj in files.items():
        for rule in rules.RULES.values():
            if not rule.claims(obj):
                continue
            said, verdict = current.said.get((file, rule.id)), records.get((file, rule.id))
            if said is None or verdict != (CheckResult.FAILED if said else CheckResult.PASSED):
                errors.append(f"{rule.id} has no sure verdict on {name_of(obj)}: checkov says {verdict}")
                continue
            judged[rule.id] += 1
            violations += [
                {"rule": rule.id, "object": name_of(obj), "path": path, "message": message} for path, message in said
            ]
    own = [
        {
            "rule": record.check_id,
            "object": name_of(files[record.file_path.rsplit("/", 1)[-1]]),
            "name": record.check_name,
        }
        for record in report.failed_checks
        if record.check_id not in rules.RULES
    ]
    return {
        "violations": violations,
        "built_in": own,
        "judged": judged,
        "objects": len(files),
        "rules": len(rules.RULES),
        "built_in_rules": len({check for _, check in records} - set(rules.RULES)),
        "errors": errors,
    }


def main() -> int:
    answers = os.fdopen(os.dup(1), "w")  # Whatever checkov prints goes to standard error, not between the answers.
    os.dup2(2, 1)
    try:
        load()
    except Exception as error:  # A rule that cannot be loaded must not be a rule less.
        print(json.dumps({"errors": [f"the rules did not load: {type(error).__name__}: {error}"]}), file=answers)
        return 2
    for line in sys.stdin:
        try:
            answer = scan(**json.loads(line))
        except Exception as error:
            answer = {"errors": [f"the scan ended early: {type(error).__name__}: {error}"]}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
