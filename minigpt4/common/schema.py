"""Every setting of a YAML file or `--options`: its type, default, range and meaning.

The range of a number is beside it, and `check_values` compares a configuration with the ranges.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypedDict, get_type_hints

from minigpt4.common.errors import ConfigError, did_you_mean

DESCRIBE = "Describe this image in detail."
"""Question where neither the caller nor `evaluation.prompt` gives one."""
NUM_QUERY_TOKEN = 32
"""Learned queries of the published Q-Former."""
QUERY_VALUE = ("q_proj", "v_proj")
"""Layers with adapters by default, as in the published models."""
FEATURE_LAYERS = ("last", "penultimate")
"""Blocks of a vision backbone that have a name."""
JOINED_PATCHES = 4
"""Neighbouring patches that make one image token in the published models without a Q-Former."""
MAX_BITS = 63
"""Bits of the largest integer that torch can store."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting may have; None: no bound on that side.

    Attributes:
        at_least: smallest value.
        above: exclusive lower bound.
        at_most: largest value.
        below: exclusive upper bound.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether `value` is within the bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{words} {bound:.10g}" for words, bound in bounds.items() if bound is not None)


def number(default: Any, **bounds: float) -> Any:
    """A dataclass field with its `Range`; where the default is None, null is allowed too."""
    return field(default=default, metadata={"range": Range(**bounds)})


