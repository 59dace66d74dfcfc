"""A guard as a folder in the layout of Hugging Face: config.json, model.safetensors and a model card.

The folder holds the purifier and how the guard treats images and answers, but not the classifier.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from torch import nn

from ..atomic import atomic_write
from ..classifiers.loading import read_classifier
from ..contracts.checkpoint import load, save
from ..contracts.purifier import Purifier
from ..data.pixels import Preprocessing
from ..errors import CheckpointError, ConfigError, about
from ..foreign_code import explained
from ..output import Output
from ..rejection.policy import Rejection

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1


class Pretrained:
    """Methods of guards, by the names that they have on models of Hugging Face."""

    def save_pretrained(self, folder: str | Path, *, report: Any = None) -> Path:
        """Write the purifier and the guard's options in the layout of Hugging Face, without the classifier.

        The folder gets ``config.json``, ``model.safetensors`` (a checkpoint, which ``purifier.load`` reads too) and a
        model card, ``README.md``, with the figures of an ``AuditReport`` given as ``report``. It needs the package
        huggingface_hub.
        """
        return write_folder(self, folder, report)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, classifier: Any, revision: str | None = None, **options: Any
    ) -> Self:
        """The guard that ``save_pretrained`` wrote, in front of ``classifier``.

        Parameters
        ----------
        source
            The folder, or the name of a repository on the Hugging Face Hub.
        classifier
            A torch module or a MODEL spec of one for a ``GuardedModule``, an ONNX file or model for a
            ``GuardedSession``; it is not changed.
        revision
            A branch, tag or commit of the repository.
        **options
            Options of this class, instead of those that were saved.
        """
        if issubclass(cls, nn.Module):
            classifier = _module(classifier)
        filter, saved = read_folder(source, revision)
        make: Callable[..., Self] = cls
        return make(classifier, filter, **{**saved, **options})


def _module(classifier: Any) -> nn.Module:
    model = read_classifier(classifier)[0] if isinstance(classifier, str | Path) else classifier
    if isinstance(model, nn.Module):
        return model
    raise ConfigError(
        f"classifier: expected a torch module, or a MODEL spec of one, got {type(model).__name__}; ONNX models are for "
        "GuardedSession"
    )


def write_folder(guard: Any, folder: str | Path, report: Any = None) -> Path:
    """Write a guard's purifier, options and card; each file atomically, ``config.json`` last.

    Parameters
    ----------
    guard
        A guarded module or session.
    folder
        Where to write; it may exist, and files of these names are replaced.
    report
        An ``AuditReport`` whose figures go into the card.

    Raises
    ------
    OutputError
        The folder cannot be written.
    ConfigError
        The package huggingface_hub is not installed.
    """
    folder = Path(folder)
    hub = _hub()
    rejection: Rejection = guard.rejection
    options = {
        "input": 0 if getattr(guard, "position", None) == 0 else guard.input,
        "score": guard.score,
        "preprocessing": dataclasses.asdict(guard.preprocessing),
        "output": dataclasses.asdict(guard.output),
        "on_reject": rejection.on_reject,
        "abstain": rejection.abstain,
        "on_bad_pixels": rejection.on_bad_pixels,
    }
    save(guard.purifier, folder / WEIGHTS)
    kind = type(guard.purifier).__name__
    facts = hub.ModelCardData(library_name="purifier", tags=["adversarial-robustness", "image-classification"])
    card = _card(kind, guard.pixel_classifier().describe(), report)
    atomic_write(folder / CARD, f"---\n{facts.to_yaml()}\n---\n\n{card}")
    config = {"format": FORMAT, "purifier": kind, "guard": options}
    atomic_write(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def read_folder(source: str | Path, revision: str | None = None) -> tuple[Purifier, dict[str, Any]]:
    """The purifier, and the arguments of a guard's class that go with it.

    Parameters
    ----------
    source
        A folder, or the name of a repository on the Hugging Face Hub (USER/NAME), which huggingface_hub downloads.
    revision
        A branch, tag or commit of the repository.

    Raises
    ------
    CheckpointError
        The folder is not there, not complete, or not a guard's.
    """
    folder = Path(source)
    if not folder.is_dir():
        failure = f"{source}: no folder of that name, and huggingface_hub cannot download it"
        with explained(failure, lambda message: CheckpointError(message, source)):
            wanted = {"revision": revision, "allow_patterns": [CONFIG, WEIGHTS]}
            folder = Path(_hub().snapshot_download(str(source), **wanted))
    with (
        about(str(folder / CONFIG)),
        explained(
            f"{folder / CONFIG}: expected the config.json of a guard",
            lambda message: CheckpointError(message, folder),
            "write the folder with guarded.save_pretrained",
        ),
    ):
        config = json.loads((folder / CONFIG).read_text())
        options = _options(config)
    return load(folder / WEIGHTS), options


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    if config["format"] != FORMAT:
        raise ValueError(f"format {config['format']}, this version reads {FORMAT}")
    options = dict(config["guard"])
    stored: dict[str, Any] = {
        name: tuple(one) if isinstance(one, list) else one for name, one in options["preprocessing"].items()
    }
    return {**options, "preprocessing": Preprocessing(**stored), "output": Output(**options["output"])}


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"expected the package huggingface_hub, which cannot be imported ({error}); install it with pip install "
            "'adversarial-purifier[hub]'"
        ) from error


def _card(kind: str, classifier: str, report: Any) -> str:
    figures = "It was not audited when this card was written." if report is None else _figures(report)
    return f"""# A purifier ({kind})

A learned filter in front of an image classifier, against adversarial noise. It was saved from a guard of {classifier};
the classifier is not in this folder.

```python
from purifier import GuardedModule  # or GuardedSession, for an ONNX classifier

guarded = GuardedModule.from_pretrained("this folder", classifier=classifier)
```

## Audit

{figures}
"""


def _figures(report: Any) -> str:
    lines = [
        f"Data: {report.data['name']}, {report.data['count']} images. Figures are shares of images that stay right.",
        "",
        "| threat | routes | model | share |",
        "| --- | --- | --- | --- |",
    ]
    clean = [("clean", "", row.model, row.result) for row in report.rows if row.threat is None]
    worst = [(str(case.threat), ", ".join(case.routes), case.model, case.result) for case in report.worst_case]
    for threat, routes, model, result in [*clean, *worst]:
        low, high = result.interval
        lines.append(f"| {threat} | {routes} | {model} | {result.share:.1%} [{low:.1%}, {high:.1%}] |")
    flags = sorted({flag.name for flag in report.flags})
    lines += ["", f"Flags: {', '.join(flags)}; the audit is inconclusive." if flags else "No flags."]
    return "\n".join(lines)
