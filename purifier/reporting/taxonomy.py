"""What MITRE ATLAS and NIST AI 100-2 call the attacks of a report and what a guard does against them."""

from __future__ import annotations

from dataclasses import dataclass

from ..auditing.report import WHITE_BOX, AuditReport, Row

ATLAS_VERSION = "5.6.0"
ATLAS_URL = "https://atlas.mitre.org"
NIST_NAME = "NIST AI 100-2e2025"


@dataclass(frozen=True)
class Term:
    """An entry of ATLAS, and the term of NIST AI 100-2 for the same."""

    id: str
    name: str
    nist: str

    @property
    def atlas(self) -> str:
        """Its identifier and name."""
        return f"{self.id} {self.name}"


EVADE = Term("AML.T0015", "Evade AI Model", "evasion attack")
WHITE_BOX_ATTACK = Term("AML.T0043.000", "White-Box Optimization", "white-box evasion attack")
SCORE_ATTACK = Term("AML.T0043.001", "Black-Box Optimization", "black-box evasion attack, score-based")
LABEL_ATTACK = Term("AML.T0043.001", "Black-Box Optimization", "black-box evasion attack, decision-based")
TRANSFER_ATTACK = Term("AML.T0043.002", "Black-Box Transfer", "black-box evasion attack by transfer")
TECHNIQUES = (EVADE, WHITE_BOX_ATTACK, SCORE_ATTACK, TRANSFER_ATTACK)
RESTORATION = Term("AML.M0010", "Input Restoration", "mitigation of evasion attacks")
DETECTION = Term("AML.M0015", "Adversarial Input Detection", "mitigation of evasion attacks")


def technique_of(row: Row) -> Term | None:
    """How the attack of a row looks for its images; None for clean images.

    Only attacks that follow gradients of all that they are judged on are white-box.
    """
    if row.threat is None:
        return None
    if row.route in WHITE_BOX:
        return WHITE_BOX_ATTACK
    if row.route == "oblivious" or row.gradients_per_image > 0:
        return TRANSFER_ATTACK
    return LABEL_ATTACK if row.needs == "labels" else SCORE_ATTACK


def mitigations_of(report: AuditReport) -> list[Term]:
    """What the audited guard does against evasion."""
    found = [] if report.purifier is None else [RESTORATION]
    return [*found, DETECTION] if report.rejects else found
