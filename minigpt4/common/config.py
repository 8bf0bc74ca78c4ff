"""Layers of YAML -> one typed `Config`; OmegaConf stops here.

The layers, later ones winning: the schema's defaults, `configs/default.yaml`, the model card, the dataset cards,
the user's YAML, `--options`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from minigpt4.common.errors import ConfigError, did_you_mean
from minigpt4.common.files import CONFIGS, PROJECT, asset, near_path, project_file
from minigpt4.common.schema import MAX_BITS, Config, Precision, check_values

REMOVED_KEYS = {
    "evaluation_datasets": "write datasets and evaluation",
    "preprocess": "write datasets.NAME.vis_processor and text_processor",
    "env": "write paths",
    "datasets.*.build_info": "write datasets.NAME.annotations and images, or shards",
    "datasets.*.data_type": "delete the line",
    "run.name": "write run.job_name",
    "run.save_path": "write evaluation.output_dir",
    "model.lora_r": "write model.lora.r",
    "model.lora_alpha": "write model.lora.alpha",
    "model.lora_dropout": "write model.lora.dropout",
    "model.lora_target_modules": "write model.lora.targets",
    "model.use_grad_checkpoint_llm": "write model.recompute_llm",
    "model.max_image_size": "delete the line",
    "model.prompt": "delete the line",
    "run.dist_url": "torchrun decides it: delete the line",
    "run.world_size": "torchrun decides it: delete the line",
    "run.distributed": "torchrun decides it: delete the line",
    "run.wandb_log": "write run.trackers: [wandb]",
    "run.evaluate": "run eval_scripts/eval_flickr30k.py: delete the line",
    "run.batch_size_train": "write run.batch_size",
    "run.batch_size_eval": "write run.eval_batch_size",
    "curation.pictures": "write curation.images",
    "model.img_size": "write model.image_size",
    "model.vit_precision": "write model.precision",
    "model.freeze_vit": "the vision encoder is always frozen: delete the line",
    "model.freeze_qformer": "the Q-Former is always frozen: delete the line",
    "model.drop_path_rate": "a frozen encoder drops nothing: delete the line",
    "model.use_grad_checkpoint": "nothing before the projection is differentiated: delete the line",
    "model.chat_template": "the template is always applied: delete the line",
    "model.device_8bit": "each process loads on its own device: delete the line",
}
RENAMED = {
    "model.arch": {"mini_gpt4": "minigpt4"},
    "model.model_type": {
        "pretrain_vicuna": "vicuna0_7b",
        "pretrain_vicuna0": "vicuna0_7b",
        "pretrain_llama2": "llama2_7b_no_qformer",
        "pretrain": "llama2_7b",
    },
    "run.runner": {"runner_base": "epochs"},
}
"""Names of the original's configuration files -> names here."""
CONVERTER = "minigpt4 from-upstream"
"""The command that rewrites a file of the original."""
SHARED_SETTINGS = ("batch_size", "eval_batch_size")
"""Settings of `run` that older files have in each of `datasets`, where they must all say the same."""
SWITCHES = {
    "run.shard_llm": {True: "node", False: "off"},
    "model.low_resource": {True: "8bit", False: "off"},
}
OLD_PRECISIONS: dict[str, dict[Any, str]] = {
    "run.amp": {True: "auto", False: "float32", "off": "float32", "bf16": "bfloat16", "fp16": "float16"},
    "evaluation.precision": {},
}
"""Older places of `model.precision`, with the words for its values that only they had."""
EXPECTED = {"Integer": "a whole number is expected", "Float": "a number is expected"}
"""OmegaConf's types -> what to write."""
OPTION_KEY = re.compile(r"[^.\[\]=\s]+(\.[^.\[\]=\s]+|\[[^.\[\]=\s]+\])*")
"""A dotted key, as OmegaConf splits it."""
DATASET_NAME = re.compile(r"[^.\[\]=\s]+")
"""A name that can be a part of a dotted key."""
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, OSError)
"""What OmegaConf and PyYAML raise on text that they cannot read."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One source of configuration values, called `name` in messages."""

    name: str
    values: DictConfig


