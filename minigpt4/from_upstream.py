"""Old configuration files -> the same run here: `python -m minigpt4.from_upstream OLD.yaml > NEW.yaml`.

Reads what the original MiniGPT-4 and its forks load: files of runs, evaluations and chats, and the cards of models and
datasets. Writes what such a file meant, the original's defaults included, with a remark at each line that differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from minigpt4.common.cli import exit_on_error
from minigpt4.common.config import RENAMED, UNREADABLE
from minigpt4.common.errors import ConfigError, one_line
from minigpt4.common.files import CONFIGS

IMAGE_ONLY = "${project:prompts/image_only.txt}"
ALIGNMENT = "prompts/alignment.txt"
PLACEHOLDER = "please set this value"
"""Beginning of the values that the original's files have in place of paths."""
MAX_TXT_LEN = {"minigpt4": 32, "minigpt_v2": 300}
"""The original's default, in tokens."""
WITHOUT_MEANING = {
    "freeze_vit": "always frozen",
    "freeze_qformer": "always frozen",
    "vit_precision": "the device decides, or model.precision",
    "drop_path_rate": "a frozen encoder drops nothing",
    "use_grad_checkpoint": "nothing in front of the projection is differentiated",
    "chat_template": "the template is always applied",
    "device_8bit": "each process loads on its own device",
    "prompt": "the original does not read it",
    "max_image_size": "the original does not read it",
    "dist_url": "torchrun decides it",
    "world_size": "torchrun decides it",
    "distributed": "torchrun decides it",
    "evaluate": "evaluation is a command of its own",
    "runner": "there is one",
    "test_splits": "evaluation is a command of its own",
    "data_type": "the card says it",
}
"""Keys of `model`, `run` and datasets that are left out, and why."""
MODEL_KEYS = ("image_size", "num_query_token", "has_qformer", "max_context_len", "vit_model", "q_former_model")
"""Keys of `model` that mean the same here."""
RUN_KEYS = (
    "task", "lr_sched", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate", "weight_decay", "beta2",
    "max_epoch", "iters_per_epoch", "accum_grad_iters", "num_workers", "log_freq", "seed", "output_dir", "job_name",
    "resume_ckpt_path", "train_splits", "device",
)  # fmt: skip
"""Keys of `run` that mean the same here."""
OF_V2 = (
    "coco_caption", "textcaps_caption", "coco_vqa", "ok_vqa", "aok_vqa", "gqa", "ocrvqa",
    "refcoco", "refcocop", "refcocog", "invrefcoco", "invrefcocop", "invrefcocog", "refvg",
    "llava_conversation", "llava_detail", "llava_reason", "multitask_conversation", "unnatural_instruction",
    "flickr_grounded_caption",
)  # fmt: skip
"""Datasets of MiniGPT-v2 whose cards have the same names."""
DATASETS = {
    "laion": "laion",
    "cc_sbu": "cc_sbu",
    "cc_sbu_align": "cc_sbu_align",
    "flickr30k": "flickr30k",
    "flickr30k_grounded_detail": "flickr30k",
    "flickr_CaptionToPhrase": "flickr_caption_to_phrase",
    "flickr_ObjectToPhrase": "flickr_object_to_phrase",
    **{name: name for name in OF_V2},
}
"""Datasets of the original and of the Flickr30k fork -> cards here."""
NO_READER = "no reader here: write its rows as JSONL (docs/your-data.md)"
EVALUATED = {
    "cc_sbu_align": "cc_sbu_align",
    "flickr30k": "flickr30k",
    "flickr30k_grounded_detail": "flickr30k",
    "vizwiz": "vizwiz",
    "hm": "hateful_memes",
}
"""Datasets whose files for evaluation are published ones -> cards; the others have files of the original's own form."""
VALIDATED = ("vizwiz", "hm")
"""Those of them that the original evaluates on the validation split."""
OWN_FORM = "its file has a form of the original's own: evaluate the published files (docs/minigpt-v2.md)"
LOWER_CASE = (
    "laion", "cc_sbu", "coco_caption", "textcaps_caption", "coco_vqa", "ok_vqa", "aok_vqa", "gqa", "ocrvqa",
    "invrefcoco", "invrefcocop", "invrefcocog", "unnatural_instruction",
)  # fmt: skip
"""Datasets whose captions or answers the original gives to the text processor."""
QUESTIONS_ONLY = ("refcoco", "refcocop", "refcocog", "refvg", "llava_detail", "llava_reason")
"""Those whose questions only it gives to the text processor."""


