"""The layout of one file a model: `<team>/<model>.yaml`, which holds that model of that team and nothing else.

Helm merges such files into one catalogue, later ones over earlier ones, so a file that also holds another team's model,
or the network's policies, would change them without their owners' approval.
"""

import pathlib
from collections.abc import Iterator

import yaml


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a map: the last one would win without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def problems(folder: pathlib.Path) -> list[str]:
    """What is wrong with the files below a folder of teams, each a line that says what, why and what to do."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        place = path.relative_to(folder)
        if len(place.parts) != 2 or path.suffix != ".yaml":
            found.append(f"{place}: no TEAM/MODEL.yaml. No release would read it. Move or delete it.")
        else:
            found += [f"{place}: {text}" for text in _wrong(path, team=place.parts[0], model=path.stem)]
    if not any(folder.glob("*/*.yaml")):
        found.append(f"{folder}: no TEAM/MODEL.yaml in it. Name the folder that holds the teams' folders.")
    return found


def _wrong(path: pathlib.Path, team: str, model: str) -> Iterator[str]:
    try:
        document = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        yield f"not YAML that can be trusted: {error}. Correct it."
        return
    node = document
    for key, path_of in (("global", "the file"), ("models", "global")):
        if not isinstance(node, dict) or key not in node:
            yield f"{path_of} has no {key}. It must hold global.models.{model}. Add it."
            return
        for other in sorted(map(str, set(node) - {key})):
            yield f"{path_of} has {other}. A model's file changes nothing but its model. Move {other} to the base file."
        node = node[key]
    if not isinstance(node, dict):
        yield f"global.models holds no map. It must hold {model}. Add it."
        return
    for other in sorted(map(str, set(node) - {model})):
        yield f"global.models has {other}. The file is for {model} alone. Move it to {other}.yaml of its team."
    entry = node.get(model)
    if not isinstance(entry, dict):
        yield f"global.models.{model} is absent or empty. The file's name is the model's. Rename one of them."
    elif entry.get("team") != team:
        yield f"global.models.{model}.team is {entry.get('team', 'absent')}. The folder is {team}'s. Set team: {team}."