_EMBEDDED = Layer(
    "the embedded model",
    OmegaConf.create({"model": {"arch": "minigpt4", "model_type": "tiny", "ckpt": "${asset:tiny/aligned.pth}"}}),
)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """The configuration, its plain form for files, and the layer that set each value."""

    config: Config
    resolved: dict[str, Any]
    origins: dict[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted key, value, layer) of every value, in the schema's order."""
        for key, value in _leaves(self.resolved):
            yield key, value, self.origins.get(key, "schema default")


def load_config(path: str | Path | None, options: Sequence[str] = ()) -> LoadedConfig:
    """Read `path` and everything it builds on.

    Args:
        path: The user's YAML file; None: the tiny model that ships with the package.
        options: `a.b=c` strings, as given to `--options`.

    Raises:
        ConfigError: A file that cannot be read, an unknown key (with the nearest known one), a wrong type, a
            mandatory value that is not set; the message names file and key.
    """
    _register_resolvers()
    try:
        user = _EMBEDDED if path is None else Layer(str(path), _read_yaml(Path(path)))
        overrides = Layer("--options", _read_options(options))
        for layer in (user, overrides):
            _refuse_gone(layer, is_file=layer is user)
        user, overrides = _checked(user, skip_empty=True), _checked(overrides)
        peek = _merged_for_cards(user, overrides)
        default = Layer("configs/default.yaml", _read_yaml(CONFIGS / "default.yaml"))
        layers = [default, *map(_checked, [_model_card(peek), *_dataset_cards(peek)]), user, overrides]
        return _merge(_with_one_precision(_with_shared_settings([_normalised(layer) for layer in layers])))
    except RecursionError:
        raise ConfigError(f"{path or '--options'}: values are nested too deeply, or refer to each other") from None


def _register_resolvers() -> None:
    OmegaConf.register_resolver("project", project_file, replace=True)
    OmegaConf.register_resolver("asset", asset, replace=True)