@dataclass
class Converted:
    """A file as it is written here.

    Attributes:
        values: dotted key -> value, in order.
        remarks: dotted key -> what differs from the old file.
        left_out: old dotted key -> why there is no such line.
    """

    values: dict[str, Any] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, remark: str = "") -> None:
        """Write a line."""
        self.values[key] = value
        if remark:
            self.remarks[key] = remark

    def text(self, title: str) -> str:
        """As YAML; the lines that are left out are listed at the end."""
        tree: dict[str, Any] = {}
        for key in self.values:
            *parents, name = key.split(".")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[name] = key
        lines = [f"# {title}", *self._lines(tree, "")]
        if self.left_out:
            lines += ["# Left out:", *(f"#   {key}: {why}" for key, why in self.left_out.items())]
        return "\n".join(lines) + "\n"

    def _lines(self, tree: Mapping[str, Any], indent: str) -> list[str]:
        lines = []
        for name, branch in tree.items():
            label = indent + _scalar(name) + ":"
            if isinstance(branch, dict):
                lines += [label, *self._lines(branch, indent + "  ")]
            else:
                remark = f"  # {self.remarks[branch]}" if branch in self.remarks else ""
                lines.append(f"{label} {_scalar(self.values[branch])}{remark}")
        return lines


def convert(old: Mapping[str, Any]) -> Converted:
    """What an old file meant.

    Args:
        old: its content as plain data.

    Raises:
        ConfigError: It is no such file, or about something that is not here.
    """
    new = Converted()
    if "run" in old:
        _convert_run_file(old, new)
    elif "model" in old:
        _convert_model_card(old["model"] or {}, new)
    elif "datasets" in old:
        _convert_dataset_card(old["datasets"] or {}, new)
    else:
        raise ConfigError("no section 'run', 'model' or 'datasets': there is nothing that is used here")
    for key in ("preprocess", "env"):
        if key in old:
            new.left_out[key] = "the cards say it" if key == "preprocess" else "paths: takes its place"
    for key in old:
        if key not in ("model", "datasets", "run", "evaluation_datasets", "preprocess", "env"):
            new.left_out[key] = "unknown; the original does not read it"
    return new


def _convert_run_file(old: Mapping[str, Any], new: Converted) -> None:
    run, datasets = old.get("run") or {}, old.get("datasets") or {}
    trains = any(key in run for key in ("init_lr", "max_epoch", "lr_sched"))
    _convert_model(old.get("model") or {}, trains, new)
    if trains:
        _convert_datasets(datasets, run, new)
        _convert_run(run, new)
        return
    evaluated = old.get("evaluation_datasets") or {}
    for name in datasets:
        new.left_out[f"datasets.{name}"] = "only its image processor was used, which is the model's"
    _convert_evaluation(evaluated, run, new)


def _convert_model(old: Mapping[str, Any], trains: bool, new: Converted) -> None:
    arch = _renamed("model.arch", str(old.get("arch", "minigpt4")))
    new.set("model.arch", arch, _was(old.get("arch"), arch))
    name = old.get("model_type")
    renamed = _renamed("model.model_type", str(name or {"minigpt_v2": "pretrain"}.get(arch, "pretrain_vicuna0")))
    larger = "; vicuna0_13b for a language model of 13B" if renamed == "vicuna0_7b" else ""
    new.set("model.model_type", renamed, _was(name, renamed) + larger)
    _copy(old, MODEL_KEYS, "model", new)
    for key in ("llama_model", "ckpt"):
        value = old.get(key)
        if value and not str(value).startswith(PLACEHOLDER):
            new.set(f"model.{key}", value)
        elif key == "ckpt" and trains:
            new.set("model.ckpt", None, "none was named: the original begins with a new projection")
        elif key in old:
            new.left_out[f"model.{key}"] = "the card's"
    if "low_resource" in old:
        value = "8bit" if old["low_resource"] else "off"
        new.set("model.low_resource", value, _was(old["low_resource"], value))
    _convert_lora(old, new)
    if old.get("use_grad_checkpoint_llm"):
        new.set("model.recompute_llm", True, "was use_grad_checkpoint_llm")
    _convert_texts(old, arch, trains, new)
    known = {"arch", "model_type", "llama_model", "ckpt", "low_resource", "prompt_path", "prompt_template", "end_sym"}
    known |= {"max_txt_len", "use_grad_checkpoint_llm", *MODEL_KEYS, *(key for key in old if key.startswith("lora_"))}
    _leave_out(old, known, "model", new)


