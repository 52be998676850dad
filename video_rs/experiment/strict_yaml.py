"""Read YAML without repeated keys, with limits on its size, depth and expanded aliases."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from video_rs.errors import ConfigError, first_line, format_value

MAX_CHARACTERS = 1 << 16  # also with all aliases expanded
_MAX_DEPTH = 50  # of [ and {
_LONG_WORD = re.compile(r"(?<=\S{90})\S+")  # the part of a word that messages do not show


def read_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML document; None for an empty one.

    Args:
        text: the document.
        source: file or override, for messages.

    Raises:
        ConfigError: the text is too long or not valid YAML, nested too deeply, or its aliases expand to too
            much; a key is repeated; or a number or date is invalid. The message names the line.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{source}: longer than {MAX_CHARACTERS} characters: not a config")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_CHARACTERS:
            raise ConfigError(f"{source}: has more than {MAX_CHARACTERS} characters with its aliases (*name) expanded")
        return loader.construct_document(node)
    except RecursionError:
        raise ConfigError(f"{source}: values are nested too deeply") from None
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        where = f":{mark.line + 1}" if mark and "\n" in text else ""
        raise ConfigError(f"{source}{where}: not YAML: {_LONG_WORD.sub('...', problem)}") from None


def _size(node: yaml.Node, counts: dict[int, float]) -> float:
    """Return the number of values and characters in a node with all aliases expanded; infinity if it contains itself.

    Raises:
        ConstructorError: a key is repeated.
    """
    if id(node) not in counts:
        counts[id(node)] = float("inf")
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated([key for key, _ in children if isinstance(key, yaml.ScalarNode)])
            children = [child for pair in children for child in pair]
        counts[id(node)] = 1 + len(node.value) + sum(_size(child, counts) for child in children)
    return counts[id(node)]


def _refuse_repeated(keys: list[yaml.ScalarNode]) -> None:
    lines: dict[str, int] = {}
    for key in keys:
        if key.value in lines:
            problem = f"the key {format_value(key.value)} is repeated, see line {lines[key.value]}"
            raise ConstructorError(None, None, problem, key.start_mark)
        lines[key.value] = key.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with its own error for every invalid value, and with a limit on the depth of lists."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, OverflowError, AttributeError, TypeError) as error:
            problem = f"{format_value(node.value)} is not a valid value ({first_line(error, 60)})"
            raise ConstructorError(None, None, problem, node.start_mark) from None

    def fetch_flow_collection_start(self, token: type) -> None:
        if self.flow_level >= _MAX_DEPTH:  # parsing time grows with the square of the depth
            raise RecursionError
        super().fetch_flow_collection_start(token)
