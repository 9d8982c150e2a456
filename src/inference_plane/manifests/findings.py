"""What a check has to say about one rendered object."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a rendered object.

    `object` names it as `apps/v1 Deployment models/clinical-summary`, `path` is the field as `kubectl explain`
    spells it with list indices (empty for the whole object), `rule` is the short name of the check that found it,
    and `message` says what is wrong and what to set.
    """

    object: str
    path: str
    rule: str
    message: str

    def __str__(self) -> str:
        where = f"{self.object}: {self.path}" if self.path else self.object
        return f"{where}: {self.message} [{self.rule}]"
