"""The package's own namespace."""

import subprocess
import sys

import pytest

import nomul


def test_all_names_exist():
    assert set(nomul.__all__) == {*nomul._HOME, "__version__"}
    assert set(nomul.__all__) <= set(dir(nomul))
    assert [name for name in nomul.__all__ if getattr(nomul, name, None) is None] == []


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'nomul' has no attribute 'nothing'"):
        _ = nomul.nothing


def test_functions_are_not_hidden_by_the_modules_of_their_name():
    import nomul.estimate
    import nomul.quantize.weights
    import nomul.verify
    from nomul.estimate import estimate

    assert nomul.estimate is estimate
    assert callable(nomul.quantize) and callable(nomul.verify)


def test_import_is_light():
    code = "import sys, nomul; print({'numpy', 'torch', 'amaranth', 'nomul_hw', 'nomul_sim'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"
