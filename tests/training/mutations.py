"""Mutations of the recipe: tests that pass on the code and must fail under each mutation."""

import pkgutil

import pytest


def under(**mutations):
    """Parametrize a test: the block ``with mutated:`` passes on the code and must fail under each mutation.

    The mutations test the tests: ``make test-all`` has them.
    """
    mark = pytest.mark.exhaustive
    cases = [pytest.param(None, id="as_it_is"), *(pytest.param(m, id=i, marks=mark) for i, m in mutations.items())]
    return pytest.mark.parametrize("mutated", cases, indirect=True)


def replaced(target, make):
    """Return a mutation that replaces the object at ``target`` by ``make(object)``."""
    return lambda patch: patch.setattr(target, make(pkgutil.resolve_name(target)))


def overridden(*settings):
    """Return a mutation that overrides keys in every config."""
    name = "video_rs.experiment.config.load_config"
    return replaced(name, lambda load: lambda name, more=(): load(name, [*more, *settings]))
