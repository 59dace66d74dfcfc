"""Make ``docs/benchmarks.md``, and the table in ``docs/onnx.md``, from the figures in ``tests/benchmarks/results``.

``python tests/benchmarks/benchmarks_page.py`` fills the template ``benchmarks_page.md`` beside this file and writes the
page, and replaces what is between two comments in ``docs/onnx.md``. ``--check`` writes nothing and exits 1 if a page on
disk differs.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from string import Template

from figures import (
    MEASURED,
    RESULTS,
    ROOT,
    load_reports,
    measured_source,
    measured_table,
    read_measured,
    report_paths,
    reports_source,
    scope,
)
from markdown_table import markdown_table, rate_cell
from published_tables import (
    CLASSIFIERS,
    Key,
    classifier_table,
    finished_audits,
    notes,
    spread,
    transfer_table,
)
from robust_table import ALL_ROUTES, CLEAN, WHITE_BOX_ROUTES, WORST, Audited, rates, robust_table

from purifier import AuditReport

TEMPLATE = Path(__file__).with_suffix(".md")
PAGE = ROOT / "docs" / "benchmarks.md"
HEADER = (
    "<!-- Made by `python tests/benchmarks/benchmarks_page.py`. Edit tests/benchmarks/benchmarks_page.md or the "
    "figures in tests/benchmarks/results, not this page. -->\n\n"
)
ONNX_PAGE = ROOT / "docs" / "onnx.md"
ZOO_BEGIN = "<!-- Made by `python tests/benchmarks/benchmarks_page.py` from results/measured/onnx-zoo.json. -->"
ZOO_END = "<!-- The end of what is made. -->"
ROBUST = RESULTS / "robust"
COLOUR = RESULTS / "cifar" / "colour-32"
COLOUR_ROWS = {
    "stock": ("stock", "`colour-32`, which learned with it"),
    "resnet20": ("ResNet-20", "`colour-32`, which has never seen it"),
    "resnet20-trained": ("ResNet-20", "trained on for it"),
    "resnet56": ("ResNet-56", "`colour-32`, which has never seen it"),
    "resnet56-trained": ("ResNet-56", "trained on for it"),
}
"""Folders of reports, and what the first two columns say of each."""
PHOTOS = RESULTS / "photos"
PHOTO_ROWS = {
    "64-first": ("64x64", "20 epochs with `clean=1`"),
    "64": ("64x64", "then 5 with `clean=4`"),
    "224-first": ("224x224", "20 epochs with `clean=1`"),
    "224": ("224x224", "then 5 with `clean=4`"),
}
"""Folders of reports, and what the first two columns say of each."""
CPU_COUNT, CPU_YARDSTICK_COUNT = 3750, 1250
"""Images of which there are reports from a CPU and, in whole parts, from the GPU."""
FGSM, PGD_01, PGD_03 = ("fgsm", "linf 0.3", "oblivious"), ("pgd", "linf 0.1", "exact"), ("pgd", "linf 0.3", "exact")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    given = parser.parse_args()
    for path, page in ((PAGE, benchmarks_page()), (ONNX_PAGE, onnx_page())):
        if given.check:
            check(path, page)
        else:
            path.write_text(page, encoding="utf-8", newline="\n")
            print(f"{path.name}: {len(page.encode()):,} bytes")


def check(path: Path, page: str) -> None:
    found = path.read_text(encoding="utf-8") if path.exists() else ""
    if found != page:
        lines = [text.splitlines() for text in (found, page)]
        print(*difflib.unified_diff(*lines, "on disk", "made", n=0, lineterm=""), sep="\n")
        raise SystemExit(f"{path.name} is out of date; run python tests/benchmarks/benchmarks_page.py")


def onnx_page() -> str:
    """``docs/onnx.md`` with the table of the zoo as it is in the results."""
    before, _, rest = ONNX_PAGE.read_text(encoding="utf-8").partition(ZOO_BEGIN)
    zoo = read_measured(MEASURED / "onnx-zoo.json")
    made = [ZOO_BEGIN, measured_table(zoo.tables["files"]), measured_source(zoo.source), ZOO_END]
    return before + "\n\n".join(made) + rest.partition(ZOO_END)[2]


def benchmarks_page() -> str:
    values = (
        robust_values()
        | small_values()
        | cpu_values()
        | validation_values()
        | colour_values()
        | photo_values()
        | published_values()
        | measured_values()
    )
    return HEADER + Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def robust_values() -> dict[str, str]:
    """The shipped purifier: PGD on all test images, and preset ``standard``."""
    pgd = load_reports(ROBUST / "demo-pgd")
    folder = ROBUST / "demo"
    reports = load_reports(folder)
    columns = {"classifier alone": Audited("undefended", reports), "`demo`": Audited("guarded", reports)}
    first, white_box, last, total = masked(columns["`demo`"])
    return {
        "pgd_scope": scope(pgd),
        "pgd_table": robust_table({"classifier alone": Audited("undefended", pgd), "`demo`": Audited("guarded", pgd)}),
        "pgd_source": reports_source(ROBUST / "demo-pgd", pgd),
        "robust_scope": scope(reports),
        "robust_table": robust_table(columns),
        "robust_lost": f"{100 * (first - last) / total:.1f}",
        "robust_square": f"{100 * (white_box - last) / total:.1f}",
        "robust_source": reports_source(folder, reports),
    }


def masked(audited: Audited) -> tuple[float, float, float, int]:
    """Images correct after the first attack, along the white-box routes and along all, and how many there were."""
    found = rates("", audited)
    first, white_box, last = (
        found[key].correct for key in (("apgd-ce", "exact"), (WORST, WHITE_BOX_ROUTES), (WORST, ALL_ROUTES))
    )
    return first, white_box, last, found[CLEAN, ""].count


def small_values() -> dict[str, str]:
    """Preset ``standard`` on all test images: the small VAE and its yardstick."""
    folder = ROBUST / "cuda"
    purifier, yardstick = load_reports(folder / "purifier"), load_reports(folder / "yardstick")
    columns = {"small VAE": Audited("guarded", purifier), "yardstick": Audited("undefended", yardstick)}
    ours, theirs = (rates(title, audited) for title, audited in columns.items())
    first, white_box, last, total = masked(columns["small VAE"])
    worst, clean = (ours[key].correct - theirs[key].correct for key in ((WORST, ALL_ROUTES), (CLEAN, "")))
    return {
        "small_scope": scope(purifier),
        "small_table": robust_table(columns),
        "small_gap": f"The small VAE is correct on {more(worst)} than the yardstick in the worst case, and on "
        f"{more(clean)} if they are clean.",
        "small_lost": f"{100 * (first - last) / total:.1f}",
        "small_square": f"{100 * (white_box - last) / total:.1f}",
        "small_source": reports_source(folder, [*purifier, *yardstick]),
    }


def more(count: float) -> str:
    return f"{abs(count):,.0f} {'more' if count >= 0 else 'fewer'} images"


def cpu_values() -> dict[str, str]:
    """The first images again, counted on a CPU."""
    columns: dict[str, Audited] = {}
    differences: list[float] = []
    every: list[AuditReport] = []
    for name, title, count in (("purifier", "small VAE", CPU_COUNT), ("yardstick", "yardstick", CPU_YARDSTICK_COUNT)):
        pair = []
        for device, machine in (("cpu", "CPU"), ("cuda", "H100")):
            reports = reports_up_to(ROBUST / device / name, count)
            pair.append(Audited("guarded" if name == "purifier" else "undefended", reports))
            columns[f"{title}, {machine}"] = pair[-1]
        every += pair[0].reports
        here, there = (rates(title, audited) for audited in pair)
        differences += [abs(here[key].correct - there[key].correct) for key in here]
    return {
        "cpu_count": f"{CPU_COUNT:,}",
        "cpu_yardstick_count": f"{CPU_YARDSTICK_COUNT:,}",
        "cpu_table": robust_table(columns),
        "cpu_difference": f"{max(differences):.0f}",
        "cpu_source": reports_source(ROBUST / "cpu", every),
    }


def reports_up_to(folder: Path, last: int) -> list[AuditReport]:
    """Reports in folders named ``FIRST-LAST`` after their images, those that end at ``last`` or before."""
    return [AuditReport.load(path) for path in report_paths(folder) if int(path.parent.name.split("-")[1]) <= last]


def validation_values() -> dict[str, str]:
    folder = ROBUST / "validation"
    titles = {"demo": "`demo`", "purifier": "small VAE", "yardstick": "yardstick"}
    reports = {title: load_reports(folder / name) for name, title in titles.items()}
    return {
        "validation_scope": scope(reports["small VAE"]),
        "validation_table": robust_table({title: Audited("guarded", of) for title, of in reports.items()}),
        "validation_source": reports_source(folder, [each for of in reports.values() for each in of]),
    }


def colour_values() -> dict[str, str]:
    """The shipped colour purifier in front of classifiers that it has seen and has not seen."""
    rows, every = [], []
    for name, titles in COLOUR_ROWS.items():
        report = AuditReport.load(COLOUR / name / "report.json")
        every.append(report)
        alone, guarded = (rates("", Audited(model, [report])) for model in ("undefended", "guarded"))
        asked = [alone[CLEAN, ""], alone[WORST, ALL_ROUTES], guarded[CLEAN, ""], guarded[WORST, ALL_ROUTES]]
        rows.append([*titles, *map(rate_cell, asked)])
    columns = ["classifier", "purifier", "alone, clean", "alone, attacked", "guarded, clean", "guarded, attacked"]
    return {
        "colour_scope": scope(every[:1]),
        "colour_table": markdown_table(columns, rows),
        "colour_source": reports_source(COLOUR, every),
    }


def photo_values() -> dict[str, str]:
    """EfficientNet-Lite0 behind a purifier with a skip: agreement on clean photos, and worst cases."""
    reports = [AuditReport.load(PHOTOS / name / "report.json") for name in PHOTO_ROWS]
    rows = []
    for titles, report in zip(PHOTO_ROWS.values(), reports, strict=True):
        clean = next(row.result for row in report.rows if row.model == "guarded" and row.threat is None)
        worst = [case.result for case in report.worst_case if case.model == "guarded" and case.scope == "all"]
        rows.append([*titles, rate_cell(clean), *map(rate_cell, worst)])
    budgets = (f"worst case at {threat.eps * 255:g}/255" for threat in reports[0].threats)
    return {
        "photos_table": markdown_table(["photos", "training", "agreement, clean", *budgets], rows),
        "photos_source": reports_source(PHOTOS, reports),
    }


def published_values() -> dict[str, str]:
    folder = RESULTS / "published"
    audits = finished_audits(folder)
    tables = [f"### Classifier {name.upper()}\n\n{classifier_table(audits, name)}" for name in CLASSIFIERS]

    def among(key: Key, *defences: str) -> str:
        return spread(audits, defences, key)

    return {
        "published_tables": "\n\n".join(tables),
        "published_notes": listed(notes(audits)),
        "transfer_table": transfer_table(audits),
        "published_source": reports_source(folder, [each.report for each in audits]),
        "defense_vae_oblivious": among(FGSM, "defense-vae"),
        "defense_vae_exact_03": among(PGD_03, "defense-vae"),
        "defense_vae_exact_01": among(PGD_01, "defense-vae"),
        "defense_gan_oblivious": among(FGSM, "defense-gan"),
        "defense_gan_exact_03": among(PGD_03, "defense-gan"),
        "robust_exact_01": among(PGD_01, "ours-for-a", "ours-for-a-d"),
        "robust_exact_03": among(PGD_03, "ours-for-a", "ours-for-a-d"),
    }


def listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def measured_values() -> dict[str, str]:
    """``FILE_TABLE`` and ``FILE_source`` for each file of measured figures."""
    values: dict[str, str] = {}
    for path in sorted(MEASURED.glob("*.json")):
        name, measured = path.stem.replace("-", "_"), read_measured(path)
        values |= {f"{name}_{title}": measured_table(rows) for title, rows in measured.tables.items()}
        values[f"{name}_source"] = measured_source(measured.source)
    return values


if __name__ == "__main__":
    main()
