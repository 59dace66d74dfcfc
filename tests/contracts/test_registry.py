"""The registry: lazy, exact about clashes, unharmed by a broken plugin. Third parties are real installed metadata."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from purifier.attacking.attack import attacks
from purifier.contracts.purifier import Purifier, purifiers
from purifier.contracts.registry import Registry
from purifier.errors import PluginClashError, PluginError
from purifier.guards.exporter import exporters


def distribution(folder: Path, name: str, entries: str, modules: dict[str, str] | None = None) -> None:
    """What an installer leaves in site-packages for a distribution with entry points."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(entries)
    for module, text in (modules or {}).items():
        (folder / f"{module}.py").write_text(text)


def test_built_ins_are_listed_and_loaded() -> None:
    assert {"vae", "identity", "blur", "bit-depth"} <= set(purifiers)
    assert {"fgsm", "rfgsm", "pgd"} <= set(attacks.names())
    assert exporters.names() == ["onnx", "torch", "triton"]
    assert issubclass(purifiers.get("vae"), Purifier)
    assert purifiers.name_of(purifiers.get("bit-depth")) == "bit-depth"


def test_listing_imports_no_plugin() -> None:
    code = (
        "import sys; from purifier import purifiers, attacks; purifiers.names(); attacks.entries();"
        "loaded = [m for m in sys.modules if m.startswith('purifier.plugins')]; assert not loaded, loaded;"
        "purifiers.get('identity'); assert 'purifier.plugins.purifiers.vae' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_missing_plugin_names_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"no plugin 'vea'; did you mean 'vae'\?.*Installed: .*identity"):
        purifiers.get("vea")
    with pytest.raises(PluginError, match=r"no plugin 'zzz'\. Installed: .*identity"):
        purifiers.get("zzz")


def test_a_re_exported_plugin_has_its_name_and_no_other_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = "[purifier.purifiers]\naaa-other = acme_other:X\nreex = acme_reex:Outer.P [extra]\n"
    modules = {
        "acme_other": "raise RuntimeError('imported')",
        "_acme_impl": (
            "from purifier import Purifier\nclass P(Purifier):\n Config = object\n gradient = 'exact'\n"
            " def purify(self, pixels, noise=None): return pixels\n"
        ),
        "acme_reex": "import _acme_impl\nclass Outer: P = _acme_impl.P\n",
    }
    distribution(tmp_path, "acme-reex", entries, modules)
    monkeypatch.syspath_prepend(tmp_path)
    assert purifiers.name_of(purifiers.get("reex")) == "reex"
    assert purifiers.get("reex").__module__ == "_acme_impl"
    assert "acme_other" not in sys.modules


def test_clash_names_both_distributions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in ("acme-filters", "zeta-filters"):
        distribution(tmp_path / owner, owner, f"[purifier.purifiers]\nmedian = {owner[:4]}_filter:Median\n")
        monkeypatch.syspath_prepend(tmp_path / owner)
    with pytest.raises(PluginClashError, match="acme-filters and by zeta-filters") as raised:
        purifiers.get("median")
    assert raised.value.distributions == ("acme-filters", "zeta-filters")
    assert purifiers.names().count("median") == 1
    assert issubclass(purifiers.get("identity"), Purifier)


def test_third_party_cannot_take_a_built_in_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "acme-filters", "[purifier.purifiers]\nvae = acme:Vae\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginClashError, match="acme-filters and by adversarial-purifier"):
        purifiers.get("vae")


def test_broken_plugin_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = "[purifier.purifiers]\nbroken = acme_broken:X\nabsent = acme_gone:X\nforeign = acme_foreign:X\n"
    modules = {"acme_broken": "raise RuntimeError('no licence')", "acme_foreign": "class X: pass"}
    distribution(tmp_path, "acme-broken", entries, modules)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError, match=r"'broken' of acme-broken 1.2 .*failed to import \(RuntimeError: no licence"):
        purifiers.get("broken")
    with pytest.raises(PluginError, match="No module named 'acme_gone'"):
        purifiers.get("absent")
    with pytest.raises(PluginError, match="must be a subclass of Purifier"):
        purifiers.get("foreign")
    assert "broken" in purifiers
    assert issubclass(purifiers.get("vae"), Purifier)


def test_register_for_one_process() -> None:
    registry: Registry[int] = Registry("purifier.test-nothing", int)
    registry.register("flag", bool)
    assert registry.get("flag") is bool
    assert registry.name_of(bool) == "flag"
    with pytest.raises(PluginClashError, match="already provided by register"):
        registry.register("flag", bool)
    with pytest.raises(PluginError, match="must be a subclass of int"):
        registry.register("text", str)  # type: ignore[arg-type]
    registry.unregister("flag")
    with pytest.raises(PluginError, match="no plugin 'flag'"):
        registry.get("flag")
    with pytest.raises(PluginError, match="not added by register"):
        registry.unregister("flag")


def test_plugin_must_declare_its_gradient() -> None:
    with pytest.raises(PluginError, match="must declare Config and gradient"):

        class Silent(Purifier):
            def purify(self, pixels, noise=None):
                return pixels