def _read_yaml(path: Path) -> DictConfig:
    if not os.path.isfile(path):  # unlike Path's, it answers for any name
        where = "" if path.is_absolute() else f" (the current folder is {Path.cwd()})"
        near = near_path(path, [PROJECT / "train_configs", PROJECT / "eval_configs"])
        raise ConfigError(_one_line(f"configuration file {path} does not exist{where}{near}"))
    try:
        values = OmegaConf.load(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not readable as YAML: {_tab(path) or _one_line(error)}") from error
    if isinstance(values, ListConfig):
        raise ConfigError(f"{path}: a mapping of keys to values is expected at the top, not a list")
    return values


def _tab(path: Path) -> str:
    """The first line of a YAML file that is indented by a tab, for a message; nothing: there is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError):
        return ""
    tabs = (number for number, line in enumerate(lines, 1) if re.match(r" *\t\s*\S", line))
    return next((f"line {number} begins with a tab; use spaces" for number in tabs), "")


def _read_options(options: Sequence[str]) -> DictConfig:
    values = OmegaConf.create()
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals:
            raise ConfigError(f"--options: {option!r} has no '='; write KEY=VALUE, for example run.max_epoch=3")
        if not OPTION_KEY.fullmatch(key):
            raise ConfigError(f"--options: {key!r} is no key; write KEY=VALUE, for example run.max_epoch=3")
        try:
            values.merge_with_dotlist([option])
        except UNREADABLE as error:
            raise ConfigError(f"--options: {key}: {_one_line(error)}") from error
    return values


def _checked(layer: Layer, *, skip_empty: bool = False) -> Layer:
    """`layer`, if its values have the shapes of the schema; null datasets become empty ones.

    Args:
        layer: one source of values.
        skip_empty: leave out sections without a value (a line `run:` with nothing below it).

    Raises:
        ConfigError: A mapping, list or single value where another is expected, or a value that no setting can have;
            the message names the key.
    """
    plain = OmegaConf.to_container(layer.values, resolve=False)
    assert isinstance(plain, dict)
    if skip_empty:
        sections = [section.name for section in fields(Config)]
        plain = {name: value for name, value in plain.items() if value is not None or name not in sections}
    if isinstance(datasets := plain.get("datasets"), dict):
        plain["datasets"] = {name: {} if entry is None else entry for name, entry in datasets.items()}
    for key, problem in _misshapen(plain):
        raise ConfigError(_one_line(f"{layer.name}: {key}: {problem}"))
    return Layer(layer.name, OmegaConf.create(plain))


def _card_path(name: str, folder: str, prefix: str = "") -> Path | None:
    """A card by a path of the user's, or by the name of a shipped one; None: there is none of this name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    shipped = CONFIGS / folder / f"{prefix}{name}.yaml"
    return shipped if os.path.isfile(shipped) else None


def _shipped_cards(folder: str, prefix: str = "") -> list[str]:
    return [path.stem.removeprefix(prefix) for path in (CONFIGS / folder).glob(f"{prefix}*.yaml")]


def _merged_for_cards(user: Layer, overrides: Layer) -> Layer:
    """The layers that may name cards, as one."""
    try:
        values = OmegaConf.merge(user.values, overrides.values)
    except UNREADABLE as error:
        raise _explained(error, overrides.name, overrides.values) from error
    assert isinstance(values, DictConfig)
    return Layer(f"{user.name} with --options" if overrides.values else user.name, values)


def _model_card(peek: Layer) -> Layer:
    schema = Config().model
    arch = _selected(peek, "model.arch") or schema.arch
    model_type = _selected(peek, "model.model_type") or schema.model_type
    path = _card_path(str(model_type), "models", prefix=f"{arch}_")
    if path is None:
        hint = did_you_mean(str(model_type), _shipped_cards("models", f"{arch}_"))
        raise ConfigError(
            f"{peek.name}: model.model_type: no card {str(model_type)!r} for model.arch {str(arch)!r}; {hint}"
        )
    return Layer(_layer_name(path), OmegaConf.create({"model": _read_card(path, "model")}))


def _read_card(path: Path, section: str) -> DictConfig:
    """A card's values.

    Raises:
        ConfigError: It cannot be read, or has its keys below a section, as those of the original have.
    """
    values = _read_yaml(path)
    if section in values:
        raise ConfigError(
            f"{path}: the keys of a card stand at the top, not below '{section}'; if it is one of the original's, "
            f"`{CONVERTER} {path} > NEW.yaml` converts it"
        )
    return values


def _dataset_cards(peek: Layer) -> Iterator[Layer]:
    datasets = _selected(peek, "datasets")
    if not isinstance(datasets, DictConfig):
        return
    for name in map(str, datasets):
        card = _selected(peek, f"datasets.{name}.card")
        path = _card_path(str(card or name), "datasets")
        if path is not None:
            yield Layer(_layer_name(path), OmegaConf.create({"datasets": {name: _read_card(path, "datasets")}}))
        elif card is not None:
            hint = did_you_mean(str(card), _shipped_cards("datasets"))
            raise ConfigError(f"{peek.name}: datasets.{name}.card: no card {str(card)!r}; {hint}")


def _selected(layer: Layer, key: str) -> Any:
    """The value at a dotted key of a layer, references resolved; None: there is none.

    Raises:
        ConfigError: It refers to a value that the layer does not have.
    """
    try:
        return OmegaConf.select(layer.values, key, default=None)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(f"{layer.name}: {key}: {_one_line(error)}")) from error


def _layer_name(path: Path) -> str:
    return f"configs/{path.relative_to(CONFIGS)}" if path.is_relative_to(CONFIGS) else str(path)


def _merge(layers: Sequence[Layer]) -> LoadedConfig:
    merged = OmegaConf.structured(Config)
    origins: dict[str, str] = {}
    for layer in layers:
        values = layer.values
        try:
            merged = OmegaConf.merge(merged, values)
        except UNREADABLE as error:
            raise _explained(error, layer.name, values) from error
        plain = OmegaConf.to_container(values, resolve=False)
        assert isinstance(plain, dict)
        origins.update({key: layer.name for key, _ in _leaves(plain)})
    try:
        resolved = OmegaConf.to_container(merged, resolve=True, enum_to_str=True, throw_on_missing=True)
        config = OmegaConf.to_object(merged)
    except UNREADABLE as error:
        key = getattr(error, "full_key", None) or ""
        raise _explained(error, origins.get(key, layers[-2].name), None) from error
    assert isinstance(config, Config)
    _refuse_references_to_nothing(merged, origins)
    try:
        check_values(config)
    except ConfigError as error:
        key = str(error).partition(":")[0]
        raise ConfigError(f"{origins.get(key, layers[-2].name)}: {error}") from error
    return LoadedConfig(config=config, resolved=_with_enum_values(config, resolved), origins=origins)


