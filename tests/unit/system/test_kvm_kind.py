"""Which KVM there is, and which snapshots can go on on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ramet.system.kvm_kind import UNKNOWN, kvm_kind, why_not_here


@pytest.mark.parametrize(
    ("modules", "kind"),
    [
        ([], UNKNOWN),
        (["kvm"], UNKNOWN),
        (["kvm", "kvm_intel"], "kvm_intel"),
        (["kvm", "kvm_amd"], "kvm_amd"),
        (["kvm", "kvm_pvm"], "kvm_pvm"),
        (["kvm", "kvm_intel", "kvm_pvm"], "kvm_pvm"),
    ],
)
def test_the_kind_is_the_modules_name(tmp_path: Path, modules: list[str], kind: str) -> None:
    for name in modules:
        (tmp_path / name).mkdir()
    assert kvm_kind(tmp_path) == kind
    assert kvm_kind(tmp_path / "nowhere") == UNKNOWN


@pytest.mark.parametrize("here", ["kvm_pvm", "kvm_intel", "kvm_amd", UNKNOWN])
@pytest.mark.parametrize("there", ["kvm_pvm", "kvm_intel", "kvm_amd", UNKNOWN, None])
def test_only_what_is_known_to_differ_is_refused(there: str | None, here: str) -> None:
    known = there not in (None, UNKNOWN) and here != UNKNOWN
    differs = known and (there == "kvm_pvm") != (here == "kvm_pvm")
    found = why_not_here(there, here)
    assert (found is not None) is differs
    assert not differs or (str(there) in str(found) and here in str(found))
