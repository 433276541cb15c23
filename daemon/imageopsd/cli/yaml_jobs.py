"""YAML documents as plain values, with an end to how much they can grow."""

from typing import Any

import yaml

MAX_PAIRS = 10_000
"""Members of one mapping. Merges of merges (`<<: [*a, *a]`) multiply while they are read; no job has so many."""


class NotYaml(Exception):
    """What is wrong with it, and where."""


class _Loader(yaml.SafeLoader):
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