def _refuse_references_to_nothing(merged: DictConfig, origins: Mapping[str, str]) -> None:
    """Refuse a text with a reference to a key that is null, as `None/evaluation` would come of it.

    Raises:
        ConfigError: There is one; the message names both keys.
    """
    plain: Any = OmegaConf.to_container(merged, resolve=False)
    for key, value in _leaves(plain):
        for reference in re.findall(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else ():
            if value != f"${{{reference}}}" and OmegaConf.select(merged, reference) is None:
                raise ConfigError(f"{origins[key]}: {key}: '{value}' needs {reference}, which is not set; set either")


def _refuse_gone(layer: Layer, *, is_file: bool) -> None:
    """Refuse what only configuration files of the original MiniGPT-4 have, all at once.

    Raises:
        ConfigError: Such keys or names are there; the message says what takes the place of each, and for a file how to
            convert it.
    """
    keys = list(_nodes(OmegaConf.to_container(layer.values, resolve=False)))
    gone = [f"{key} ({hint})" for pattern, hint in REMOVED_KEYS.items() for key in keys if fnmatchcase(key, pattern)]
    for key, names in RENAMED.items():
        name = _own(layer.values, key)
        if isinstance(name, str) and name in names:
            gone.append(f"{key}: {name} (write {names[name]})")
    if gone:
        listed = f"keys of the original files that do not exist here: {'; '.join(gone)}"
        means = f"`{CONVERTER} {layer.name} > NEW.yaml` writes what the file means, the original's defaults included"
        raise ConfigError(f"{layer.name}: {listed}" + (f"; {means}" if is_file else ""))


def _nodes(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of all mappings and values."""
    for name, value in values.items() if isinstance(values, dict) else ():
        key = f"{prefix}{name}"
        yield key
        yield from _nodes(value, f"{key}.")


def _normalised(layer: Layer) -> Layer:
    """The layer with on/off switches spelled out and what is gone refused."""
    values = layer.values.copy()
    _refuse_gone(layer, is_file=True)
    for key, words in SWITCHES.items():
        value = _own(values, key)
        if isinstance(value, bool):
            OmegaConf.update(values, key, words[value])
    datasets = _own(values, "datasets")
    if isinstance(datasets, DictConfig):
        for name in map(str, datasets):
            if _own(values, f"datasets.{name}.reader") == "none":
                datasets[name].reader = None  # older cards of shards say "none"
    return Layer(layer.name, values)


def _own(values: DictConfig, key: str) -> Any:
    """The value at a dotted key of one layer; None: there is none, or it refers to a value of another layer."""
    return OmegaConf.select(values, key, default=None, throw_on_resolution_failure=False)


def _with_shared_settings(layers: Sequence[Layer]) -> Sequence[Layer]:
    """The layers with `datasets.*.batch_size` and `eval_batch_size` moved to `run`.

    Raises:
        ConfigError: Two places disagree; the message names both with their values.
    """
    for setting in SHARED_SETTINGS:
        run_key = f"run.{setting}"
        found: dict[str, tuple[Any, Layer]] = {}
        for layer in layers:
            if (value := _own(layer.values, run_key)) is not None:
                found[run_key] = (value, layer)
            datasets = _own(layer.values, "datasets")
            for name in map(str, datasets) if isinstance(datasets, DictConfig) else ():
                key = f"datasets.{name}.{setting}"
                if (value := _selected(layer, key)) is not None:
                    found[key] = (value, layer)
                    del datasets[name][setting]
        for (key, (value, _)), (other_key, (other, layer)) in pairwise(found.items()):
            if value != other:
                raise ConfigError(
                    f"{layer.name}: {other_key} is {other}, but {key} is {value}; all datasets of a run share one "
                    f"value: set {run_key} and leave it out of datasets"
                )
        if found and run_key not in found:
            value, layer = list(found.values())[-1]
            OmegaConf.update(layer.values, run_key, value)
    return layers


def _with_one_precision(layers: Sequence[Layer]) -> Sequence[Layer]:
    """The layers without `OLD_PRECISIONS`, which may say no more than `model.precision` does.

    Raises:
        ConfigError: One of them says something else; the message says what to write.
    """
    known = [item.value for item in Precision]
    chosen = next((value for layer in reversed(layers) if (value := _own(layer.values, "model.precision"))), "auto")
    for layer in layers:
        for key, words in OLD_PRECISIONS.items():
            section, _, name = key.partition(".")
            values = _own(layer.values, section)
            if not isinstance(values, DictConfig) or name not in values:
                continue
            value = OmegaConf.to_container(values, resolve=False)[name]  # type: ignore[call-overload, index]
            del values[name]
            meant = words.get(value, value) if isinstance(value, str | bool) else None
            if meant not in (chosen, "auto"):
                raise ConfigError(
                    f"{layer.name}: {key} is gone; model.precision, {chosen} here, decides for training, evaluation "
                    f"and chat: write model.precision: {meant if meant in known else ' or '.join(known)}"
                )
    return layers


def _explained(error: Exception, layer: str, values: DictConfig | None) -> ConfigError:
    """An OmegaConf error as one sentence with file, key and the nearest known key."""
    key = getattr(error, "full_key", None) or ""
    reason = _one_line(error)
    if type(error).__name__ == "MissingMandatoryValue":
        reason = "this value is mandatory; set it in your YAML or by --options"
    elif type(error).__name__ == "ConfigKeyError" or "not in '" in reason:
        owner = getattr(error, "object_type", None)
        fields = getattr(owner, "__dataclass_fields__", {})
        reason = f"unknown key; {did_you_mean(key.rpartition('.')[2], fields)}"
    elif values is not None and key and _own(values, key) is not None:
        expected = next((words for kind, words in EXPECTED.items() if reason.endswith(f"converted to {kind}")), reason)
        reason = f"wrong value {_own(values, key)!r}: {expected}"
    return ConfigError(_one_line(f"{layer}: {key}: {reason}" if key else f"{layer}: {reason}"))


def _one_line(error: Exception | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("full_key:", "reference_type=", "object_type="))]
    return "; ".join(lines)


def _leaves(values: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _with_enum_values(config: Config, resolved: Any) -> dict[str, Any]:
    """`resolved` with each enum written as users write it (its value; OmegaConf writes its name)."""

    def convert(typed: Any, plain: Any) -> Any:
        if isinstance(typed, Enum):
            return typed.value
        if isinstance(plain, dict):
            get = typed.__getitem__ if isinstance(typed, dict) else lambda name: getattr(typed, name)
            return {name: convert(get(name), value) for name, value in plain.items()}
        return plain

    converted = convert(config, resolved)
    assert isinstance(converted, dict)
    return converted


def _misshapen(value: Any, expected: Any = Config, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what is wrong) of values that no setting of their type can have; unknown keys are passed over.

    OmegaConf converts the single values later; for other shapes it has no good words, and for some no error of its own.

    Args:
        value: a plain value, references unresolved.
        expected: its type in the schema; Any allows all shapes.
        key: its dotted key.
    """
    shape = dict if is_dataclass(expected) else get_origin(expected) or expected
    single = not isinstance(value, dict | list)
    if value is None or (isinstance(value, str) and "${" in value):
        return
    if shape is dict and not isinstance(value, dict):
        yield key, f"a mapping of keys to values is expected, not {_named(value)}"
    elif shape is list and not isinstance(value, list):
        yield key, f"a list is expected, for example [a, b], not {_named(value)}"
    elif shape not in (dict, list, Any) and not single:
        yield key, f"a single value is expected, not {_named(value)}"
    elif single:
        yield from _unusable(value, key)
    else:
        yield from _misshapen_entries(value, expected, key)


def _misshapen_entries(values: dict[Any, Any] | list[Any], expected: Any, key: str) -> Iterator[tuple[str, str]]:
    known = get_type_hints(expected) if is_dataclass(expected) else {}
    other = (get_args(expected) or (Any,))[-1]
    if isinstance(values, list):
        for number, entry in enumerate(values):
            yield from _misshapen(entry, other, f"{key}[{number}]")
        return
    for name, entry in values.items():
        if key == "datasets" and not (isinstance(name, str) and DATASET_NAME.fullmatch(name)):
            yield key, f"{name!r} cannot be a dataset's name; use letters, digits, '_' and '-'"
        yield from _misshapen(entry, known.get(name, other), f"{key}.{name}" if key else str(name))


def _unusable(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        yield key, f"an integer of {value.bit_length():,} bits is too large"
    if isinstance(value, str):
        try:
            usable = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            usable = False
        if not usable:
            yield key, f"{value!r} has a character that can be neither in a path nor in a file"


def _named(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    # Python refuses to write the digits of a huge integer.
    return repr(value) if isinstance(value, str | float | bool) else "a number"