def _convert_lora(old: Mapping[str, Any], new: Converted) -> None:
    """`lora_r` and `lora_alpha` and what an architecture without adapters ignores of them."""
    given = {key: value for key, value in old.items() if key.startswith("lora_")}
    if given and new.values["model.arch"] != "minigpt_v2":
        new.left_out |= {f"model.{key}": "the original's minigpt4 has no adapters" for key in given}
        return
    names = {"lora_r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout", "lora_target_modules": "targets"}
    for key, value in given.items():
        if key in names:
            new.set(f"model.lora.{names[key]}", value, f"was {key}")
        else:
            new.left_out[f"model.{key}"] = "unknown; the original does not read it"


def _convert_texts(old: Mapping[str, Any], arch: str, trains: bool, new: Converted) -> None:
    """Instructions, template, end and length of answers, with the original's defaults for training."""
    path, pattern = old.get("prompt_path"), old.get("prompt_template")
    if arch == "minigpt_v2":
        pattern = pattern or "[INST] {} [/INST]"
        bare = trains and not old.get("chat_template")
        new.set(
            "model.prompt_template",
            "{}" if bare else pattern,
            "without chat_template: true the original trains without a template" if bare else "",
        )
        if path:
            new.left_out["model.prompt_path"] = "the original's minigpt_v2 does not read it"
    elif path:
        same = str(path) == ALIGNMENT
        new.set("model.prompt_path", "${project:" + ALIGNMENT + "}" if same else path, "the same file" if same else "")
        new.set("model.prompt_template", pattern or "{}", "" if pattern else "none, as in the original")
    elif trains:
        new.set("model.prompt_path", IMAGE_ONLY, "the original gives no instruction without prompt_path")
        new.set("model.prompt_template", "{}", "and applies no template then")
    elif pattern:
        new.set("model.prompt_template", pattern)
    if "end_sym" in old or trains:
        new.set("model.end_sym", old.get("end_sym", "\n"), "" if "end_sym" in old else "the original's default")
    if "max_txt_len" in old or trains:
        default = MAX_TXT_LEN.get(arch, MAX_TXT_LEN["minigpt4"])
        remark = "" if "max_txt_len" in old else "the original's default, in tokens"
        new.set("model.max_txt_len", old.get("max_txt_len", default), remark)


def _convert_datasets(old: Mapping[str, Any], run: Mapping[str, Any], new: Converted) -> None:
    """The datasets of a run: there a ratio is the share of batches, here that of samples."""
    every = {name: settings or {} for name, settings in old.items()}
    ratios = {name: float(settings.get("sample_ratio", 1)) for name, settings in every.items()}
    sizes = {name: settings.get("batch_size", run.get("batch_size_train")) for name, settings in every.items()}
    alike = len(set(sizes.values())) == 1
    for name, settings in every.items():
        share = _number(ratios[name] * (1 if alike else sizes[name] or 1))
        if name not in DATASETS:
            new.left_out[f"datasets.{name}"] = f"{NO_READER}, with sample_ratio: {share}"
            continue
        _convert_dataset(name, settings, f"datasets.{name}", new)
        if len(every) > 1:
            why = "" if alike else f"{_number(ratios[name])} of the batches, of {sizes[name]} samples each"
            new.set(f"datasets.{name}.sample_ratio", share, why)
    given = {name: size for name, size in sizes.items() if size}
    if given:
        weight = sum(ratios[name] for name in given) or 1.0
        mean = sum(ratios[name] * size for name, size in given.items()) / weight
        where = "was batch_size_train" if "batch_size_train" in run else "was in datasets"
        new.set("run.batch_size", max(1, round(mean)), where if alike else "mean of those in datasets")


