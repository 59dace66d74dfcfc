"""What a guard costs in time, as far as an audit shows it."""

from __future__ import annotations

from ..auditing.report import AuditReport
from .summary import clean_row


def cost_text(report: AuditReport) -> str | None:
    """How long the guard and the classifier alone took for a clean image; None without a guard or without the times.

    The times are those of judging clean images, once for each judgement of a random guard. The guard's includes the
    purifier's score, which the audit always asks for, so it is an upper bound.
    """
    guarded, alone = (clean_row(report, model) for model in ("guarded", "undefended"))
    if report.purifier is None or guarded is None or alone is None or not (guarded.seconds and alone.seconds):
        return None
    count = report.data["count"]
    milliseconds = 1000 * guarded.seconds / count / report.judgements, 1000 * alone.seconds / count
    return (
        f"In this audit the guard, its score included, took {milliseconds[0]:.2g} ms for a clean image, and the "
        f"classifier alone {milliseconds[1]:.2g} ms, in batches of {min(report.batch_size, count)} on {report.device}. "
        "Measured in passing; purifier bench lets both take turns."
    )
