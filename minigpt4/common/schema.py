"""Every setting a YAML file or `--options` can change: its type, default, range and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, TypedDict, get_type_hints

from minigpt4.common.errors import ConfigError, did_you_mean


@dataclass(kw_only=True, slots=True)
class GenerationConfig:
    """How answers are generated."""

    max_new_tokens: int = 80
    min_new_tokens: int = 1
    num_beams: int = 1
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    static_cache: bool = False
    """Let transformers generate with a cache of fixed size; on a GPU it then compiles the step of one token."""

    def __post_init__(self) -> None:
        least = {"max_new_tokens": 1, "min_new_tokens": 0, "num_beams": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"generation: {name} is {getattr(self, name)}, should be at least {bound}")
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"generation: {name} is {getattr(self, name)}, should be above 0")
        if self.top_p > 1:
            raise ConfigError(f"generation: top_p is {self.top_p}, should be at most 1")


def _detailed() -> GenerationConfig:
    return GenerationConfig(max_new_tokens=160)


@dataclass(kw_only=True, slots=True)
class DescribeConfig:
    """How the stage-1 model describes pictures."""

    prompt_path: str | None = None
    """Text file whose first line asks for the description."""
    min_tokens: int = 80
    """A shorter description is continued."""
    continue_prompt: str = "Continue"
    max_continues: int = 1
    """How often at most."""
    samples: int = 1
    """Descriptions a picture: one by `generation`, the others drawn, for a refiner that compares them."""
    batch_size: int = 16
    """Pictures described, and written down, at a time."""
    generation: GenerationConfig = field(default_factory=_detailed)


@dataclass(kw_only=True, slots=True)
class RefineConfig:
    """Who corrects the descriptions."""

    refiner: str = "endpoint"
    """endpoint (a chat-completions server), llm (a language model's folder) or local (rules and agreement)."""
    prompt_path: str | None = None
    """Text file with the request for a correction; the description follows it."""
    min_overlap: float = 0.3
    """Share of a correction's words that the description must hold; below it, the answer is about something else."""
    base_url: str = "http://127.0.0.1:8000/v1"
    """endpoint: address that `/chat/completions` is appended to."""
    model: str = ""
    """endpoint: the model's name there."""
    api_key_env: str | None = None
    """endpoint: environment variable that holds the key; null: none is sent."""
    temperature: float = 0.0
    max_tokens: int = 512
    """endpoint, llm: tokens of a correction."""
    timeout: float = 60.0
    """endpoint: seconds that one request may take altogether."""
    attempts: int = 5
    """endpoint: requests for one description in a run; afterwards it stays pending for the next run."""
    backoff: float = 1.0
    """endpoint: seconds before the second attempt, doubled each time, up to max_backoff, times 0.5 to 1 by lot."""
    max_backoff: float = 60.0
    """endpoint: seconds to wait at most, also where the server asks for more."""
    requests_per_minute: float | None = None
    concurrency: int = 4
    """endpoint: requests at the same time."""
    price_in: float | None = None
    """endpoint: price of a million prompt tokens, for the bill."""
    price_out: float | None = None
    """endpoint: the same of answered tokens."""
    llm_model: str | None = None
    """llm: folder in Hugging Face's layout; null: model.llama_model."""
    min_support: float = 0.5
    """local: share of a picture's descriptions that must name a thing for it to stay."""


@dataclass(kw_only=True, slots=True)
class FilterConfig:
    """Rules for corrected descriptions; null or 0 leaves a rule out."""

    min_words: int = 10
    max_words: int = 300
    max_repetition: float | None = 0.2
    """Share of word trigrams that occurred before in the same text."""
    max_fragments: float | None = 0.0
    """Share of sentences without a capital at the beginning or a full stop at the end."""
    min_english: float | None = 0.15
    """Share of words that are among English's commonest."""
    max_strange: float | None = 0.02
    """Share of characters that no English sentence needs."""
    min_agreement: float | None = None
    """Support by a picture's other descriptions, where the refiner says one (local)."""


@dataclass(kw_only=True, slots=True)
class CurationConfig:
    """From the stage-1 model's descriptions to stage 2's data."""

    dir: str = "${paths.output_root}/curation"
    """Folder of the ledger and of the pictures drawn."""
    pictures: int = 5000
    """Pictures drawn from all of `datasets` together."""
    seed: int = 42
    split: str = "train"
    port: int = 8765
    """Of the review page, on this machine only."""
    export_dir: str = "${paths.output_root}/curation/cc_sbu_align"
    """Folder of the finished data, which the card cc_sbu_align reads."""
    describe: DescribeConfig = field(default_factory=DescribeConfig)
    refine: RefineConfig = field(default_factory=RefineConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)


class Precision(str, Enum):
    """Number format of frozen weights and of autocast."""

    auto = "auto"  # bfloat16 where the device computes it natively, else float32 on CPU and float16 on a GPU
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LowResource(str, Enum):
    """How the language model is quantised when it is loaded."""

    off = "off"
    int8 = "8bit"
    nf4 = "4bit"


class Amp(str, Enum):
    """Mixed precision of the training step."""

    auto = "auto"  # bfloat16 where the device computes it natively, else float16 on a GPU, else off
    bf16 = "bf16"
    fp16 = "fp16"
    off = "off"


class LlmSharding(str, Enum):
    """Which processes divide the frozen language model among them (FSDP2) in training."""

    off = "off"  # each holds it whole
    node = "node"  # those of one machine
    all = "all"  # all of the run


class Target(str, Enum):
    """Which answer a record with several trains on."""

    joined = "joined"  # all of them joined by a space
    one = "one"  # one, drawn for each sample and epoch


class BadShards(str, Enum):
    """What a shard that is missing, damaged or without captions does to a run."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True, slots=True)
class PathsConfig:
    """Where data, weights and results live; relative paths start at the current folder."""

    data_root: str = "data"
    weights_root: str = "weights"
    output_root: str = "output"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The alignment model."""

    arch: str = "minigpt4"
    """Registered name of the model class."""
    model_type: str = "vicuna0_7b"
    """Model card: `configs/models/{arch}_{model_type}.yaml`, or a path of a YAML file of yours."""
    image_size: int = 224
    """Side of the square picture in pixels."""
    vit_model: str = "eva_giant_patch14_224"
    """Backbone's name in timm."""
    vit_weights: str | None = None
    """File with the backbone's weights; null: the backbone is left untrained (tests only)."""
    vit_blocks: int = 39
    """Transformer blocks used; a file that holds more of them is fine."""
    vit_args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of timm's constructor (sizes, for a backbone that is not the published one)."""
    q_former_model: str | None = None
    """File with query tokens, ln_vision and Q-Former weights, in BLIP-2's layout."""
    num_query_token: int = 32
    """Learned queries, so image tokens in the prompt."""
    q_former_args: dict[str, Any] = field(default_factory=dict)
    """Further fields of transformers' `Blip2QFormerConfig`."""
    llama_model: str | None = None
    """Folder of the language model in Hugging Face's layout."""
    low_resource: LowResource = LowResource.off
    """Load the language model in 8 or 4 bit (bitsandbytes), on this process's own device."""
    precision: Precision = Precision.auto
    """Number format of the frozen weights."""
    compile: bool = False
    """Compile the blocks of the frozen parts by torch.compile when they are first used (minutes for a large model)."""
    ckpt: str | None = None
    """Checkpoint with the projection to start from; null: a fresh one."""
    prompt_path: str | None = None
    """Text file of instructions, one a line, used where a record has no question of its own."""
    prompt_template: str = "###Human: {} ###Assistant: "
    """Dialogue template around an instruction; `{}` marks its place."""
    end_sym: str = "###"
    """Ends an answer in training, and stops generation."""
    template: str | None = None
    """A template by name instead: vicuna0, vicuna0_demo, llama2, minigpt_v2, or chat (the language model's own)."""
    system: str = ""
    """System message of every prompt, where the template places it."""
    max_txt_len: int = 160
    """Tokens of an answer (with its end) kept in training."""
    max_context_len: int = 3800
    """Tokens of a prompt with its images; a longer one is an error."""

    def __post_init__(self) -> None:
        if isinstance(self.prompt_template, str) and self.prompt_template.count("{}") != 1:
            raise ConfigError(
                f"model.prompt_template: {self.prompt_template!r} must contain '{{}}' once, where the instruction goes"
            )


@dataclass(kw_only=True, slots=True)
class ProcessorConfig:
    """One processor by name, with what it takes."""

    name: str = "???"
    image_size: int | None = None
    """Side in pixels; null: the model's."""
    prompt: str = ""
    """Text in front of a caption (text processors)."""
    max_words: int | None = None
    """Words of a caption kept (text processors); null: all."""


@dataclass(kw_only=True, slots=True)
class SplitProcessors:
    """Processors for training and for evaluation."""

    train: ProcessorConfig = field(default_factory=ProcessorConfig)
    eval: ProcessorConfig = field(default_factory=ProcessorConfig)


def _vis_processors() -> SplitProcessors:
    return SplitProcessors(
        train=ProcessorConfig(name="blip2_image_train"), eval=ProcessorConfig(name="blip2_image_eval")
    )


def _text_processors() -> SplitProcessors:
    return SplitProcessors(train=ProcessorConfig(name="plain_text"), eval=ProcessorConfig(name="plain_text"))


@dataclass(kw_only=True, slots=True)
class DatasetConfig:
    """One dataset: a card (`configs/datasets/NAME.yaml`), your YAML, or both, the latter winning."""

    card: str | None = None
    """Card to start from: a shipped card's name or a path; null: the card of the dataset's own name, if any."""
    builder: str = "instruction"
    """Registered kind of dataset: instruction (pictures and annotations), or webdataset (both in tar shards)."""
    reader: str = "???"
    """Registered reader of the annotations: cc_sbu_align, flickr30k, jsonl, csv, folder, coco_boxes or table_triples;
    none for shards."""
    annotations: str | None = None
    """Annotation file (or folder, for the reader `folder`)."""
    images: str | None = None
    """Folder that relative image paths start at; null: the annotation file's own folder."""
    shards: Any = None
    """Tar files of the kind `webdataset`: a pattern such as '{00000..01255}.tar' or '*.tar', or a list of them."""
    shard_index: str | None = None
    """Folder that keeps where the samples lie in the shards; null: `minigpt4_index` beside the first shard."""
    bad_shards: BadShards = BadShards.stop
    """stop: refuse to train where a shard is missing, damaged or without captions; skip: leave it out, and say so."""
    shuffle_shards: int = 16
    """Shards whose samples are shuffled among each other; so many files are read at a time."""
    prompts: str | None = None
    """Text file of instructions, one a line; null: `model.prompt_path`."""
    answer: str = "{answer}"
    """Template of the text to learn; `{answer}` marks the record's answer."""
    target: Target = Target.one
    """What a record with several answers trains on."""
    val_fraction: float = 0.0
    """Share of rows without a split of their own that goes to the split `val`, chosen by a hash of the image."""
    batch_size: int = 8
    """Samples a process and micro-batch."""
    eval_batch_size: int = 16
    """Samples a process and batch of validation."""
    sample_ratio: float = 1.0
    """Weight among the datasets trained on together."""
    feature_cache: str | None = None
    """Folder that keeps what the frozen encoders make of the pictures, filled on first use; null: none."""
    vis_processor: SplitProcessors = field(default_factory=_vis_processors)
    text_processor: SplitProcessors = field(default_factory=_text_processors)

    def __post_init__(self) -> None:
        if isinstance(self.answer, str) and "{answer}" not in self.answer:
            raise ConfigError(f"datasets: answer template {self.answer!r} must contain '{{answer}}'")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Training."""

    task: str = "image_text_pretrain"
    runner: str = "epochs"
    job_name: str = "minigpt4"
    """First part of the run folder's name, and the run's name in trackers."""
    output_dir: str = "${paths.output_root}"
    """A unique run folder is made below it."""
    run_dir: str | None = None
    """The run folder itself, for a fixed place; null: a new one below output_dir."""
    seed: int = 42
    device: str = "auto"
    """auto, cpu or cuda."""
    shard_llm: LlmSharding = LlmSharding.off
    """Divide the frozen language model among processes, where it does not fit on one card: off, node (the processes of
    each machine hold it together) or all. Its layers are put together when they are needed, which costs time."""
    amp: Amp = Amp.auto
    lr_sched: str = "linear_warmup_cosine_lr"
    init_lr: float = 3e-5
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    warmup_steps: int = 200
    """Optimizer steps of linear warm-up, counted over the whole run."""
    lr_decay_rate: float = 0.9
    """Factor an epoch, for linear_warmup_step_lr."""
    weight_decay: float = 0.05
    beta2: float = 0.999
    max_grad_norm: float | None = 1.0
    """Gradients are clipped to this norm; null: not at all."""
    accum_grad_iters: int = 1
    """Micro-batches an optimizer step."""
    max_epoch: int = 5
    iters_per_epoch: int | None = None
    """Optimizer steps an epoch; null: once through the data."""
    group_by_length: int = 1
    """Optimizer steps whose samples are sorted by length together, so that a batch needs less padding; 1: not at all.
    Of use only to language models that cannot do without padding."""
    num_workers: int = 4
    """Loader processes a training process."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    valid_splits: list[str] = field(default_factory=lambda: ["val"])
    """Splits whose loss is measured after each epoch; empty: none."""
    log_freq: int = 50
    """Optimizer steps between two log lines."""
    save_freq: int | None = None
    """Optimizer steps between two mid-epoch resume points; null: at the ends of epochs only."""
    resume_ckpt_path: str | None = None
    """A checkpoint to go on from; `auto`: the newest whole one in run_dir, if any."""
    trackers: list[str] = field(default_factory=list)
    """Of tensorboard, wandb, trackio."""


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    """Generation and scoring of captions."""

    dataset: str | None = None
    """Which of `datasets` to evaluate; null: the only one."""
    split: str = "test"
    batch_size: int = 16
    num_workers: int = 2
    prompt: str | None = None
    """Instruction for every picture; null: the first of the dataset's prompts."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rouge", "cider"])
    limit: int | None = None
    """At most so many pictures: the first of the split in a fixed order."""
    fraction: float | None = None
    """A fixed random share of the split, by `seed`."""
    seed: int = 42
    scenes: str | None = None
    """Ground truth of generated scenes (scenes.json): adds object accuracies, on right and on swapped pictures."""
    output_dir: str | None = None
    """Folder of predictions and results; null: a new one below `paths.output_root`/evaluation."""
    precision: Precision = Precision.auto
    """Number format of the frozen weights in evaluation."""
    fluency: bool = False
    """Adds the shares of repetition and of sentence fragments in the answers."""
    report_samples: int = 200
    """Pictures shown in report.html."""


@dataclass(kw_only=True, slots=True)
class Config:
    """Everything: default.yaml < model card < dataset cards < your YAML < --options."""

    paths: PathsConfig = field(default_factory=PathsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    curation: CurationConfig = field(default_factory=CurationConfig)


class GenerationSettings(TypedDict, total=False):
    """The fields of `GenerationConfig` as keywords."""

    max_new_tokens: int
    min_new_tokens: int
    num_beams: int
    do_sample: bool
    temperature: float
    top_p: float
    repetition_penalty: float
    length_penalty: float
    static_cache: bool


def changed(settings: GenerationConfig, values: Mapping[str, Any]) -> GenerationConfig:
    """`settings` with some of them replaced.

    Args:
        settings: What holds where nothing is given.
        values: Field names -> values.

    Raises:
        ConfigError: An unknown name, a wrong type, or a value out of range.
    """
    types = get_type_hints(GenerationConfig)
    known = [field.name for field in fields(GenerationConfig)]
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"generation: no setting '{name}'; {did_you_mean(name, known)}")
        kind = types[name]
        # True is an int to Python, and 1 a fine temperature.
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits:
            raise ConfigError(f"generation: {name} is {value!r}, should be of type {kind.__name__}")
    return replace(settings, **values)