def check_values(section: Any, prefix: str = "") -> None:
    """Refuse numbers outside their ranges, numbers that are not finite, and values that contradict each other.

    Args:
        section: one of the dataclasses below.
        prefix: dotted key in front of its fields, for messages; empty, or ends in a full stop.

    Raises:
        ConfigError: The message names the key, the value and what was expected.
    """
    if isinstance(section, Mapping):
        for name, entry in section.items():
            check_values(entry, f"{prefix}{name}.")
        return
    if not dataclasses.is_dataclass(section):
        return
    for known in fields(section):
        value = getattr(section, known.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            allowed = known.metadata.get("range", Range())
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise ConfigError(f"{prefix}{known.name}: an integer of {value.bit_length():,} bits is too large")
            if not math.isfinite(value):
                raise ConfigError(f"{prefix}{known.name}: {value} should be a finite number")
            if not allowed.holds(value):
                raise ConfigError(f"{prefix}{known.name}: {value} should be {allowed}")
        else:
            check_values(value, f"{prefix}{known.name}.")
    for name, problem in getattr(section, "problems", lambda: ())():
        raise ConfigError(f"{prefix}{name}: {problem}")


class Precision(str, Enum):
    """Number format of the frozen weights, and so of what is computed with them."""

    auto = "auto"  # bfloat16 or float16 on a GPU, as is native, float32 on a CPU, and bfloat16 where that does not fit
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LowResource(str, Enum):
    """Quantisation of the language model."""

    off = "off"
    int8 = "8bit"
    nf4 = "4bit"


class ClassToken(str, Enum):
    """What becomes of the vision backbone's class token; its register tokens are always dropped."""

    auto = "auto"  # kept in front of a Q-Former, as published, and dropped without one
    keep = "keep"
    drop = "drop"


class Projector(str, Enum):
    """What is trained between the bridge and the language model."""

    linear = "linear"  # one layer, as published
    mlp = "mlp"  # two layers with a GELU between them, as in LLaVA-1.5 (arXiv:2310.03744)


class LlmSharding(str, Enum):
    """Which ranks shard the frozen language model among them (FSDP2)."""

    off = "off"  # every rank holds all of it
    node = "node"  # the ranks of one machine share one copy
    all = "all"  # all ranks share one copy


class Target(str, Enum):
    """The text to learn of a record with several answers."""

    joined = "joined"  # all answers, joined by spaces
    one = "one"  # one of them, drawn for each sample and epoch


class EvaluationTask(str, Enum):
    """What is asked about images, and so how the answers are scored."""

    caption = "caption"  # a description, by caption metrics
    vqa = "vqa"  # questions with answers in words
    refer = "refer"  # where the thing described is, by the IoU of one box
    detection = "detection"  # boxes of things, by average precision


class Scorer(str, Enum):
    """How answers in words are scored."""

    auto = "auto"  # choice where every question has choices, yes_no, soft with answers of several people, else exact
    soft = "soft"  # VQA's accuracy, which grows with the number of people who gave the answer
    exact = "exact"  # one of the annotated answers, but for case and a full stop at the end
    choice = "choice"  # the most likely of a question's choices
    yes_no = "yes_no"  # POPE's accuracy, precision, recall and F1 of yes


class BadData(str, Enum):
    """What happens when rows or shards cannot be used."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True, slots=True)
class PathsConfig:
    """Where data, weights and results are; relative paths start at the current folder."""

    data_root: str = "data"
    """Annotations and images; default.yaml reads the environment variable MINIGPT4_DATA."""
    weights_root: str = "weights"
    """Published weights and language models; default.yaml reads MINIGPT4_WEIGHTS."""
    output_root: str = "output"
    """Run folders and results; default.yaml reads MINIGPT4_OUTPUT."""


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    """How answers are generated."""

    max_new_tokens: int = number(80, at_least=1)
    """Longest answer in tokens."""
    min_new_tokens: int = number(1, at_least=0)
    """Shortest answer in tokens."""
    num_beams: int = number(1, at_least=1)
    """Beam size; 1: no beam search."""
    do_sample: bool = False
    """Sample from the distribution; false: greedy."""
    temperature: float = number(1.0, above=0)
    """Only when sampling."""
    top_p: float = number(0.9, above=0, at_most=1)
    """Only when sampling: probability mass of the tokens sampled from."""
    repetition_penalty: float = number(1.0, above=0)
    """1: none."""
    length_penalty: float = number(1.0)
    """Only with beams: above 0 favours long answers."""
    static_cache: bool = False
    """Generate by transformers with a cache of fixed size; on a GPU it then compiles the decode step."""


@dataclass(kw_only=True, slots=True)
class LoraConfig:
    """Adapters in the language model, trained with the projection (LoRA, arXiv:2106.09685)."""

    r: int = number(0, at_least=0, at_most=8192)
    """Rank of each adapter; 0: there are none."""
    alpha: int = number(16, at_least=1)
    """The adapters' output is multiplied by alpha / r."""
    dropout: float = number(0.05, at_least=0, below=1)
    """Share of their input that is left out in training."""
    targets: list[str] = field(default_factory=lambda: list(QUERY_VALUE))
    """Names of the linear layers that have one. The default stands for the projections of queries and values: it is the
    one layer that makes both where the language model has no q_proj and v_proj."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond the ranges."""
        if not self.targets:
            yield "targets", "no layer to adapt; name some, for example [q_proj, v_proj], or set r to 0"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The alignment model."""

    arch: str = "minigpt4"
    """Registered name of the model."""
    model_type: str = "vicuna0_7b"
    """Model card: `configs/models/{arch}_{model_type}.yaml`, or the path of a YAML file."""
    image_size: int = number(224, at_least=1)
    """Side of the square image in pixels."""
    vit_model: str = "eva_giant_patch14_224"
    """Name of the vision backbone in timm, a vision transformer, with the tag of its weights or without
    (`vit_base_patch16_siglip_224.webli`)."""
    vit_weights: str | None = None
    """File with the backbone's weights, or folder with them as it comes from the hub; null: random weights, refused
    without `allow_random`."""
    vit_blocks: int | None = number(39, at_least=1, at_most=1000)
    """Transformer blocks of the backbone that are used; the file may hold more. null: as many as timm's has."""
    vit_feature_layer: str = "last"
    """Block whose output is the image's features, without the final norm: last, penultimate, or a number from 1."""
    vit_class_token: ClassToken = ClassToken.auto
    """What becomes of the class token, where there is one: keep, drop, or auto, which keeps it in front of a
    Q-Former only. Register tokens are always dropped."""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor, for a backbone of other sizes than the published one."""
    image_mean: list[float] | None = None
    """Means of red, green and blue that images are normalised by, on a scale from 0 to 1; null: the backbone's own,
    from the folder of its weights or from timm."""
    image_std: list[float] | None = None
    """Their deviations; null: as for `image_mean`."""
    has_qformer: bool = True
    """A Q-Former reads the image features; false: neighbouring patches are joined, as in MiniGPT-v2 and in MiniGPT-4
    on LLaMA-2."""
    joined_patches: int = number(JOINED_PATCHES, at_least=1, at_most=64)
    """Without a Q-Former: neighbouring patches, in raster order, that make one image token; 1: each patch is one."""
    q_former_model: str | None = None
    """File with query tokens, ln_vision and Q-Former weights, in BLIP-2's layout; null: as for `vit_weights`."""
    num_query_token: int = number(NUM_QUERY_TOKEN, at_least=1)
    """Learned queries, which is the number of image tokens in the prompt."""
    q_former_args: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers' `Blip2QFormerConfig`."""
    projector: Projector = Projector.linear
    """What is trained between image features and language model: linear, or mlp (two layers with a GELU)."""
    allow_random: bool = False
    """Let frozen image encoders without a file have random weights, the same at each load (tests only)."""
    llama_model: str | None = None
    """Folder of the language model in Hugging Face's layout."""
    low_resource: LowResource = LowResource.off
    """Load the language model in 8 or 4 bits (bitsandbytes): off, 8bit or 4bit."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters in the language model."""
    precision: Precision = Precision.auto
    """Number format of the frozen weights and of the computation with them, in training, evaluation and chat: auto,
    float32, bfloat16 or float16. Training in float16 scales the loss; what trains is always float32."""
    compile: bool = False
    """Compile the blocks of the frozen parts by torch.compile on first use (minutes for a large model)."""
    recompute_llm: bool = False
    """In training, keep only the inputs of the language model's blocks and compute the rest again in the backward pass
    (gradient checkpointing): less memory, more time, the same numbers."""
    ckpt: str | None = None
    """Checkpoint with the projection, and adapters where there are some, to start from; null: new ones."""
    prompt_path: str | None = None
    """Text file of instructions, one a line, for records without a question."""
    prompt_template: str = "###Human: {} ###Assistant: "
    """Dialogue template around an instruction; `{}` marks its place."""
    end_sym: str = "###"
    """Ends an answer in training, and stops generation."""
    template: str | None = None
    """A template by name instead: vicuna0, vicuna0_demo, llama2, minigpt_v2, or chat (the language model's own)."""
    system: str = ""
    """System message of every prompt, where the template places one."""
    max_txt_len: int = number(160, at_least=1)
    """Tokens of an answer, its end included, that are kept in training."""
    max_context_len: int = number(3800, at_least=1)
    """Tokens of a prompt with its images; a longer prompt is an error."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond the ranges."""
        yield from self._vision_problems()
        if self.arch == "minigpt_v2" and self.has_qformer:
            yield "has_qformer", "minigpt_v2 has no Q-Former; set it to false, or model.arch to minigpt4"
        if self.q_former_model and not self.has_qformer:
            yield "q_former_model", f"{self.q_former_model} would not be used, as has_qformer is false; change one"
        if self.num_query_token != NUM_QUERY_TOKEN and not self.has_qformer:
            yield (
                "num_query_token",
                f"{self.num_query_token} would not be used, as has_qformer is false: image_size decides the number of "
                "image tokens; leave it out",
            )
        if self.prompt_template.count("{}") != 1:
            yield "prompt_template", f"{self.prompt_template!r} must contain '{{}}' once, where the instruction goes"
        for section, options in (("vit_args", self.vit_args), ("q_former_args", self.q_former_args)):
            for name, value in options.items():
                if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                    yield f"{section}.{name}", f"{value} should be a finite number of at least 0"

    def _vision_problems(self) -> Iterator[tuple[str, str]]:
        if self.vit_feature_layer not in FEATURE_LAYERS and not re.fullmatch(r"[1-9]\d{0,3}", self.vit_feature_layer):
            named = " or ".join(FEATURE_LAYERS)
            yield "vit_feature_layer", f"'{self.vit_feature_layer}' should be {named}, or the number of a block, from 1"
        if self.vit_class_token is ClassToken.keep and not self.has_qformer and self.joined_patches > 1:
            yield (
                "vit_class_token",
                f"keep: {self.joined_patches} neighbouring patches are joined, and the class token has no neighbours; "
                "set it to drop, or model.joined_patches to 1",
            )
        for name, values in (("image_mean", self.image_mean), ("image_std", self.image_std)):
            if values is not None and (len(values) != 3 or not all(0 <= value <= 1 for value in values)):
                yield name, f"{values} should be three numbers from 0 to 1, for red, green and blue"
        if self.image_std is not None and not all(self.image_std):
            yield "image_std", f"{self.image_std} should be above 0: values are divided by it"

    def image_encoder_files(self) -> dict[str, str | None]:
        """Settings that name the weights of the frozen image encoders; None: random weights."""
        files = {"vit_weights": self.vit_weights}
        return files | {"q_former_model": self.q_former_model} if self.has_qformer else files

    def files(self) -> Iterator[tuple[str, str]]:
        """(key, path) of every file and folder that the model is made of, as far as they are named."""
        for key, path in {"llama_model": self.llama_model, **self.image_encoder_files(), "ckpt": self.ckpt}.items():
            if path:
                yield f"model.{key}", path

    def image_encoder_sizes(self) -> dict[str, str]:
        """Settings that the frozen image encoders are built with, as text for identities and metadata."""
        vision = {
            "vit_model": self.vit_model,
            "vit_blocks": str(self.vit_blocks),
            "vit_args": json.dumps(self.vit_args, sort_keys=True),
            "image_size": str(self.image_size),
        }
        # What was added later is named where it is not the default, so that older caches and checkpoints stay valid.
        if self.vit_feature_layer != "last":
            vision["vit_feature_layer"] = self.vit_feature_layer
        if self.vit_class_token is not ClassToken.auto:
            vision["vit_class_token"] = self.vit_class_token.value
        if not self.has_qformer and self.joined_patches != JOINED_PATCHES:
            vision["joined_patches"] = str(self.joined_patches)
        if not self.has_qformer:
            return vision | {"has_qformer": "false"}
        return vision | {
            "q_former_args": json.dumps(self.q_former_args, sort_keys=True),
            "num_query_token": str(self.num_query_token),
        }


@dataclass(kw_only=True, slots=True)
class ProcessorConfig:
    """A registered processor and its arguments."""

    name: str = "???"
    """Registered name, for example blip2_image_train or plain_text."""
    image_size: int | None = number(None, at_least=1)
    """Image processors: side in pixels; the only one possible is the model's, which null stands for."""
    prompt: str = ""
    """Text processors: text in front of a caption."""
    max_words: int | None = number(None, at_least=1)
    """Text processors: words of a caption that are kept; null: all."""


@dataclass(kw_only=True, slots=True)
class SplitProcessors:
    """Processors for training and for evaluation."""

    train: ProcessorConfig = field(default_factory=ProcessorConfig)
    """Processor in training."""
    eval: ProcessorConfig = field(default_factory=ProcessorConfig)
    """Processor in validation, evaluation and chat."""


def _vis_processors() -> SplitProcessors:
    return SplitProcessors(
        train=ProcessorConfig(name="blip2_image_train"), eval=ProcessorConfig(name="blip2_image_eval")
    )


def _text_processors() -> SplitProcessors:
    return SplitProcessors(train=ProcessorConfig(name="plain_text"), eval=ProcessorConfig(name="plain_text"))


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """A dataset: a card (`configs/datasets/NAME.yaml`), your own YAML, or both, your YAML winning."""

    card: str | None = None
    """Card to start from: a shipped card's name or a path; null: the card of the dataset's own name, if any."""
    builder: str = "instruction"
    """Registered kind of dataset: instruction (images and annotations), or webdataset (both in tar shards)."""
    reader: str | None = None
    """Registered reader of the annotations: jsonl, csv, folder; captions, vqa, vqa_choices, vsr, vsr_choices,
    hateful_memes, hateful_memes_choices, refer, identify, grounded, conversations, instructions, visual_genome,
    visual_genome_identify; flickr30k, cc_sbu_align, coco_boxes or table_triples; null for shards, which have none."""
    annotations: Any = None
    """Annotation file (or folder, for a reader of folders), or a list of them."""
    images: str | None = None
    """Folder that relative image paths start at; null: the folder of the (first) annotation file."""
    image_name: str = "{image}"
    """Template of an image's path below `images`; `{image}` marks what the annotations say."""
    split: str | None = None
    """Split of the rows that name none; null: train, or val for the share `val_fraction`."""
    bad_rows: BadData = BadData.stop
    """stop: refuse annotations with a row that cannot be used; skip: leave such rows out with a warning."""
    shards: Any = None
    """Tar files of a webdataset: a pattern such as '{00000..01255}.tar', '*.tar' or 'https://HOST/{00..99}.tar', or a
    list of them."""
    shard_index: str | None = None
    """Folder of the shards' index; null: `minigpt4_index` beside the first shard, or
    `minigpt4_index/NAME` in `shard_cache`."""
    shard_cache: str = "${paths.data_root}/shard_cache"
    """Folder for copies of shards that are elsewhere (https:, s3:, hf:, pipe:)."""
    shard_cache_gb: float | None = number(None, above=0)
    """Most gigabytes of copies, of which the least recently opened are deleted and copied again when needed; null: all
    are kept."""
    bad_shards: BadData = BadData.stop
    """stop: refuse to train when a shard is missing, damaged or without captions; skip: leave it out with a warning."""
    shuffle_shards: int = number(16, at_least=1)
    """Shards whose samples are shuffled with each other; as many files are read at a time."""
    prompts: str | None = None
    """Text file of instructions, one a line; null: `model.prompt_path`. Those with `{question}` go around the questions
    of the annotations, the others are asked where there is no question."""
    answer: str = "{answer}"
    """Template of the text to learn; `{answer}` marks the record's answer."""
    target: Target = Target.one
    """The text to learn of a record with several answers: one or joined."""
    val_fraction: float = number(0.0, at_least=0, below=1)
    """Share of the rows without a split that goes to the split `val`, chosen by a hash of the image's name."""
    sample_ratio: float = number(1.0, above=0)
    """Weight among the datasets trained on together."""
    feature_cache: str | None = None
    """Folder that caches the frozen encoders' output, filled on first use; null: no cache."""
    vis_processor: SplitProcessors = field(default_factory=_vis_processors)
    """What turns an image into the vision encoder's input."""
    text_processor: SplitProcessors = field(default_factory=_text_processors)
    """What prepares captions."""
    task: EvaluationTask = EvaluationTask.caption
    """What an evaluation asks, where `evaluation.task` is null."""

    def files(self, name: str) -> Iterator[tuple[str, str]]:
        """(key, path) of the annotations and of the folder of images, as far as they are named.

        Args:
            name: key of the dataset in the configuration.
        """
        for path in self.annotation_paths():
            yield f"datasets.{name}.annotations", path
        if self.images:
            yield f"datasets.{name}.images", self.images

    def annotation_paths(self) -> list[str]:
        """The paths in `annotations`."""
        listed = self.annotations if isinstance(self.annotations, list | tuple) else [self.annotations]
        return [str(path) for path in listed if path]

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond the ranges."""
        if self.builder == "instruction" and self.reader is None:
            yield "reader", "this value is mandatory; name the annotations' format, for example jsonl or csv"
        listed = self.annotations if isinstance(self.annotations, list | tuple) else [self.annotations]
        if not all(path is None or (isinstance(path, str) and path) for path in listed):
            yield "annotations", f"{self.annotations!r} should be a path, or a list of paths"
        elif len(set(listed)) < len(listed):
            yield "annotations", f"{self.annotations!r} names a file twice; its rows would count double"
        if "{answer}" not in self.answer:
            yield "answer", f"the template {self.answer!r} must contain '{{answer}}'"
        if "{image}" not in self.image_name:
            yield "image_name", f"the template {self.image_name!r} must contain '{{image}}'"
        if self.split is not None and self.val_fraction:
            yield "split", "val_fraction is set as well, which chooses the split; leave one of the two out"


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Training."""

    task: str = "image_text_pretrain"
    """Registered name of the training objective."""
    runner: str = "epochs"
    """Registered name of the training loop."""
    job_name: str = "minigpt4"
    """First part of the run folder's name, and the run's name in trackers."""
    output_dir: str = "${paths.output_root}"
    """Each run gets a new folder here."""
    run_dir: str | None = None
    """The run folder itself, where its place should be fixed; null: a new one in output_dir."""
    seed: int = number(42, at_least=0, at_most=2**32 - 1)
    """Seed of new weights, the order of samples, and sampling."""
    device: str = "auto"
    """auto (a GPU, where there is one), cpu or cuda."""
    shard_llm: LlmSharding = LlmSharding.off
    """Shard the frozen language model among ranks, where it does not fit on one GPU: off, node or all. Its blocks
    are gathered when they compute, which costs time."""
    lr_sched: str = "linear_warmup_cosine_lr"
    """Registered name of the learning-rate schedule."""
    init_lr: float = number(3e-5, at_least=0)
    """Peak learning rate."""
    min_lr: float = number(1e-5, at_least=0)
    """Learning rate at the end of the schedule."""
    warmup_lr: float = number(1e-6, at_least=0)
    """Learning rate at the first step of warm-up."""
    warmup_steps: int = number(200, at_least=0)
    """Optimizer steps of linear warm-up, counted over the whole run."""
    lr_decay_rate: float = number(0.9, above=0, at_most=1)
    """linear_warmup_step_lr: factor of each epoch."""
    weight_decay: float = number(0.05, at_least=0)
    """Weight decay of matrices; biases and norms do not decay."""
    beta2: float = number(0.999, at_least=0, below=1)
    """Decay rate of AdamW's second moment."""
    max_grad_norm: float | None = number(1.0, above=0)
    """Gradients are clipped to this norm; null: not clipped."""
    batch_size: int = number(8, at_least=1)
    """Samples of a micro-batch on each rank; datasets that are trained on together share it."""
    eval_batch_size: int = number(16, at_least=1)
    """Samples of a validation batch on each rank."""
    accum_grad_iters: int = number(1, at_least=1)
    """Micro-batches of an optimizer step on each rank."""
    global_batch: int | None = number(None, at_least=1)
    """Samples of an optimizer step over all ranks, a multiple of batch_size; accum_grad_iters follows from it, and
    any number of ranks that shares its micro-batches equally trains to the same weights. null: batch_size x
    accum_grad_iters x ranks."""
    max_epoch: int = number(5, at_least=1)
    """Epochs."""
    iters_per_epoch: int | None = number(None, at_least=1)
    """Optimizer steps of an epoch; null: once through the data."""
    group_by_length: int = number(1, at_least=1)
    """Optimizer steps whose samples are sorted by length together, so that batches need less padding; 1: no sorting.
    Only useful for language models that cannot be packed."""
    num_workers: int = number(4, at_least=0, at_most=128)
    """Data-loading worker processes of each rank."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    """Splits to train on."""
    valid_splits: list[str] = field(default_factory=lambda: ["val"])
    """Splits whose loss is measured after each epoch; empty: no validation."""
    log_freq: int = number(50, at_least=1)
    """Optimizer steps between two log lines."""
    save_freq: int | None = number(None, at_least=1)
    """Optimizer steps between two checkpoints within an epoch; null: only at the ends of epochs."""
    keep_checkpoints: int | None = number(None, at_least=1)
    """Checkpoints of epochs that are kept, the latest ones; those of the best epoch and within an epoch are kept
    besides. null: all."""
    resume_ckpt_path: str | None = None
    """Checkpoint to resume from; auto: the latest valid checkpoint in run_dir, if there is one."""
    trackers: list[str] = field(default_factory=list)
    """Any of tensorboard, wandb, trackio."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond the ranges."""
        if not self.train_splits:
            yield "train_splits", "no split to train on; name one, for example [train]"
        if self.global_batch is not None and self.accum_grad_iters > 1:
            yield "global_batch", "run.accum_grad_iters is set as well, and follows from it; leave one of the two out"
        if self.run_dir == "":
            yield "run_dir", "an empty path; name the run's folder, or leave it out"


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Generating and scoring captions and other answers."""

    task: EvaluationTask | None = None
    """What is asked of all datasets: caption, vqa (questions with answers in words), refer (one box) or detection
    (boxes); null: what each dataset's own `task` says."""
    dataset: str | None = None
    """Which of `datasets` to evaluate, several names separated by commas; null: the only one."""
    split: str = "test"
    """Split to evaluate: train, val, test, or any other name in the annotations; several separated by commas."""
    scorer: Scorer = Scorer.auto
    """Scores of the task vqa: soft (VQA's accuracy), exact, choice (the most likely of the choices), yes_no (POPE), or
    auto, which takes the one that fits the annotations."""
    shuffled: bool = True
    """Ask each question about another image too, which shows what is guessed; it doubles the time. The task caption has
    this control without it."""
    batch_size: int = number(16, at_least=1)
    """Images encoded together on each rank."""
    num_workers: int = number(2, at_least=0, at_most=128)
    """Data-loading worker processes of each rank."""
    feature_memory: float = number(2.0, above=0)
    """GiB of image features that each rank keeps at a time, while one checkpoint after the other answers about them; an
    image of MiniGPT-v2 has 2.9 MB of them in half precision, one of MiniGPT-4 48 KB."""
    prompt: str | None = None
    """Instruction for every image without a question; or, with `{question}` in it, what goes around every question.
    null: the first of the dataset's prompts."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge", "cider"])
    """Any of bleu, rouge, cider, meteor, spice."""
    limit: int | None = number(None, at_least=1)
    """Evaluate only the first images of the split."""
    fraction: float | None = number(None, above=0, at_most=1)
    """Evaluate only a random share of the split, fixed by `seed`."""
    seed: int = number(42, at_least=0, at_most=2**32 - 1)
    """Seed of `fraction`, of sampling and of the shuffled images."""
    scenes: str | None = None
    """Ground truth of drawn scenes (scenes.json): adds object accuracies, for the right and for shuffled images."""
    objects: str | None = None
    """Boxes of the images' objects (COCO's instances, JSON lines with `boxes`, or scenes.json): adds CHAIR to captions,
    the share of named objects that are not there, for the right and for shuffled images."""
    object_words: str | None = None
    """Words by which captions may call these objects, a line such as `couch: sofa, settee` each; null: a list for those
    of COCO, while others have their names only."""
    output_dir: str | None = None
    """Folder of predictions and results; null: a new one in `paths.output_root`/evaluation. Results that it holds stay:
    rows of the same protocol in the new table, others in their folder, while the new ones go to one beside it."""
    fluency: bool = False
    """Add the shares of answers with repetitions and with sentence fragments."""
    compare_images: bool = True
    """Open the images that the checkpoints were trained on too, to find copies of evaluated ones; false: compare ids
    and paths only."""
    report_samples: int = number(200, at_least=0)
    """Images shown in report.html."""

    def problems(self) -> Iterator[tuple[str, str]]:
        """(field, what is wrong with it), beyond the ranges."""
        if self.limit is not None and self.fraction is not None:
            yield "limit", "fraction is set as well; choose one"
        if not self.splits:
            yield "split", "no split to evaluate; name one, for example test"

    @property
    def splits(self) -> list[str]:
        """The names in `split`."""
        return _names(self.split)

    @property
    def datasets(self) -> list[str]:
        """The names in `dataset`; none: the only dataset."""
        return _names(self.dataset or "")


def _names(listed: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


@dataclass(kw_only=True, slots=True)
class DescribeConfig:
    """How the stage-1 model describes images."""

    prompt_path: str | None = None
    """Text file whose first line asks for the description."""
    min_tokens: int = number(80, at_least=0)
    """A shorter description is continued."""
    continue_prompt: str = "Continue"
    """Asks for the continuation."""
    max_continues: int = number(1, at_least=0)
    """Continuations of a description."""
    samples: int = number(1, at_least=1)
    """Descriptions of each image: the first by `generation`, the others sampled, for a refiner that compares them."""
    batch_size: int = number(16, at_least=1)
    """Images described, and recorded, together."""
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(max_new_tokens=160))


@dataclass(kw_only=True, slots=True)
class RefineConfig:
    """What corrects the descriptions."""

    refiner: str = "endpoint"
    """endpoint (a chat-completions server), llm (a local language model) or local (rules and agreement)."""
    prompt_path: str | None = None
    """Text file with the request for a correction; the description follows it."""
    min_overlap: float = number(0.3, at_least=0, at_most=1)
    """Share of a correction's words that the description must contain; below it, the answer is about something else."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """endpoint: URL in front of `/chat/completions`."""
    model: str = ""
    """endpoint: the model's name there."""
    api_key_env: str | None = None
    """endpoint: environment variable that holds the key; null: no key is sent."""
    temperature: float = number(0.0, at_least=0)
    """endpoint, llm: 0: greedy."""
    max_tokens: int = number(512, at_least=1)
    """endpoint, llm: longest correction in tokens."""
    timeout: float = number(60.0, above=0)
    """endpoint: seconds that a request may take in total."""
    attempts: int = number(5, at_least=1)
    """endpoint: requests for one description in a run; after the last, it stays pending until the next run."""
    backoff: float = number(1.0, at_least=0)
    """endpoint: seconds before the second attempt, doubled each time up to max_backoff, times a random 0.5 to 1."""
    max_backoff: float = number(60.0, at_least=0)
    """endpoint: longest wait in seconds, also where the server asks for more."""
    requests_per_minute: float | None = number(None, above=0)
    """endpoint: rate limit; null: none."""
    concurrency: int = number(4, at_least=1)
    """endpoint: simultaneous requests."""
    price_in: float | None = number(None, at_least=0)
    """endpoint: price of a million prompt tokens, for the bill."""
    price_out: float | None = number(None, at_least=0)
    """endpoint: price of a million generated tokens, for the bill."""
    llm_model: str | None = None
    """llm: folder in Hugging Face's layout; null: model.llama_model."""
    min_support: float = number(0.5, at_least=0, at_most=1)
    """local: share of an image's descriptions that must name a thing for it to stay."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Rules for corrected descriptions; null or 0 turns a rule off."""

    min_words: int = number(10, at_least=0)
    """Words of a description at least."""
    max_words: int = number(300, at_least=0)
    """Words of a description at most."""
    max_repetition: float | None = number(0.2, at_least=0, at_most=1)
    """Share of word trigrams that occurred before in the same text."""
    max_fragments: float | None = number(0.0, at_least=0, at_most=1)
    """Share of sentences without a capital at the beginning or a full stop at the end."""
    min_english: float | None = number(0.15, at_least=0, at_most=1)
    """Share of words that are among the most common of English."""
    max_strange: float | None = number(0.02, at_least=0, at_most=1)
    """Share of characters that English sentences do not need."""
    min_agreement: float | None = number(None, at_least=0, at_most=1)
    """Support by an image's other descriptions, where the refiner measures it (local)."""


