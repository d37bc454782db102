"""The licenses of everything that is installed with tinyseed: permissive, or named here with the reason why not."""

import importlib.metadata as metadata
import re
from collections.abc import Iterator

from packaging.requirements import Requirement

EXTRAS = ("bands", "detect", "faiss", "onnx", "plots", "transformers")
"""All extras but `dev`, whose packages are not part of what a user installs."""

PERMISSIVE = re.compile(
    r"Apache|MIT|BSD|ISC|PSF|Python Software Foundation|Zlib|CC0|BSL-1\.0|Boost|CNRI|HPND|LLVM-exception|Unlicense"
)
EXCEPTIONS = {
    "tqdm": "MPL-2.0 and MIT: its copyleft covers its own files, which nobody here changes; huggingface-hub needs it",
}
COPYLEFT = re.compile(r"GPL|MPL|EUPL|CDDL|EPL|SSPL|BUSL|Commons Clause|NonCommercial")


def installed(name: str, extras: tuple[str, ...], seen: set[str]) -> Iterator[metadata.Distribution]:
    """A package that is installed here, and all that it needs."""
    key = f"{re.sub('[-_.]+', '-', name).lower()} {extras}"
    if key in seen:
        return
    seen.add(key)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:  # for other platforms
        return
    yield found
    for line in found.requires or []:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": each}) for each in (*extras, "")):
            yield from installed(needed.name, tuple(sorted(needed.extras)), seen)


def license_of(package: metadata.Distribution) -> str:
    """What its metadata says, the most exact field first."""
    fields = package.metadata
    classifiers = [each for each in fields.get_all("Classifier") or [] if each.startswith("License ::")]
    free_text = (fields.get("License") or "").strip().split("\n\n")[0]
    return fields.get("License-Expression") or "; ".join(classifiers) or free_text


def test_what_is_installed_with_tinyseed_is_permissively_licensed():
    packages = {each.name: license_of(each) for each in installed("tinyseed", EXTRAS, set())}
    assert {"torch", "timm", "numpy"} <= packages.keys()
    doubtful = {
        name: text
        for name, text in packages.items()
        if (not PERMISSIVE.search(text) or COPYLEFT.search(text)) and name.lower() not in EXCEPTIONS
    }
    assert doubtful == {}


def test_the_patterns_know_copyleft():
    assert COPYLEFT.search("GNU Affero General Public License v3 (AGPLv3)")
    assert not PERMISSIVE.search("Proprietary")