def _convert_dataset(name: str, old: Mapping[str, Any], key: str, new: Converted) -> None:
    """One dataset: its card, its paths and its processors."""
    card = DATASETS[name]
    new.set(f"{key}.card", card, _was(name, card) if name != card else "")
    for place, value in _paths(name, old.get("build_info") or {}).items():
        new.set(f"{key}.{place}", value, "was in build_info")
    for phase, image in (old.get("vis_processor") or {}).items():
        for option in ("name", "image_size"):
            if option in image:
                new.set(f"{key}.vis_processor.{phase}.{option}", image[option])
    for phase, text in (old.get("text_processor") or {}).items():
        given = text.get("name", "blip_caption")
        used = given if card in LOWER_CASE else "plain_text"
        reason = (
            "for questions there; here they keep their case" if card in QUESTIONS_ONLY else "which is ignored there"
        )
        why = f"was {given}, {reason}" if used != given else ""
        new.set(f"{key}.text_processor.{phase}.name", used, why)
        if used == given:
            _copy(text, ("prompt", "max_words"), f"{key}.text_processor.{phase}", new)
    _leave_out(old, {"build_info", "vis_processor", "text_processor", "sample_ratio", "batch_size"}, key, new)


def _paths(name: str, build_info: Mapping[str, Any]) -> dict[str, Any]:
    """Where a dataset's files are, from `build_info`."""
    storage, annotations = build_info.get("storage"), build_info.get("ann_path")
    if "data_dir" in build_info:  # Visual Genome
        return {"annotations": build_info["data_dir"], "images": build_info["data_dir"]}
    if annotations and "splitBy" in build_info:  # RefCOCO
        folder = f"{annotations}/{str(build_info.get('dataset', '')).removeprefix('inv')}"
        annotations = f"{folder}/refs({build_info['splitBy']}).p"
    if "annotations" in build_info:  # LAVIS's form
        listed = build_info["annotations"]["train"]["storage"]
        annotations = listed[0] if isinstance(listed, list) and len(listed) == 1 else listed
        build_info = {"image_path": build_info["images"]["storage"]}
    if storage and DATASETS[name] == "cc_sbu_align":
        folder = str(storage).rstrip("/")
        return {"annotations": f"{folder}/filter_cap.json", "images": f"{folder}/image"}
    if storage:
        return {"shards": storage}
    found = {"annotations": annotations, "images": build_info.get("image_path")}
    return {place: value for place, value in found.items() if value}


def _convert_run(old: Mapping[str, Any], new: Converted) -> None:
    _copy(old, RUN_KEYS, "run", new)
    if "batch_size_eval" in old:
        new.set("run.eval_batch_size", old["batch_size_eval"], "was batch_size_eval")
    splits = list(old.get("valid_splits") or [])
    new.set("run.valid_splits", splits, "" if "valid_splits" in old else "the original's default")
    new.set("run.max_grad_norm", None, "the original does not clip gradients")
    if old.get("amp"):
        new.left_out["run.amp"] = "the device decides, or model.precision"
    elif "amp" in old:
        new.set("model.precision", "float32", "was amp: false")
    if old.get("wandb_log"):
        new.set("run.trackers", ["wandb"], "was wandb_log: true")
    elif "wandb_log" in old:
        new.left_out["run.wandb_log"] = "there is no tracker unless run.trackers names one"
    known = {*RUN_KEYS, "batch_size_train", "batch_size_eval", "valid_splits", "amp", "wandb_log"}
    _leave_out(old, known, "run", new)


def _convert_evaluation(old: Mapping[str, Any], run: Mapping[str, Any], new: Converted) -> None:
    known = {name: settings or {} for name, settings in old.items() if name in EVALUATED}
    new.left_out |= {f"evaluation_datasets.{name}": OWN_FORM for name in old if name not in known}
    for name, settings in known.items():
        new.set(f"datasets.{name}.card", EVALUATED[name])
        for place, given in (("annotations", "eval_file_path"), ("images", "img_path")):
            if settings.get(given):
                new.set(f"datasets.{name}.{place}", settings[given], f"was {given}")
    for name, settings in list(known.items())[:1]:
        new.set("evaluation.dataset", name, "was in evaluation_datasets")
        if name in VALIDATED:
            new.set("evaluation.split", "val", "the split of its file")
        for key, given in (("batch_size", "batch_size"), ("generation.max_new_tokens", "max_new_tokens")):
            if given in settings:
                new.set(f"evaluation.{key}", settings[given], "was in evaluation_datasets")
    if "save_path" in run:
        new.set("evaluation.output_dir", run["save_path"], "was run.save_path")
    if "name" in run:
        new.set("run.job_name", run["name"], "was run.name")
    _copy(run, ("task", "seed", "device"), "run", new)
    _leave_out(run, {"name", "save_path", "task", "seed", "device"}, "run", new)