@dataclass(kw_only=True, slots=True)
class CurationConfig:
    """From the stage-1 model's descriptions to stage 2's data."""

    dir: str = "${paths.output_root}/curation"
    """Folder of the ledger and of the sampled images."""
    images: int = number(5000, at_least=1)
    """Images sampled from all `datasets` together."""
    seed: int = number(42, at_least=0, at_most=2**32 - 1)
    """Seed of the choice of images, and of sampled descriptions."""
    split: str = "train"
    """Split that the images are sampled from."""
    port: int = number(8765, at_least=0, at_most=65535)
    """Port of the review page, on this machine only; 0: any free port."""
    export_dir: str = "${paths.output_root}/curation/cc_sbu_align"
    """Folder of the finished data, which the card cc_sbu_align reads."""
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)


@dataclass(kw_only=True, slots=True)
class ServingConfig:
    """How much `minigpt4 serve` and the chat page work on at the same time, and what they keep in memory."""

    rows: int | None = number(None, at_least=1, at_most=1024)
    """Answers worked on at the same time; null: as many as fit into half of the free memory, at most 16."""
    context: int = number(2048, at_least=2)
    """Tokens of a prompt with its images and its answer, or the language model's own context where that is shorter.
    Memory for `rows` of this length is taken at the start, and never more."""
    waiting: int = number(64, at_least=1)
    """Requests that wait for a row; further ones are refused, and told when to come again."""
    feature_memory: float = number(0.25, at_least=0)
    """GiB of features of images that are kept for the next question about the same image."""
    max_request_mb: float = number(20.0, above=0)
    """Largest request in MB (10^6 bytes), and largest image that is fetched."""
    grace_seconds: float = number(30.0, at_least=0)
    """Time that running requests have when the server is told to end."""


@dataclass(kw_only=True, slots=True)
class Config:
    """All settings: default.yaml < model card < dataset cards < your YAML < --options."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)


class GenerationSettings(TypedDict, total=False):
    """The fields of `GenerationConfig` as keyword arguments."""

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    do_sample: bool
    temperature: float
    top_p: float
    repetition_penalty: float
    length_penalty: float
    static_cache: bool


def override_generation(settings: GenerationConfig, values: Mapping[str, Any]) -> GenerationConfig:
    """`settings` with some fields replaced.

    Args:
        settings: the defaults.
        values: field names -> values.

    Raises:
        ConfigError: An unknown name, a wrong type, or a value out of range.
    """
    types = get_type_hints(GenerationConfig)
    for name, value in values.items():
        if name not in types:
            raise ConfigError(f"generation: no setting '{name}'; {did_you_mean(name, types)}")
        # True is an int to Python, and 1 a valid temperature.
        if type(value) is not types[name] and not (types[name] is float and type(value) is int):
            raise ConfigError(f"generation: {name} is {value!r}, should be of type {types[name].__name__}")
    changed = replace(settings, **values)
    check_values(changed, "generation.")
    return changed
