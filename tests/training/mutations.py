"""Tests of the table "Recipe decisions" of DESIGN.md: what passes on the code as it is and fails under mutations."""

import pkgutil

import pytest


def under(**mutations):
    """Parametrizes a test: ``with mutated:`` around what passes on the code and must fail under each mutation.

    The mutations test the tests: ``make test-all`` has them.
    """
    mark = pytest.mark.exhaustive
    cases = [pytest.param(None, id="as_it_is"), *(pytest.param(m, id=i, marks=mark) for i, m in mutations.items())]
    return pytest.mark.parametrize("mutated", cases, indirect=True)


def replaced(target, make):
    """A mutation: what is at ``target`` becomes ``make(what was there)``."""
    return lambda patch: patch.setattr(target, make(pkgutil.resolve_name(target)))


def overridden(*settings):
    """A mutation: every config has other values."""
    name = "video_rs.experiment.config.load_config"
    return replaced(name, lambda load: lambda name, more=(): load(name, [*more, *settings]))
