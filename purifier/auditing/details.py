"""What a report keeps besides its JSON: results of each image, examples, and on request all adversarial images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ..errors import FileError
from .arrays import Array, read_arrays, write_arrays
from .examples import ADVERSARIAL_FILE, EXAMPLES_FILE, Examples, read_examples
from .results import RESULTS_FILE, Results, read_results

Kept = TypeVar("Kept")


class Details:
    """Results and examples in memory, or in files that are read when they are first asked for.

    Parameters
    ----------
    owner
        What the files must name: see ``arrays.OWNER``.
    shape
        The report's number of rows and of images.
    folder
        Where the files are; None if they are given, or if there are none.
    """

    def __init__(
        self,
        owner: Mapping[str, str],
        shape: tuple[int, int],
        folder: Path | None = None,
        *,
        results: Results | None = None,
        examples: Examples | None = None,
        adversarial: Mapping[str, Array] | None = None,
    ) -> None:
        self._owner, self._shape, self._folder = dict(owner), shape, folder
        self._given = results, examples
        self._adversarial = adversarial

    @cached_property
    def results(self) -> Results | None:
        """None if the audit kept none."""
        return self._kept(RESULTS_FILE, lambda arrays: read_results(arrays, *self._shape)) or self._given[0]

    @cached_property
    def examples(self) -> Examples | None:
        """None if the audit kept none."""
        return self._kept(EXAMPLES_FILE, lambda arrays: read_examples(arrays, self._shape[0])) or self._given[1]

    @property
    def adversarial(self) -> Mapping[str, Array] | None:
        """``row3`` -> the images (n, C, H, W) that the attack of row 3 found, ``row3_indices`` -> their positions in
        the data (n,); None if they were not kept."""
        found = self._read(ADVERSARIAL_FILE)
        return self._adversarial if found is None else found

    def save(self, folder: Path) -> None:
        """Write what there is into a folder; what another audit left there under the same names is removed."""
        if self._folder is not None and self._folder.resolve() == folder.resolve():
            return
        results, examples, adversarial = self.results, self.examples, self.adversarial
        for name, arrays in (
            (RESULTS_FILE, results and vars_of(results)),
            (EXAMPLES_FILE, examples and vars_of(examples)),
            (ADVERSARIAL_FILE, adversarial),
        ):
            if arrays:
                write_arrays(folder / name, arrays, self._owner)
            else:
                (folder / name).unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Array] | None:
        if self._folder is None or not (self._folder / name).exists():
            return None
        return read_arrays(self._folder / name, self._owner)

    def _kept(self, name: str, read: Callable[[Mapping[str, Array]], Kept]) -> Kept | None:
        found = self._read(name)
        try:
            return None if found is None else read(found)
        except (KeyError, ValueError) as error:
            path = Path(self._folder or ".", name)
            raise FileError(f"{path} does not fit its report ({error}); run the audit again", path) from error


def vars_of(found: Results | Examples) -> dict[str, Array]:
    """The arrays by name, without what was computed from them."""
    return {name: vars(found)[name] for name in type(found).__dataclass_fields__}