def _convert_model_card(old: Mapping[str, Any], new: Converted) -> None:
    """A card: the shipped one of the same model with the old one's values."""
    arch = _renamed("model.arch", str(old.get("arch", "minigpt4")))
    plain = arch == "minigpt4" and not old.get("has_qformer", True)
    name = "llama2_7b" if arch == "minigpt_v2" else "llama2_7b_no_qformer" if plain else "vicuna0_7b"
    shipped = OmegaConf.to_container(OmegaConf.load(CONFIGS / "models" / f"{arch}_{name}.yaml"), resolve=False)
    found = Converted()
    _convert_model({key: value for key, value in old.items() if key != "arch"} | {"arch": arch}, False, found)
    values = {key.removeprefix("model."): value for key, value in found.values.items()}
    for key, value in _flat(shipped):
        given = values.pop(key, value)
        new.set(key, given, "" if key in old else f"of the shipped card {name}")
    for key, value in values.items():
        if key not in ("arch", "model_type"):
            new.set(key, value, found.remarks.get(f"model.{key}", ""))
    new.left_out |= found.left_out
    new.left_out["model"] = "a card's keys stand at the top; name the new file by model.model_type"


def _convert_dataset_card(old: Mapping[str, Any], new: Converted) -> None:
    """A card: the shipped one with the old one's paths."""
    (name,) = old if len(old) == 1 else (None,)
    if name not in DATASETS:
        raise ConfigError(f"datasets: {', '.join(old) or 'none'}: {NO_READER}")
    settings = old[name] or {}
    paths = _paths(name, settings.get("build_info") or {})
    shipped = OmegaConf.to_container(OmegaConf.load(CONFIGS / "datasets" / f"{DATASETS[name]}.yaml"), resolve=False)
    for key, value in _flat(shipped):
        new.set(key, paths.get(key, value), "was in build_info" if key in paths else f"of the shipped card {name}")
    new.left_out["datasets"] = f"a card's keys stand at the top; name the new file by datasets.{name}.card"
    _leave_out(settings, {"build_info"}, f"datasets.{name}", new)


def _copy(old: Mapping[str, Any], keys: Sequence[str], section: str, new: Converted) -> None:
    for key in keys:
        if key in old:
            new.set(f"{section}.{key}", old[key])


def _leave_out(old: Mapping[str, Any], known: set[str], section: str, new: Converted) -> None:
    for key in old:
        if key not in known:
            why = WITHOUT_MEANING.get(key, "unknown; the original does not read it")
            new.left_out.setdefault(f"{section}.{key}", why)


def _renamed(key: str, value: str) -> str:
    return RENAMED[key].get(value, value)


def _was(old: Any, new: Any) -> str:
    return "" if old == new else "the original's default" if old is None else f"was {_scalar(old)}"


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _scalar(value: Any) -> str:
    """A value as YAML on one line."""
    style = '"' if isinstance(value, str) and "\n" in value else None
    dumped: str = yaml.safe_dump(value, default_style=style, default_flow_style=True, width=10**9, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        leaves += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + str(name), value)]
    return leaves


def read_old(path: Path) -> dict[str, Any]:
    """An old file as plain data.

    Raises:
        ConfigError: It cannot be read, or holds no mapping.
    """
    try:
        values = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(values, DictConfig):
        raise ConfigError(f"{path}: a mapping of keys to values is expected")
    plain = OmegaConf.to_container(values, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the converted file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD.yaml", help="a file of a run, an evaluation, a chat, or a card")
    path = parser.parse_args(arguments).old
    try:
        converted = convert(read_old(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: a section or value has a form that the original cannot use either ({one_line(error)}); fix it"
        ) from error
    sys.stdout.write(converted.text(f"Converted from {path}; remarks stand at the lines that differ."))


if __name__ == "__main__":
    main()
