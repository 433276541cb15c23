"""YAML documents as plain values, with an end to how much they can grow."""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_PAIRS = 10_000
"""Members of one mapping. Merges of merges (`<<: [*a, *a]`) multiply while they are read; no job has so many."""


class NotYaml(Exception):
    """What is wrong with it, and where."""


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuses a key that stands twice as JSON does, before merges add those that may."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            merge = key_node.tag == "tag:yaml.org,2002:merge"
            key = key_node.value if merge else self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key_node.value}' stands twice in one mapping", key_node.start_mark
                )
            seen.add(key)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_PAIRS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a mapping of more than {MAX_PAIRS} members", node.start_mark
            )


def documents(text: str) -> list[Any]:
    """The documents that are not empty. Aliases are shared, not copied, and may be circles. Raises NotYaml."""
    try:
        return [value for value in yaml.load_all(text, _Loader) if value is not None]
    except RecursionError as error:
        raise NotYaml("nested too deeply") from error
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:  # ValueError: the 30th of February
        raise NotYaml(str(error)) from error
