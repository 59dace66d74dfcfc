"""The audit's report: its settings, every result with its route and interval, and the worst case."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..atomic import atomic_write
from ..attacking.threat import Threat
from ..errors import ConfigError, FileError, PurifierError
from ..vocabulary import Needs
from .certificate import Certificate, read_certificate
from .details import Details
from .detection import Detection
from .examples import Examples
from .partial import Partial
from .presets import PROBED
from .report_json import check_facts, flat, nested, read_report
from .report_versions import SCHEMA_VERSION
from .results import Results
from .statistics import Rate

FILE_NAME = "report.json"
WHITE_BOX = ("exact", "bpda")
"""The routes that see the purifier and follow gradients; no other result may be called white-box."""

OWN_ANSWERS = "answers of the undefended classifier"
"""Where the labels of data come from that has none of its own."""

Model = Literal["undefended", "guarded"]


@dataclass(frozen=True)
class Row:
    """One result: a model under one attack along one route.

    On the undefended classifier the route of gradient attacks is ``exact``, that of others ``none``.
    """

    model: Model
    attack: str
    """ATTACK spec, or ``none`` for clean images."""
    options: Mapping[str, Any]
    needs: Needs | None
    """What the attack needs; None for clean images, and in reports from before this was recorded."""
    route: str | None
    """None for clean images only."""
    threat: Threat | None
    eot: int
    """Number of noise draws a gradient was averaged over."""
    sequence: str | None
    """The sequence the attack was part of, or None if it got all images."""
    attacked: int
    """Number of images attacked; in a sequence those that earlier attacks left right."""
    result: Rate | None
    """Images right when clean and right under the attack, and in a sequence also under earlier attacks; averaged over
    judgements. None after an error. See ``right`` for guards that reject."""
    worst_of_n: Rate | None
    """Images right in every judgement, which is what an attacker leaves who submits each image that many times; None
    if there is only one."""
    majority: Rate | None
    """Images right in more than half of the judgements; None if there is only one."""
    right: Rate | None
    """Of a guard that marks images as rejected, images right and accepted, clean and under the attack; else None.
    ``result`` then counts clean images that are right and accepted, and under the attack also rejected ones."""
    rejected: Rate | None
    """Images rejected, whether right or wrong; None for models that mark no images as rejected."""
    queries_per_image: float
    """Images shown to the target per image attacked, including those shown for a gradient."""
    gradients_per_image: float
    scores_per_image: float
    """Purifier scores that the attack asked for; above 0 if it also attacked the detector."""
    seconds: float
    error: str | None = None
    detection: Detection | None = None
    """None for the undefended classifier, and after an error."""


@dataclass(frozen=True)
class Flag:
    """A sign that the figures are too high to be trusted."""

    name: str
    """A key of the catalogue of flags."""
    evidence: str
    """The observation in numbers."""


@dataclass(frozen=True)
class WorstCase:
    """The worst case of each image over all attacks of one threat: an image is right if it is right under each."""

    model: Model
    threat: Threat
    scope: Literal["all", "white-box"]
    routes: Sequence[str]
    """The routes combined in this case."""
    result: Rate
    worst_of_n: Rate | None
    majority: Rate | None
    complete: bool
    """False if an attack failed: the result is then only an upper bound."""
    multi_step: bool
    """Whether a white-box attack that took more than one step, or left no image right, is among them."""


@dataclass(frozen=True, repr=False)
class AuditReport:
    """The results of an audit; ``save`` writes them as JSON, ``load`` reads them."""

    created: str
    """UTC, ISO 8601."""
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    """``name``, ``count``, ``sha256`` of pixels and labels (of a partial report, of all images of the data), and
    ``classes``, the number of images of each label. Only if the labels are the undefended classifier's own answers,
    ``labels`` says so: what counts as right is then agreement with it. Only if images could not be read, ``skipped`` is
    how many were left out. Only if they were resized or cropped, ``framing`` says how."""
    classifier: Mapping[str, Any]
    """``description``, ``spec`` and ``weights_file`` if it came from a MODEL spec, ``sha256`` of its weights or graph,
    the number of its ``parameters``, and which ``output`` of which ``output_kind`` is its answer. Only if it has no
    gradients, ``queries_only`` says why: no figure is then white-box."""
    preprocessing: Mapping[str, Any]
    purifier: Mapping[str, Any] | None
    """Plugin and config; its PURIFIER ``spec`` as it was given, and the checkpoint's ``file`` name and ``sha256``, if
    it came from them; whether it is ``random``. None if the classifier was audited alone."""
    on_reject: str | None
    """What the guard does with rejected images; None without a guard."""
    abstain: int | None
    """The class that a guard with ``on_reject="abstain"`` gives rejected images; None for NaN."""
    on_bad_pixels: str | None
    """What the guard does with NaN, infinity and values out of range; None without a guard, or not recorded."""
    threats: Sequence[Threat]
    seed: int
    batch_size: int
    judgements: int
    eot: int
    device: str
    preset: str | None
    """The preset whose attacks are among the rows; None if none was used."""
    left_out: Sequence[str]
    """Why attacks of the preset did not run."""
    flags: Sequence[Flag]
    """Signs that the figures are too high to be trusted: masked gradients, a broken set-up."""
    worst_case: Sequence[WorstCase]
    calibration: Mapping[str, Any] | None
    """The threshold's ``fpr``, ``threshold``, ``data`` and ``count``; None if the purifier is not calibrated."""
    rows: Sequence[Row]
    probes: int = PROBED
    """Largest number of images used to look for flags; 0 in reports from before there were flags."""
    command: Sequence[str] | None = None
    """The command line that repeats the audit, if it was run from one."""
    gradient_check: Literal["float64", "float32"] | None = None
    """The precision in which gradients were compared with finite differences for ``gradient-wrong``: float32 if the
    models do not run in float64. None if they were not compared, or the report is older than this field."""
    class_names: Sequence[str] | None = None
    """The names of the classes, in the order of the labels; None if they are not known."""
    partial: Partial | None = None
    """Which images the report is about, if not about all of the data: it then has no verdict."""
    certificates: Sequence[Certificate] = ()
    """What is proven, for each threat that the purifier has bounds for."""
    schema_version: int = SCHEMA_VERSION
    details: Details | None = field(default=None, compare=False)
    """What is kept besides the JSON; see ``results`` and ``examples``."""

    def __repr__(self) -> str:
        """One line: what was audited, the headline for each threat, the number of rows, and the verdict."""
        counted = self.right + " or rejected" * self.rejects + " by queries only" * ("queries_only" in self.classifier)
        cases = [case for case in self.worst_case if case.model == self.model and case.scope == "all"]
        figures = [f"clean {row.result}" for row in self.rows if row.model == self.model and row.threat is None]
        figures += [f"{case.threat} worst case {case.result} {counted}" for case in cases]
        doubts = [*dict.fromkeys(flag.name for flag in self.flags), *([] if self.complete else ["an attack failed"])]
        doubts += [] if self.partial is None else [f"partial: {self.partial}"]
        verdict = "conclusive" if self.conclusive else f"inconclusive ({', '.join(doubts) or 'flags not looked for'})"
        about = f"{self.model} model, {self.data['count']} images of {self.data['name']}"
        return f"<AuditReport: {about}; {', '.join(figures)}; {len(self.rows)} rows; {verdict}>"

    @property
    def owner(self) -> dict[str, str]:
        """What the files beside ``report.json`` name, to tell whether they belong to it."""
        return {"created": self.created, "data_sha256": str(self.data["sha256"])}

    @property
    def results(self) -> Results | None:
        """The results of each image, read when first asked for; None if the audit kept none.

        Raises
        ------
        FileError
            ``results.npz`` is damaged, or belongs to another audit.
        """
        return None if self.details is None else self.details.results

    @property
    def examples(self) -> Examples | None:
        """A few images that fell and that held, read when first asked for; as ``results``."""
        return None if self.details is None else self.details.examples

    @property
    def rejects(self) -> bool:
        """Whether the audited model marks images as rejected."""
        return any(row.rejected for row in self.rows if row.model == self.model)

    @property
    def agreement(self) -> bool:
        """Whether the labels are the undefended classifier's own answers, so that no figure is an accuracy."""
        return self.data.get("labels") == OWN_ANSWERS

    @property
    def right(self) -> str:
        """What an image is that counts as right, in a word."""
        return "in agreement" if self.agreement else "right"

    @property
    def complete(self) -> bool:
        """Whether every attack finished without error."""
        return all(row.error is None for row in self.rows)

    @property
    def conclusive(self) -> bool:
        """Whether every attack on all images finished without error, flags were looked for, and none was raised."""
        return self.complete and self.partial is None and self.probes > 0 and not self.flags

    @property
    def model(self) -> Model:
        """The model that the audit is about."""
        return "undefended" if self.purifier is None else "guarded"

    def gate(self, least: float) -> list[WorstCase]:
        """The audited model's worst cases over all routes whose interval reaches below ``least``, a share in [0, 1].

        Raises
        ------
        ConfigError
            ``least`` is not in [0, 1], or the model was not attacked.
        """
        check_gate(least)
        cases = [case for case in self.worst_case if case.model == self.model and case.scope == "all"]
        if not cases:
            raise ConfigError("a gate needs an attack on the audited model; add one, or leave the gate out")
        return [case for case in cases if case.result.interval[0] < least]

    def to_json(self) -> str:
        """The report as JSON text; the fields of each ``result`` are merged into its row."""
        whole = dataclasses.asdict(dataclasses.replace(self, details=None))
        del whole["details"]
        for name in ("rows", "worst_case"):
            whole[name] = [flat(entry) for entry in whole[name]]
        return json.dumps({"schema_version": whole.pop("schema_version"), **whole}, indent=1, allow_nan=False) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write ``report.json`` into a folder, then the files of ``details``, each atomically; return its path."""
        path = atomic_write(Path(folder) / FILE_NAME, self.to_json())
        (self.details or Details(self.owner, (0, 0))).save(path.parent)
        return path

    @classmethod
    def load(cls, path: str | Path) -> AuditReport:
        """Read ``report.json``, or the one in a folder.

        Raises
        ------
        FileError
            The file is missing, is not a report, or has an unknown schema version.
        """
        path = Path(path, FILE_NAME) if Path(path).is_dir() else Path(path)
        found = read_report(path)
        try:
            check_facts(found)
            report = cls(
                **{
                    **found,
                    "threats": [Threat(**threat) for threat in found["threats"]],
                    "rows": [Row(**nested(row)) for row in found["rows"]],
                    "flags": [Flag(**flag) for flag in found["flags"]],
                    "worst_case": [WorstCase(**nested(case)) for case in found["worst_case"]],
                    "partial": found["partial"] and Partial(**found["partial"]),
                    "certificates": [read_certificate(one) for one in found["certificates"]],
                }
            )
            details = Details(report.owner, (len(report.rows), report.data["count"]), path.parent)
            return dataclasses.replace(report, details=details)
        except (KeyError, TypeError, ValueError, AttributeError, PurifierError) as error:
            raise FileError(f"{path} is not a complete report ({error!r}); run the audit again", path) from error


def check_gate(least: float, name: str = "gate") -> None:
    """Raise ``ConfigError`` unless ``least``, which the user knows as ``name``, is a share of images."""
    if not 0 <= least <= 1:
        raise ConfigError(f"{name}: expected a share of images in [0, 1], such as 0.5, got {least}")
