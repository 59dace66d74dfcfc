"""Which flags audits of broken guards raise, and audits of healthy ones.

``python tests/benchmarks/flags_table.py [--count 200] [--eps 0.1]`` runs the preset ``quick``, with one draw of noise
per gradient, on the broken guards of ``tests/auditing/controls.py``, on the nearest-mean classifier of the tests behind
each cheap purifier, and on the shipped classifier behind ``identity``, ``demo-plain`` and ``demo``. The audits of
``tests/auditing/mistaken.py`` run with their own attacks.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "auditing"))

import purifier
from audit_helpers import NearestMean
from controls import CONTROLS
from mistaken import MISTAKES
from purifier.data.loading import load_data
from purifier.guards.module import GuardedModule
from purifier.guards.session import GuardedSession


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="number of test images")
    parser.add_argument("--eps", type=float, default=0.1, help="budget in linf")
    given = parser.parse_args()
    data = load_data(f"fashion-mnist:test:{given.count}")
    pixels, _ = data.batch(range(len(data)))

    def show(name: str, guarded: GuardedModule | GuardedSession) -> None:
        show_report(name, purifier.audit(guarded, data, eps=given.eps, preset="quick", eot=1))

    def show_report(name: str, report: purifier.AuditReport) -> None:
        cases = [case for case in report.worst_case if case.model == "guarded" and case.scope == "white-box"]
        left = f"{cases[0].result.share:.1%}" if cases else "-"  # no attack was white-box
        raised = dict.fromkeys(flag.name for flag in report.flags)
        verdict = "conclusive" if report.conclusive else "inconclusive"
        print(f"{name:40s} {left:>9s} {verdict:12s} {', '.join(raised) or '-'}", flush=True)

    print(f"{data.name}, linf {given.eps:g}, preset quick\n{'guard':40s} {'white-box':9s} verdict      flags raised")
    for control in CONTROLS:
        show(control.name, purifier.guard(*control.make(NearestMean().eval(), pixels)))
    for mistake in MISTAKES:
        show_report(mistake.name, purifier.audit(**mistake.make(NearestMean().eval(), data), eps=given.eps, eot=1))
    for name in ("identity", "blur", "bit-depth"):
        show(f"healthy: {name}", purifier.guard(NearestMean().eval(), name))
    for name in ("identity", "demo-plain", "demo"):
        show(f"healthy: demo behind {name}", purifier.guard("demo", name))


if __name__ == "__main__":
    main()
